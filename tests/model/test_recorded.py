"""The model, the losses and the text embeddings against numbers that the reference form gave once, in float64."""

import pytest
import recorded
import torch
from safetensors.torch import load_file

from fgaseg.config import LossConfig
from fgaseg.model import packed_maps
from fgaseg.model.head import Output
from fgaseg.training.losses import segmentation_losses


def recording(name):
    return load_file(recorded.FOLDER / f"{name}.safetensors")


def same(got, expected, name=""):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10, msg=lambda text: f"{name}: {text}")


def stages(name):
    """Every stage as the model runs it."""
    head, features, texts = recorded.head(name)
    leaf = texts.clone().requires_grad_()
    logits = head(features, leaf).logits
    (gradient,) = torch.autograd.grad((logits * recorded.draw("seed", *logits.shape)).sum(), leaf)
    with torch.no_grad():
        aligned, gcs = head.global_similarity(features.embedding, texts)
        maps, layer = head.class_maps(features.embedding, aligned, gcs), head.layers[0]
        whole = head.lcs(
            torch.nn.functional.normalize(features.embedding, dim=1), torch.nn.functional.normalize(aligned, dim=-1)
        )
        local = None if head.embed_local is None else head.embed_local(maps.lcs)
        x = head.fuse(head.embed_global(maps.gcs), local)
        guidance, offsets = head.guidance(features).layers[0], torch.tensor([0, len(x)])
        swin, pooling = layer.spatial(x, guidance), head.config.class_pooling_eval
        sums = layer.summarize(swin, guidance.kv, maps.text_guidance, offsets, pooling)
        sums = layer.classes.add_pads(sums, len(x))
        mixed = layer.across_classes(swin, maps.text_guidance, offsets, sums, pooling)
        align = head.t2p(features.embedding, aligned)
    return {"gcs": gcs[0], "lcs": whole[0], "embedded": x, "swin": swin, "mixed": mixed, "logits": logits.detach()[0],
            "align": align[0, :2], "gradient": gradient}  # fmt: skip


@pytest.mark.parametrize("name", recorded.HEADS)
def test_every_stage_of_the_head_gives_what_it_gave(name):
    expected, got = recording(f"head_{name}"), stages(name)
    assert expected.keys() == got.keys()
    for key in expected:
        same(got[key], expected[key], key)


@pytest.mark.parametrize("name", recorded.HEADS)
@pytest.mark.parametrize("pixels", [1, 70])
def test_maps_in_pieces_give_what_they_gave(name, pixels, monkeypatch):
    """One class map at a time and two, kept between the phases and made again."""
    head, features, texts = recorded.head(name)
    monkeypatch.setitem(packed_maps.PIXELS_PER_CHUNK, "cpu", pixels)
    expected = recording(f"head_{name}")["logits"]
    for budget in (None, 0):
        head.config = head.config.model_copy(update={"class_maps_budget": budget})
        with torch.no_grad():
            same(head(features, texts).logits[0], expected, f"budget {budget}")


@pytest.mark.parametrize("ignore", recorded.IGNORED)
@pytest.mark.parametrize("name", recorded.LOSSES)
def test_losses_are_what_they_were(name, ignore):
    """An ignored value that is one of the classes too counts for nothing."""
    logits, align, aux, labels = recorded.outputs()
    config, weights = LossConfig(**recorded.LOSSES[name]), torch.tensor(recorded.WEIGHTS)
    out = Output(logits, logits, None, align, aux[: config.aux_heads], None)
    labels = labels.where(labels != 255, ignore)
    got, expected = segmentation_losses(out, labels, config, ignore, class_weights=weights), recording("losses")
    assert got.keys() == {"loss", "seg", "align", "aux"}
    for key, value in got.items():
        assert value.item() == pytest.approx(expected[f"{name}.{ignore}.{key}"].item(), rel=1e-5), key


def test_text_embeddings_are_what_they_were():
    """First synonyms, underscores, hidden characters, the cut at the end of the context, the mean of two templates."""
    expected = recording("texts")
    for name, templates in (("one", recorded.TEMPLATES[:1]), ("two", recorded.TEMPLATES)):
        encoder = recorded.text_model(templates).text_encoder
        same(encoder.encode(list(recorded.TEXTS)).embeddings, expected[name], name)
    prompts = [recorded.TEMPLATES[0].format(word) for word in recorded.TEXTS.values()]
    assert torch.equal(encoder.encoder.tokenizer(prompts), expected["tokens"])
