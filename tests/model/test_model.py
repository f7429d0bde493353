"""The model as a whole: shapes, batches, vocabularies, switches, compilation, and what users may do wrong."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import NAMES, pixels, tiny_model
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import fgaseg.model.head
from fgaseg import FGASeg
from fgaseg.errors import CheckpointError, ConfigError, VocabularyError
from fgaseg.model import text_encoder
from fgaseg.model.class_selection import ClassSelector
from fgaseg.model.encoders import ImageFeatures
from fgaseg.training.losses import segmentation_losses

SWITCHES = {
    "paper": {},
    "released": {"preset": "released"},
    "fast cat": {"fast": True, "top_k": 1},
    "fast add, three heads": {"fast": True, "fusion": "add", "top_k": 2, "loss": {"aux_heads": 3}},
    "released fast": {"preset": "released", "fast": True, "top_k": 1},
    "no P2Tformer": {"p2t_layers": 0},
    "deep P2Tformer, fixed gamma": {"p2t_layers": 3, "gamma": 0.5, "gamma_trainable": False},
    "no T2Ploss": {"t2p": False},
    "T2Ploss on V_T": {"t2p_text": "text", "t2p_kernel_size": 1},
    "no LCS": {"lcs": False},
    "K 5, channels": {"kernel_size": 5, "kernel_norm": "channels"},
    "K 1, none": {"kernel_size": 1, "kernel_norm": "none"},
    "K 5, cosine, replicate": {"kernel_size": 5, "kernel_norm": "cosine", "lcs_padding": "replicate"},
    "add": {"fusion": "add"},
    "cap": {"class_cap": 3},
    "cosine maps alone": {"propagation": False, "t2p": False, "lcs": False},
    "bare": {"p2t_layers": 0, "t2p": False, "lcs": False},
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_trains_and_gives_the_same_for_one_image_and_three(switches):
    model = tiny_model(**switches).train()
    photos = pixels(3, 64, 72)
    labels = torch.randint(0, 5, (3, 64, 72), generator=torch.Generator().manual_seed(0))
    losses = segmentation_losses(model(photos, model.encode(NAMES)), labels, model.config.loss)
    losses["loss"].backward()
    unused = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    # the last visual block runs without attention: its queries and keys are never read
    assert unused == {f"clip.visual.transformer.resblocks.2.attn.{p}_proj_weight" for p in "qk"}

    model.eval()
    with torch.no_grad():
        vocabulary = model.encode(NAMES)
        together = model(photos, vocabulary)
        if model.config.topk_union == "batch":
            return  # there an image's result depends on its batch by definition
        for i in range(3):
            alone = model(photos[i : i + 1], vocabulary)
            torch.testing.assert_close(alone.logits[0], together.logits[i], atol=2e-5, rtol=1e-4)
    assert together.logits.shape == (3, 5, 32, 36) and together.align is None and together.aux == []


@pytest.mark.parametrize("size", [(192, 192), (136, 248), (8, 8), (61, 30)], ids=str)
def test_any_grid(size):
    model = tiny_model()
    with torch.no_grad():
        out = model(pixels(1, *size), model.encode(NAMES[:1]))
    grid = [-(-n // 8) for n in size]
    assert out.logits.shape == (1, 1, 4 * grid[0], 4 * grid[1]) and out.gcs.shape == (1, 1, *grid)
    assert out.logits.isfinite().all() and out.gcs.abs().max() <= 1 + 1e-6


def test_two_thousand_classes_in_pieces_equal_one_piece(monkeypatch):
    model = tiny_model()
    names = [f"thing number {i}" for i in range(2000)]
    with torch.no_grad():
        vocabulary = model.encode(names)
        in_pieces = model(pixels(), vocabulary).logits
        monkeypatch.setitem(fgaseg.model.packed_maps.PIXELS_PER_CHUNK, "cpu", 10**9)
        whole = model(pixels(), vocabulary).logits
    assert in_pieces.shape[1] == 2000
    torch.testing.assert_close(in_pieces, whole, atol=1e-4, rtol=1e-4)


def plain_photos(batch: int) -> torch.Tensor:
    """One colour each, so that a pixel's best class is much the same everywhere."""
    return pixels(batch, 1, 1).expand(-1, -1, 64, 64) * torch.tensor([0.1, 1.0, 4.0])[:batch, None, None, None]


