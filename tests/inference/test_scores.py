"""Scores are one thing in every mode; probabilities of all classes; background, threshold, and what is resized."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import NAMES, Largest, tiny_model

from fgaseg import DataError, ResultError, VocabularyError
from fgaseg.data import read_image, stuff_names
from fgaseg.inference import decide, label_names, prediction, view_logits
from fgaseg.inference.prediction import DROPPED, evaluation_mode

PHOTO = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
LONG = np.random.default_rng(1).integers(0, 256, (20, 150, 3), dtype=np.uint8)
MODES = {
    "softmax": {},
    "softmax of scores": {"resize": "scores"},
    "sigmoid": {"loss": {"seg": "bce"}},
    "sigmoid of scores": {"loss": {"seg": "bce"}, "resize": "scores"},
    "fast": {"fast": True, "top_k": 1},
    "released windows": {"preset": "released"},
    "released whole": {"preset": "released", "inference": "whole"},
    "released fast windows": {"preset": "released", "fast": True, "top_k": 1},
    "released fast whole": {"preset": "released", "fast": True, "inference": "whole", "top_k": 1},
    "softmax windows": {"inference": "windows"},
}


def resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("photo", [PHOTO, LONG], ids=["photo", "panorama"])
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_probabilities_are_those_that_labels_and_scores_come_from(mode, photo):
    model = tiny_model(**mode)
    plain, result = model.segment(photo, NAMES), model.segment(photo, NAMES, probabilities=True)
    assert np.array_equal(plain.labels, result.labels)
    np.testing.assert_allclose(plain.scores, result.scores, rtol=1e-6)
    maps = np.stack(list(result.probabilities))
    assert maps.shape == result.probabilities.shape == (5, *photo.shape[:2]) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1
    np.testing.assert_allclose(maps.max(0), result.scores, atol=1e-5)
    best_two = np.sort(maps, axis=0)[-2:]
    clear = best_two[1] - best_two[0] > 1e-5  # elsewhere rounding decides
    assert clear.mean() > 0.9 and (maps.argmax(0) == result.labels)[clear].all()
    if model.config.loss.seg == "ce":
        np.testing.assert_allclose(maps.sum(0), 1, atol=1e-4)
    assert np.array_equal(result.probabilities["red star"], result.probabilities[2])
    assert np.array_equal(result.probabilities[-1], result.probabilities["wooden floor"])


@pytest.mark.parametrize("mode", ["softmax", "softmax of scores", "sigmoid", "sigmoid of scores", "released windows"])
def test_maps_that_come_in_parts_give_the_same(mode):
    names = [f"thing {i}" for i in range(150)]
    model, streaming = tiny_model(**MODES[mode]), tiny_model(**MODES[mode], class_maps_budget=0)
    with torch.inference_mode():
        views = prediction._whole(streaming, read_image(PHOTO))
        assert len(list(streaming.stream(views, streaming.encode(names)))) > 1
    one, other = (each.segment(PHOTO, names, probabilities=True) for each in (model, streaming))
    assert (one.labels == other.labels).mean() > 0.999  # elsewhere rounding decides
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-3)
    np.testing.assert_allclose(one.probabilities[149], other.probabilities[149], rtol=1e-3)
    assert np.array_equal(streaming.segment(PHOTO, names).labels, other.labels)


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("photo", [PHOTO, PHOTO[:7, :9], PHOTO[:, :30]], ids=["70x50", "9x7", "30x50"])
def test_resize_says_what_is_resized(loss, photo):
    size = photo.shape[:2]
    for resize in ("logits", "scores"):
        model = tiny_model(loss={"seg": loss}, resize=resize)
        with torch.inference_mode():
            logits = view_logits(model, read_image(photo), model.encode(NAMES)).double()
        activation = (lambda x: x.softmax(0)) if loss == "ce" else torch.sigmoid
        expected = activation(resized(logits, size)) if resize == "logits" else resized(activation(logits), size)
        result = model.segment(photo, NAMES)
        np.testing.assert_allclose(result.scores, expected.amax(0).numpy(), rtol=1e-5)
        first, second = expected.topk(2, dim=0).values
        clear = (first - second > 1e-6).numpy()
        assert np.array_equal(result.labels[clear], expected.argmax(0).numpy()[clear])


def test_the_released_preset_labels_whole_photos_as_the_released_code_does():
    """Sigmoid, then bilinear: where the logits are steep, other pixels win than by resized logits."""
    model = tiny_model(preset="released", inference="whole")
    with torch.no_grad():
        model.head.decoder.head.conv.weight.mul_(8)
    with torch.inference_mode():
        logits = view_logits(model, read_image(PHOTO), model.encode(NAMES))
    theirs = resized(logits.sigmoid(), PHOTO.shape[:2]).argmax(0).numpy()
    others = resized(logits, PHOTO.shape[:2]).argmax(0).numpy()
    labels = model.segment(PHOTO, NAMES).labels
    assert (labels == theirs).mean() > 0.998 and (others != theirs).mean() > 0.01


@pytest.mark.parametrize("mode", ["whole", "windows"])
def test_scores_of_the_released_fast_mode_lie_between_0_and_1(mode):
    """Not between 0.5 and 0.731, as two sigmoids give."""
    model = tiny_model(preset="released", fast=True, inference=mode)
    scores = model.segment(PHOTO, NAMES).scores
    with torch.inference_mode():
        highest = view_logits(model, read_image(PHOTO), model.encode(NAMES)).amax()
    assert 0 < scores.min() < 0.5 and scores.max() <= 1
    assert scores.max() == pytest.approx(float(highest), abs=0.2)


def test_decide_labels_a_view_as_segment_does():
    for mode in ("softmax", "sigmoid of scores", "released whole", "released fast whole"):
        model = tiny_model(**MODES[mode])
        vocabulary = model.encode(NAMES)
        with torch.inference_mode(), evaluation_mode(model):
            logits = view_logits(model, read_image(PHOTO), vocabulary)
            labels, scores = decide(model, logits, vocabulary, (50, 70), threshold=0.5)
        result = model.segment(PHOTO, vocabulary, threshold=0.5)
        assert np.array_equal(labels.numpy(), result.labels)
        np.testing.assert_allclose(scores.numpy(), result.scores, rtol=1e-6)


def test_classes_that_the_model_drops_have_a_finite_logit_and_no_probability():
    model = tiny_model(fast=True, top_k=1)
    names = [f"thing {i}" for i in range(40)]
    with torch.inference_mode():
        logits = view_logits(model, read_image(PHOTO[:9, :9]), model.encode(names))
    dropped = (logits == DROPPED).flatten(1).all(1)
    assert logits.isfinite().all() and dropped.any() and not dropped.all()
    result = model.segment(PHOTO[:9, :9], names, probabilities=True)
    assert all(result.probabilities[int(i)].max() < 1e-6 for i in dropped.nonzero()[:3, 0])


def test_memory_of_probabilities_does_not_grow_with_the_photo_times_the_classes():
    names = [f"class {i}" for i in range(100)]
    for mode in ("whole", "windows"):
        with Largest() as largest:
            result = tiny_model(inference=mode).segment(np.zeros((1500, 2000, 3), np.uint8), names, probabilities=True)
            assert result.probabilities[7].shape == (1500, 2000)
        assert largest.elements < 100 * 2000 * 1500 / 4


def test_probabilities_and_masks_say_what_is_wrong():
    result = tiny_model().segment(PHOTO, NAMES)
    with pytest.raises(ResultError, match="probabilities=True"):
        result.probabilities  # noqa: B018
    with pytest.raises(VocabularyError, match="'cow' is none of the classes: 'cat', 'dog'"):
        result.mask("cow")
    kept = tiny_model().segment(PHOTO, NAMES, probabilities=True).probabilities
    with pytest.raises(IndexError, match="class 5: there are 5"):
        kept[5]
    with pytest.raises(VocabularyError, match="'cow'"):
        kept["cow"]
    with pytest.raises(TypeError, match="one class at a time"):
        kept[1:3]
    assert "cat" in kept and "cow" not in kept
    assert np.array_equal(result.mask("dog"), result.labels == 1) and result.mask("dog").dtype == bool


# ---- background and threshold


def test_a_threshold_gives_what_no_class_fits_a_label_of_its_own():
    model = tiny_model(loss={"seg": "bce"})
    plain = model.segment(PHOTO, NAMES)
    limit = float(np.median(plain.scores))
    result = model.segment(PHOTO, NAMES, threshold=limit)
    assert result.classes == (*NAMES, "nothing") and result.nothing == 5
    assert np.array_equal(result.labels, np.where(plain.scores < limit, 5, plain.labels))
    assert np.array_equal(result.scores, plain.scores) and 0 < result.present["nothing"] < 1
    assert np.array_equal(result.mask("nothing"), plain.scores < limit)
    result.overlay()


@pytest.mark.parametrize(
    ("background", "name", "prompts"),
    [("other", "other", ["other"]), ("wall | sky", "background", ["wall", "sky"]),
     ("wall, sky; ground", "background", ["wall", "sky", "ground"]), (" Stuff", "background", stuff_names()),
     (["wall, brick"], "wall, brick", ["wall, brick"]),
     (["wall", "sky | ground"], "background", ["wall", "sky", "ground"]), ("stuff", "background", stuff_names())],
)  # fmt: skip
def test_a_background_is_one_more_class_of_which_the_best_prompt_counts(background, name, prompts):
    model = tiny_model()
    result = model.segment(PHOTO, NAMES, background=background)
    assert result.classes == (*NAMES, name) and result.nothing == 5
    by_hand = model.segment(PHOTO, {**{one: one for one in NAMES}, name: prompts})
    assert by_hand.classes == result.classes and by_hand.nothing is None
    assert np.array_equal(by_hand.labels, result.labels) and np.array_equal(by_hand.scores, result.scores)
    assert len(stuff_names()) == 39 and "wall" in stuff_names() and "person" not in stuff_names()


def test_a_background_is_never_averaged():
    model = tiny_model(synonyms="average")
    vocabulary = model.encode(["cat | kitten", "dog"], background="wall | sky | ground")
    assert vocabulary.counts == (1, 1, 3) and vocabulary.background == 2 and len(vocabulary.embeddings) == 5
    cats = model.encode(["cat", "kitten"]).embeddings
    torch.testing.assert_close(vocabulary.embeddings[0], F.normalize(cats.mean(0), dim=0))
    torch.testing.assert_close(vocabulary.embeddings[2:], model.encode(["wall", "sky", "ground"]).embeddings)


@pytest.mark.parametrize("name", ["dog", " Dog", "DOG"])
def test_a_class_of_that_name_is_the_background(name):
    model = tiny_model(loss={"seg": "bce"})
    plain = model.segment(PHOTO, NAMES)
    limit = float(np.median(plain.scores))
    result = model.segment(PHOTO, NAMES, background=name, threshold=limit)
    assert result.classes == tuple(NAMES) and result.nothing == 1
    assert np.array_equal(result.labels, np.where(plain.scores < limit, 1, plain.labels))


def test_a_name_that_holds_a_comma_may_be_the_background():
    vocabulary = tiny_model().encode(["sofa, couch", "cat"], background="sofa, couch")
    assert vocabulary.background == 0 and vocabulary.names == ("sofa, couch", "cat")


@pytest.mark.parametrize("synonyms", ["best", "average"])
def test_a_prompt_of_a_class_stays_with_the_class(synonyms):
    vocabulary = tiny_model(synonyms=synonyms).encode(["sky", "cat"], background="wall | Sky | ground")
    assert vocabulary.counts == (1, 1, 2)


def test_backgrounds_and_thresholds_that_make_no_sense_are_refused():
    model = tiny_model()
    for threshold in (0, 1, -0.1, 1.5, float("nan"), 50):
        with pytest.raises(VocabularyError, match=f"threshold: {threshold} is not between 0 and 1"):
            model.segment(PHOTO, NAMES, threshold=threshold)
    with pytest.raises(VocabularyError, match="threshold: '0.5' is not between 0 and 1"):
        model.segment(PHOTO, NAMES, threshold="0.5")
    with pytest.raises(VocabularyError, match="background: got 0: give names, such as 'wall, sky', or a list"):
        model.segment(PHOTO, NAMES, background=0)
    with pytest.raises(VocabularyError, match="a class is called 'nothing'"):
        model.segment(PHOTO, ["cat", "nothing"], threshold=0.5)
    assert model.segment(PHOTO, ["cat", "nothing"], threshold=0.5, background="nothing").nothing == 1
    with pytest.raises(VocabularyError, match="a class is called 'background' already"):
        model.encode(["cat", "background"], background="wall | sky")
    for empty in ("", "  ", [], "|", [" "]):
        with pytest.raises((VocabularyError, DataError)):
            model.encode(NAMES, background=empty)
    with pytest.raises(VocabularyError, match="give the background to encode"):
        model.segment(PHOTO, model.encode(NAMES), background="other")


def test_a_vocabulary_keeps_its_background():
    model = tiny_model()
    vocabulary = model.encode(NAMES, background="other")
    assert label_names(vocabulary) == ((*NAMES, "other"), 5) == label_names(vocabulary, 0.5)
    assert model.encode(NAMES).background is None and label_names(model.encode(NAMES)) == (tuple(NAMES), None)
    assert model.segment(PHOTO, vocabulary).nothing == 5


def test_a_threshold_without_an_effect_is_told(monkeypatch, caplog):
    tiny_model().segment(PHOTO, NAMES, threshold=0.2)
    assert "threshold 0.2: has no effect: scores are shares among the 5 classes" in caplog.text
    caplog.clear()
    tiny_model().segment(PHOTO, NAMES, threshold=0.21)
    tiny_model(loss={"seg": "bce"}).segment(PHOTO, NAMES, threshold=0.1)
    assert "no effect" not in caplog.text


def test_where_a_result_comes_from(tmp_path):
    from PIL import Image

    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    model = tiny_model()
    assert model.segment(tmp_path / "a.png", NAMES).source == str(tmp_path / "a.png")
    assert model.segment(PHOTO, NAMES).source == ""
