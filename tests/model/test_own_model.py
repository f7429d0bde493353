"""What a model does besides computing: settings, groups of parameters, threads, compiled parts; on a tiny encoder."""

import numpy as np
import pytest
import torch
from own_encoder import Words
from small_encoders import SIZES
from tiny import NAMES, pixels

import fgaseg.model.fgaseg as module
from fgaseg import FGASeg, ModelConfig, Vocabulary
from fgaseg.errors import EncoderError, ImageError, VocabularyError


def model(**switches):
    torch.manual_seed(0)
    return FGASeg(ModelConfig(encoder={}, **{**SIZES, **switches}), Words()).eval()


def test_heads_of_the_p2tformer_divide_the_channels():
    with pytest.raises(EncoderError, match="p2t_heads: 3 does not divide the encoder's 32 channels"):
        model(p2t_heads=3)
    assert model(p2t_heads=4).head.p2t.layers and not model(p2t_heads=3, p2t_layers=0).head.p2t.layers


def test_what_comes_from_the_configuration_is_not_saved():
    made = model()
    assert not {"mean", "std"} & made.state_dict().keys()
    assert made.training is False and made.train() is made and made.training and made.train(False).training is False
    assert made.quick_gelu is False and made.precision == "float32" and made.double().precision == "float64"


def test_groups_of_parameters_come_in_one_order():
    """The state of an optimizer is read by it: the head, then the encoder; without decay first."""
    groups = model().parameter_groups(1.0, 0.5, 0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1.0, 0.0),
        (1.0, 0.1),
        (0.5, 0.0),
        (0.5, 0.1),
    ]


def test_every_call_begins_with_the_threads_that_there_are(monkeypatch):
    made, calls = model(), []
    vocabulary = made.encode(NAMES)
    monkeypatch.setattr(module, "adjust_threads", lambda: calls.append(1))
    with torch.no_grad():
        made(pixels(), vocabulary)
        assert len(calls) == 1
        list(made.stream(pixels(), vocabulary))
        assert len(calls) == 2


@torch.no_grad()
def test_on_a_cpu_the_images_of_a_batch_are_encoded_one_by_one(monkeypatch):
    made, seen = model(), []
    vocabulary, encode = made.encode(NAMES), made.image_encoder
    monkeypatch.setattr(made, "image_encoder", lambda x: seen.append(len(x)) or encode(x))
    ((_, logits),) = made.stream(pixels(3), vocabulary)
    assert seen == [1, 1, 1]
    torch.testing.assert_close(logits, made(pixels(3), vocabulary).logits)
    assert seen == [1, 1, 1, 3]


@torch.no_grad()
def test_everything_that_takes_time_is_compiled_with_the_arguments_given(monkeypatch):
    made, compiled = model(), []
    expected = made(pixels(), vocabulary := made.encode(NAMES)).logits

    def compile_(function, *args, **kwargs):
        compiled.append((getattr(function, "__name__", ""), getattr(function, "__self__", None), args, kwargs))
        return lambda *a, **k: calls.append(function) or function(*a, **k)

    calls = []
    monkeypatch.setattr(torch, "compile", compile_)
    made.compile("model", backend="mine")
    assert all(one[2:] == (("model",), {"backend": "mine"}) for one in compiled)
    layers, decoder = list(made.head.layers), made.head.decoder
    names = [(name, owner) for name, owner, *_ in compiled if name != "_call_impl"]
    assert [name for name, _ in names] == ["image", *["spatial", "summarize", "across_classes"] * len(layers),
                                           "fuse_stage1", "fuse_stage2"]  # fmt: skip
    assert [owner for _, owner in names][1:] == [layer for layer in layers for _ in range(3)] + [decoder] * 2
    whole = [owner for name, owner, *_ in compiled if name == "_call_impl"]
    assert whole == [decoder.stage1, decoder.stage2, decoder.head]
    assert torch.equal(made(pixels(), vocabulary).logits, expected) and len({*calls}) == len(compiled)


def test_the_first_of_equal_classes_is_computed_where_a_vocabulary_does_not_say():
    made = model()
    assert made.first_of_equals(Vocabulary(("cat", "sky", "cat"), torch.ones(3, 32))) == [0, 1, 0]
    assert made.first_of_equals(Vocabulary(("cat", "cat"), torch.ones(2, 32), first=(0, 1))) == [0, 1]


def test_a_list_of_photos_gives_a_list_and_a_vocabulary_has_its_background():
    made, photo = model(), np.zeros((16, 24, 3), np.uint8)
    vocabulary = made.encode(NAMES, background="wall")
    one = made.segment(photo, vocabulary)
    (again,) = made.segment((photo,), vocabulary)
    assert (one.labels == again.labels).all() and one.labels.shape == (16, 24) and made.segment([], NAMES) == []
    assert one.classes == again.classes == (*NAMES, "wall")
    with pytest.raises(VocabularyError, match="the vocabulary is made already: give the background to encode"):
        made.segment(photo, vocabulary, background="wall")
    labels = made.predict_labels(photo, vocabulary)
    assert labels.dtype == torch.int64 and (labels.numpy() == one.labels).all()


def test_what_a_photo_is_called_and_how_it_is_read_reach_prediction(tmp_path, monkeypatch):
    from PIL import Image

    made, seen, doubts = model(), [], []
    Image.new("RGB", (24, 16)).save(tmp_path / "x.png")
    predict = module.predict
    monkeypatch.setattr(module, "predict", lambda *a, **k: seen.append(k) or predict(*a, **k))
    monkeypatch.setattr(module, "note_doubts", lambda *args: doubts.append(args[1:]))
    made.segment(tmp_path / "x.png", NAMES, threshold=0.25, probabilities=True)
    made.segment(Image.new("RGB", (24, 16)), NAMES)
    assert seen == [
        {"threshold": 0.25, "probabilities": True, "source": str(tmp_path / "x.png")},
        {"threshold": None, "probabilities": False, "source": ""},
    ]
    assert doubts == [(True, 0.25, 5), (True, None, 5)]
    with pytest.raises(ImageError, match="bands"):
        made.segment(tmp_path / "x.png", NAMES, bands=[1, 2, 9])


def test_embeddings_of_prompts_have_a_gradient_in_training_alone():
    made = model()
    assert not made.embed_prompts(["a cat"]).requires_grad and not made.encode(["cat"]).embeddings.requires_grad
    made.train()
    assert made.embed_prompts(["a cat"]).requires_grad and made.encode(["cat"]).embeddings.requires_grad