THINGS = [f"thing {i}" for i in range(12)]


def test_pieces_do_not_leak_between_images(monkeypatch):
    model = tiny_model(fast=True, top_k=2)
    with torch.no_grad():
        vocabulary = model.encode(THINGS)
        whole = model(plain_photos(3), vocabulary)
        monkeypatch.setitem(fgaseg.model.packed_maps.PIXELS_PER_CHUNK, "cpu", 64)
        pieces = model(plain_photos(3), vocabulary)
    assert len(set(whole.kept.sum(1).tolist())) > 1  # else this tests nothing
    assert torch.equal(whole.kept, pieces.kept)
    torch.testing.assert_close(whole.logits, pieces.logits, atol=1e-4, rtol=1e-4)


def test_pruning_computes_survivors_as_if_they_had_been_asked_for_alone():
    model = tiny_model(fast=True, top_k=1)
    with torch.no_grad():
        out = model(plain_photos(1), model.encode(THINGS))
        kept = out.kept[0].nonzero()[:, 0].tolist()
        assert 0 < len(kept) < len(THINGS)
        alone = model(plain_photos(1), model.encode([THINGS[i] for i in kept]))
    torch.testing.assert_close(out.logits[0, kept], alone.logits[0], atol=2e-5, rtol=1e-4)
    dropped = [i for i in range(len(THINGS)) if i not in kept]
    assert (out.logits[0, dropped] == -100).all()


@torch.no_grad()
@pytest.mark.parametrize("text", ["aligned", "text"])
def test_the_maps_of_t2ploss_are_made_in_training_alone_from_the_texts_that_were_chosen(text):
    model = tiny_model(t2p_text=text)
    features, texts = model.image_encoder(pixels(2)), model.encode(NAMES).embeddings
    assert model.head(features, texts).align is None
    model.train()
    aligned = model.head.p2t(features.embedding, texts)
    expected = model.head.t2p(features.embedding, aligned if text == "aligned" else texts.expand_as(aligned))
    assert torch.equal(model.head(features, texts).align, expected)


