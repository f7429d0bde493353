"""A model that computes NaN has no answer, and says so wherever labels are made."""

import numpy as np
import pytest
import torch
from own_encoder import Words
from tiny import NAMES, tiny_config, tiny_model

from fgaseg import FGASeg
from fgaseg.errors import PredictionError
from fgaseg.inference import decide, view_logits

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
SWITCHES = {
    "whole": {},
    "windows": {"inference": "windows"},
    "released": {"preset": "released"},
    "released, fast": {"preset": "released", "fast": True},
    "sigmoid": {"loss": {"seg": "bce"}},
    "scores": {"resize": "scores"},
    "baseline": {"propagation": False, "lcs": False, "t2p": False},
}


class Broken(Words):
    """Finite weights, and NaN in one patch."""

    def image(self, pixels):
        embedding, early, late = super().image(pixels)
        embedding[..., 0, 0] = float("nan")
        return embedding, early, late


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_nan_is_an_error_in_one_line(switches, probabilities):
    model = tiny_model(**switches)
    assert model.segment(PHOTO, NAMES, probabilities=probabilities).labels.shape == (40, 60)
    with torch.no_grad():
        model.clip.visual.proj.fill_(float("nan"))
    for threshold in (None, 0.5):
        with pytest.raises(
            PredictionError, match="the model has no answer: its scores are NaN|weights hold NaN"
        ) as caught:
            model.segment(PHOTO, NAMES, threshold=threshold, probabilities=probabilities)
        assert "\n" not in str(caught.value)


def test_a_photo_is_named_and_one_patch_is_enough(tmp_path):
    from PIL import Image

    config = tiny_config(encoder={"architecture": None, "finetune": "none"})
    model = FGASeg(config, Broken()).eval()
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    with pytest.raises(PredictionError, match=r"photo\.png: the model has no answer"):
        model.segment(tmp_path / "photo.png", NAMES)
    with pytest.raises(PredictionError):
        model.predict_labels(PHOTO, model.encode(NAMES))


def test_what_frames_and_rasters_are_labelled_by():
    model = tiny_model()
    vocabulary = model.encode(NAMES)
    from PIL import Image

    with torch.inference_mode():
        logits = view_logits(model, Image.fromarray(PHOTO), vocabulary)
        decide(model, logits, vocabulary, (40, 60))
        logits[2, 3, 3] = float("nan")
        with pytest.raises(PredictionError):
            decide(model, logits, vocabulary, (40, 60))