@pytest.mark.parametrize("pixels_at_once", [64, 10**9])
def test_pad_tokens_are_as_many_as_each_image_lacks(pixels_at_once, monkeypatch):
    monkeypatch.setitem(fgaseg.model.packed_maps.PIXELS_PER_CHUNK, "cpu", pixels_at_once)
    model = tiny_model(fast=True, top_k=2, pad_classes=14)
    with torch.no_grad():
        vocabulary = model.encode(THINGS)
        together = model(plain_photos(3), vocabulary)
        assert len(set(together.kept.sum(1).tolist())) > 1  # else this tests nothing
        for i in range(3):
            alone = model(plain_photos(3)[i : i + 1], vocabulary)
            torch.testing.assert_close(together.logits[i], alone.logits[0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_photos_are_padded_with_zeros_below_and_on_the_right():
    model, photo, whole = tiny_model(), pixels(1, 61, 30), torch.zeros(1, 3, 64, 32)
    whole[:, :, :61, :30] = photo
    for got, expected in zip(model.image_encoder(photo), model.image_encoder(whole), strict=True):
        assert torch.equal(got, expected)


class OrderOfEquals(TorchFunctionMode):
    """Sorts as a GPU may where no stable order is asked for: of equal values the last comes first."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is not torch.Tensor.sort or kwargs.get("stable"):
            return function(*args, **kwargs)
        result = function(args[0].flip(-1), **kwargs, stable=True)
        return SimpleNamespace(values=result.values, indices=args[0].shape[-1] - 1 - result.indices)


def test_ties_under_the_class_cap_go_to_the_lowest_index_on_any_device():
    scores = torch.zeros(2, 300, 2, 2)
    scores[0, 250] = scores[1, 7, 1, 1] = 1.0
    with OrderOfEquals():
        rows = ClassSelector().cap(scores, 4).rows.tolist()
    assert rows == [0, 1, 2, 250, 300, 301, 302, 307]


def test_class_cap_keeps_the_strongest_and_breaks_ties_by_index():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]])[..., None, None].expand(1, 5, 2, 2)
    assert ClassSelector().cap(scores, 2).rows.tolist() == [1, 2]
    model = tiny_model(class_cap=3)
    with torch.no_grad():
        out = model(pixels(), model.encode(NAMES))
    best = out.gcs[0].flatten(1).amax(1).topk(3).indices
    assert set(out.kept[0].nonzero()[:, 0].tolist()) == set(best.tolist())
    assert (out.logits[0][~out.kept[0]] == -100).all() and (out.lcs[0][~out.kept[0]] == 0).all()


def test_batch_union_never_brings_back_what_the_cap_dropped():
    model = tiny_model(fast=True, top_k=1, topk_union="batch", class_cap=3, p2t_layers=0, loss={"aux_heads": 3})
    with torch.no_grad():
        vocabulary = model.encode(THINGS)
        out = model(plain_photos(3)[1:], vocabulary)
        capped = [ClassSelector().cap(maps[None], 3).rows.tolist() for maps in out.gcs]
        assert capped[0] != capped[1]  # else the union brings nothing to bring back
        free = tiny_model(fast=True, top_k=12, p2t_layers=0, loss={"aux_heads": 3})
        for i in range(2):
            kept = out.kept[i].nonzero()[:, 0].tolist()
            assert kept and set(kept) <= set(capped[i])
            alone = free(plain_photos(3)[1 + i : 2 + i], model.encode([THINGS[k] for k in kept]))
            torch.testing.assert_close(out.logits[i, kept], alone.logits[0], atol=2e-5, rtol=1e-4)


def test_nan_in_fast_mode_is_an_error_and_not_an_empty_picture():
    model = tiny_model(fast=True)
    with torch.no_grad(), pytest.raises(FloatingPointError, match="hold NaN"):
        model(pixels() * float("nan"), model.encode(NAMES))


@pytest.mark.parametrize("switches", [{}, {"preset": "released"}, {"fusion": "add", "lcs": False}], ids=str)
def test_head_compiles_into_one_graph(switches):
    model = tiny_model(**switches)
    with torch.no_grad():
        features, texts = model.image_encoder(pixels(2)), model.encode(NAMES).embeddings
        compiled = torch.compile(model.head, fullgraph=True, backend="aot_eager")
        got, expected = compiled(features, texts), model.head(features, texts)
    torch.testing.assert_close(got.logits, expected.logits)


@pytest.mark.parametrize("switches", [{}, {"fusion": "add", "pad_classes": 30}, {"lcs": False}], ids=str)
def test_head_exports_with_any_number_of_classes(switches):
    model = tiny_model(**switches)
    with torch.no_grad():
        features = model.image_encoder(pixels(2))
        few, many = (model.encode([f"thing {i}" for i in range(n)]).embeddings for n in (5, 40))
        classes = {0: torch.export.Dim("classes", min=2)}
        sizes = (ImageFeatures(None, None, None), classes)
        exported = torch.export.export(model.head, (features, few), dynamic_shapes=sizes, strict=False)
        for texts in (few, many):
            got, expected = exported.module()(features, texts), model.head(features, texts)
            torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("switches", [{}, {"preset": "released"}, {"preset": "released", "class_cap": 3}], ids=str)
def test_without_pruning_the_host_never_waits_for_the_device(switches):
    """Fake tensors have no values: whatever asks for one raises."""
    model = tiny_model(**switches)
    texts = model.encode(NAMES).embeddings
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = model.head(model.image_encoder(mode.from_tensor(pixels(2))), mode.from_tensor(texts))
    assert out.logits.shape == (2, 5, 32, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_forward_pass_is_captured_in_a_cuda_graph():
    model = tiny_model().cuda()
    with torch.no_grad():
        vocabulary, images = model.encode(NAMES), pixels(2).cuda()
        expected = model(images, vocabulary).logits
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(images, vocabulary).logits
        graph.replay()
    torch.testing.assert_close(captured, expected)


def test_head_compiles_for_training():
    model = tiny_model().train()
    compiled = torch.compile(model.head, fullgraph=True, backend="aot_eager")
    out = compiled(model.image_encoder(pixels(2)), model.encode(NAMES).embeddings)
    (out.logits.sum() + out.align.sum()).backward()
    assert model.head.p2t.gamma.grad is not None


def test_vocabulary_cache_follows_names_template_and_weights():
    model = tiny_model()
    with torch.no_grad():
        first = model.encode(NAMES)
        assert model.encode(tuple(NAMES)) is first
        assert model.encode(NAMES[::-1]) is not first
        weight = model.clip.transformer.resblocks[0].mlp.c_fc.weight
        weight.data.neg_()  # leaves version counter, norm and pointer alone
        changed = model.encode(NAMES)
        assert not torch.equal(changed.embeddings, first.embeddings)
        weight.data.neg_()
        torch.testing.assert_close(model.encode(NAMES).embeddings, first.embeddings, atol=0, rtol=0)
        model.text_encoder.templates = ("the {}",)
        assert not torch.equal(model.encode(NAMES).embeddings, first.embeddings)


def test_a_cached_vocabulary_is_of_the_settings_that_it_is_asked_for_with():
    names, model = ["sofa, couch", "sofa", "car"], tiny_model()
    text, plain, alone = model.text_encoder, model.encode(names), model.encode(names[:1])
    text.first_synonym = True
    assert not torch.equal(text.encode(names[:1]).embeddings, alone.embeddings)
    first, expected = text.encode(names), tiny_model(first_synonym=True).encode(names)
    assert torch.equal(first.embeddings, expected.embeddings) and first.first == expected.first == (0, 0, 2)
    text.first_synonym = False
    assert torch.equal(text.encode(names).embeddings, plain.embeddings) and plain.first == (0, 1, 2)
    assert text.encode(names, background="car").background == 2 and text.encode(names).background is None
    text.templates = (*text.templates, "{}")
    both = tiny_model(template=text.templates).encode(names)
    assert torch.equal(text.encode(names).embeddings, both.embeddings)
    text.templates = ("a photo of what everyone who sees it would call by the name of a {}",)  # cut before its end
    assert text.encode(names).first == (0, 0, 0)
    assert torch.allclose(both.embeddings.norm(dim=-1), torch.ones(3))  # a mean of two is shorter


def optimizer_step(model):
    model.clip.text_projection.grad = torch.ones_like(model.clip.text_projection)
    torch.optim.SGD([model.clip.text_projection], lr=1e-3).step()


def load_other_weights(model):
    model.load_state_dict(tiny_model(seed=5).state_dict())


def new_data(model):
    weight = model.clip.transformer.resblocks[0].mlp.c_fc.weight
    weight.data = weight.data + 1e-3


def data_in_place(model):
    model.clip.token_embedding.weight.data.mul_(1.001)


def one_value_in_place(model):
    """Another than those that are compared, every fourth."""
    with torch.no_grad():
        model.clip.text_projection.view(-1)[1] += 1


def one_value_of_new_data(model):
    data = model.clip.text_projection.data.clone()
    data.view(-1)[1] += 1
    model.clip.text_projection.data = data


WRITES = [optimizer_step, load_other_weights, new_data, data_in_place, one_value_in_place, one_value_of_new_data]


@pytest.mark.parametrize("write", WRITES)
def test_vocabulary_cache_follows_every_way_to_write_weights(write):
    model = tiny_model()
    before = model.encode(NAMES)
    write(model)
    after = model.encode(NAMES)
    assert after is not before
    model.text_encoder.clear_cache()
    assert torch.equal(after.embeddings, model.encode(NAMES).embeddings)
    assert not torch.equal(after.embeddings, before.embeddings)


def test_training_never_reads_a_cached_vocabulary():
    model = tiny_model()
    cached = model.encode(NAMES)
    assert not cached.embeddings.requires_grad and model.encode(NAMES) is cached
    assert model.train().encode(NAMES).embeddings.requires_grad


def test_the_vocabularies_that_were_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(text_encoder, "CACHED_VOCABULARIES", 2)
    model = tiny_model()
    first, second = model.encode(["sky"]), model.encode(["sea"])
    assert model.encode(["sky"]) is first  # so that the sea is the oldest
    model.encode(["sand"])
    assert model.encode(["sky"]) is first and model.encode(["sea"]) is not second


def test_a_cached_vocabulary_does_not_depend_on_autocast():
    model = tiny_model(encoder={"finetune": "none"})
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.encode(NAMES)
    assert inside.embeddings.dtype == torch.float32
    assert torch.equal(inside.embeddings, tiny_model(encoder={"finetune": "none"}).encode(NAMES).embeddings)


def test_a_vocabulary_cached_by_segment_serves_training_of_a_frozen_encoder():
    model = tiny_model(encoder={"finetune": "none"})
    model.segment(np.zeros((9, 9), np.uint8), NAMES)
    out = model(pixels(), model.encode(NAMES))
    out.logits.sum().backward()
    assert model.head.lcs.text.weight.grad is not None


VOCABULARIES = {
    "empty list": ([], "empty"),
    "empty name": (["cat", " "], "entry 1 is empty"),
    "string": ("cat", "give a list"),
    "number": (["cat", 3], "not a string"),
}


@pytest.mark.parametrize("names, message", VOCABULARIES.values(), ids=VOCABULARIES)
def test_bad_vocabularies(names, message):
    with pytest.raises(VocabularyError, match=message):
        tiny_model().encode(names)


def test_ten_thousand_names():
    embeddings = tiny_model().encode([f"name {i}" for i in range(10_000)]).embeddings
    assert embeddings.shape == (10_000, 32)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(10_000))


def test_device_and_dtype_follow_the_model():
    model = tiny_model()
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert model.to(torch.float64).dtype == torch.float64 and model.to("meta").device.type == "meta"


BAD_PIXELS = [
    torch.zeros(3, 8, 8),
    torch.zeros(1, 4, 8, 8),
    torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    torch.zeros(0, 3, 8, 8),
]


@pytest.mark.parametrize("bad", BAD_PIXELS, ids=lambda x: f"{x.dtype}{list(x.shape)}")
def test_bad_pixels(bad):
    model = tiny_model()
    with pytest.raises(ValueError, match="expected a floating"):
        model(bad, model.encode(NAMES))


def test_vocabulary_of_another_model():
    other = fgaseg.Vocabulary(("cat",), torch.ones(1, 48))
    with pytest.raises(VocabularyError, match="encode the names with this model"):
        tiny_model()(pixels(), other)


def test_save_and_load_give_the_same_logits(tmp_path):
    model = tiny_model(fast=True, fusion="add", encoder={"finetune": "prompt", "prompt_tokens": 2})
    model.save_pretrained(tmp_path / "m")
    again = FGASeg.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        expected, got = (m(pixels(), m.encode(NAMES)).logits for m in (model, again))
    assert torch.equal(expected, got) and not again.training
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_broken_saved_models(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        FGASeg.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "kernel_sise": 3}))
    with pytest.raises(ConfigError, match="kernel_size"):
        FGASeg.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="not an fgaseg model"):
        FGASeg.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        FGASeg.from_pretrained(tmp_path / "nowhere")


def test_weights_of_another_configuration(tmp_path):
    tiny_model(kernel_size=5).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"head\.lcs\.text"):
        tiny_model().load_weights(tmp_path / "model.safetensors")


def test_a_compiled_model_gives_the_same():
    model, compiled = tiny_model(), tiny_model()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled.compile(backend=counter, dynamic=True, fullgraph=True)
    with torch.no_grad():
        compiled.image_encoder(pixels(1))
        assert counter.frame_count > 0
        for classes in (5, 200):  # the second comes in pieces, the last of them shorter
            vocabulary = model.encode([f"thing {i}" for i in range(classes)])
            got, expected = (m(pixels(1), vocabulary).logits for m in (compiled, model))
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert 0 < counter.frame_count <= 22
