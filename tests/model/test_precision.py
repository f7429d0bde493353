"""A model of bfloat16 or float16: what stays in float32, errors against plain PyTorch's, and the automatic choice."""

import copy
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import NAMES, pixels, tiny_model

import fgaseg
from fgaseg import environment
from fgaseg.inference import pseudo_masks, released_views
from fgaseg.model import precision_choice as precision
from fgaseg.model import reference, set_precision

HALVES = (torch.bfloat16, torch.float16)
COSINES = {"propagation": False, "lcs": False, "t2p": False}
PHOTO = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def dtypes(module):
    tensors = (*module.parameters(), *module.buffers())
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


@pytest.mark.parametrize("dtype", HALVES)
def test_what_makes_the_similarity_maps_keeps_its_weights(dtype):
    model, exact = tiny_model(), tiny_model()
    model.to(dtype)
    assert model.dtype == dtype and model.precision == str(dtype)[6:]
    kept = {id(p) for part in (model.head.p2t, model.head.lcs) for p in part.parameters()}
    assert all(p.dtype == (torch.float32 if id(p) in kept else dtype) for p in model.parameters())
    for name in ("p2t", "lcs"):
        kept, before = (dict(getattr(one.head, name).named_parameters()) for one in (model, exact))
        assert all(torch.equal(kept[key], before[key]) for key in before)
    assert dtypes(model.double()) == {torch.float64}
    assert dtypes(model.to(dtype).head.p2t) == {torch.float32}  # from float64
    assert dtypes(model.float()) == {torch.float32}


def converted_whole(model, dtype):
    """Every weight, with nothing kept in float32: what plain PyTorch makes of a model."""
    model = copy.deepcopy(model)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.to(dtype) if tensor.is_floating_point() else tensor.data
    return model


@torch.no_grad()
def stages(model, images, embeddings, run):
    features = model.image_encoder(images.to(model.dtype))
    texts = embeddings.to(torch.promote_types(model.dtype, torch.float32))
    aligned, gcs = model.head.global_similarity(features.embedding, texts)
    maps = model.head.class_maps(features.embedding, aligned, gcs)
    logits = run(model, images.to(model.dtype), texts)
    return {**features._asdict(), "V_emb": aligned, "S_g": gcs, "S_l": maps.lcs, "logits": logits}


def ours(model, images, texts):
    return model(images, fgaseg.Vocabulary(tuple(map(str, range(len(texts)))), texts)).logits


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("switches", [{}, {"preset": "released", "pad_classes": 32}], ids=["ce", "released"])
def test_errors_are_at_most_twice_those_of_plain_pytorch(switches, dtype):
    model = tiny_model(**switches)
    embeddings = model.encode(NAMES).embeddings
    images = pixels(2)
    exact = stages(copy.deepcopy(model).double(), images, embeddings, reference.forward)
    plain = stages(converted_whole(model, dtype), images, embeddings, reference.forward)
    got = stages(copy.deepcopy(model).to(dtype), images, embeddings, ours)
    for name, x in exact.items():
        errors = [(form[name].double() - x).pow(2).mean().sqrt() for form in (got, plain)]
        assert errors[0] <= 2 * errors[1], name
    for name in ("V_emb", "S_g", "S_l"):
        assert got[name].dtype == torch.float32 and not torch.equal(got[name], got[name].to(dtype).float()), name
    assert got["logits"].dtype in (dtype, torch.float32)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("switches", [
    {}, {"inference": "windows"}, {"resize": "scores"}, {"class_maps_budget": 0}, {"lcs": False}, {"p2t_layers": 0},
    COSINES, {"preset": "released", "fast": True, "top_k": 2, "loss": {"aux_heads": 1}},
])  # fmt: skip
def test_photos_are_labelled_as_in_float32(switches, dtype):
    model = tiny_model(**switches)
    expected = model.segment(PHOTO, NAMES, probabilities=True)
    result = model.to(dtype).segment(PHOTO, NAMES, probabilities=True)
    found, exact = np.stack([*result.probabilities]), np.stack([*expected.probabilities])
    assert np.abs(found - exact).max() < 0.1
    chosen = np.take_along_axis(exact, result.labels[None], axis=0)[0]
    assert (chosen > exact.max(0) - 0.05).all()  # labels differ only where two classes are nearly equal
    assert result.scores.dtype == found.dtype == np.float32
    masks = pseudo_masks(model, result.image, model.encode(NAMES))
    assert masks.gcs.dtype == np.float32 and np.isfinite(masks.gcs).all()


def test_windows_are_normalised_in_float32():
    model = tiny_model(inference="windows")
    photo = torch.from_numpy(PHOTO).permute(2, 0, 1).float()
    exact = released_views(model, photo)
    assert torch.equal(released_views(model.bfloat16(), photo), exact.bfloat16())


def test_forward_and_stream_take_pixels_of_float32():
    model = tiny_model().bfloat16()
    vocabulary, images = model.encode(NAMES), pixels(2)
    assert torch.equal(model(images, vocabulary).logits, model(images.bfloat16(), vocabulary).logits)
    ((_, logits),) = model.stream(images, vocabulary)
    assert logits.shape == (2, len(NAMES), 32, 32)


def test_a_vocabulary_follows_the_conversion_and_is_float32():
    model = tiny_model()
    before = model.encode(NAMES).embeddings
    after = model.bfloat16().encode(NAMES).embeddings
    assert after.dtype == torch.float32 and not torch.equal(after, before)
    torch.testing.assert_close(after, before, rtol=0, atol=0.05)
    torch.testing.assert_close(after.norm(dim=-1), torch.ones(len(NAMES)), rtol=0, atol=1e-6)


def test_a_saved_model_has_its_own_dtypes_and_is_loaded_in_float32(tmp_path):
    model = tiny_model().bfloat16()
    model.save_pretrained(tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert saved["head.text_guidance.weight"].dtype == torch.bfloat16
    assert saved["head.lcs.text.weight"].dtype == torch.float32
    loaded = fgaseg.load(tmp_path, device="cpu")
    assert dtypes(loaded) == {torch.float32}
    expected = model.segment(PHOTO, NAMES)
    assert (loaded.to(torch.bfloat16).segment(PHOTO, NAMES).labels == expected.labels).all()


def test_class_maps_of_half_the_size_fit_twice_as_many_into_the_budget():
    model = tiny_model(class_maps_budget=2.5)  # 3 · 64² · 32 · 2 maps: 3.1 MB in float32, 1.6 in bfloat16
    entered = []
    for form in (model, copy.deepcopy(model).bfloat16()):
        aligned, gcs = form.head.global_similarity(torch.randn(1, 32, 64, 64), torch.randn(3, 32))
        entered.append(form.head.class_maps(torch.randn(1, 32, 64, 64), aligned, gcs))
    with torch.no_grad():
        assert [model.head._over_budget(maps) for maps in entered] == [True, False]


@pytest.mark.parametrize(
    "seconds, chosen", [((2.0, 1.0), "bfloat16"), ((1.0, 1.0), "float32"), ((1.0, 2.0), "float32")]
)
def test_auto_takes_bfloat16_only_where_it_gains_and_says_so(monkeypatch, caplog, seconds, chosen):
    monkeypatch.setattr(precision, "_seconds", lambda model: seconds)
    model = tiny_model()
    with caplog.at_level(logging.INFO, "fgaseg"):
        set_precision(model, "auto")
    assert model.precision == chosen
    assert f"precision: {chosen}" in caplog.text and f"{seconds[0] / seconds[1]:.1f} times" in caplog.text


@pytest.mark.parametrize("native", [True, False])
def test_on_a_gpu_bfloat16_is_chosen_where_it_is_not_emulated(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    chosen, why = precision.choose_precision(SimpleNamespace(device=torch.device("cuda")))
    assert chosen == ("bfloat16" if native else "float32") and "some GPU" in why


@pytest.mark.parametrize("switches", [{}, COSINES, {"lcs": False}])
def test_auto_measures_the_model_and_leaves_it_as_it_is(switches):
    model = tiny_model(**switches)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seconds = precision._seconds(model)
    assert all(0 < value < 5 for value in seconds)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("lower", ["bfloat16", "float16"])
def test_a_precision_that_the_processor_lacks_is_said_to_be_slow(monkeypatch, caplog, lower):
    def told(found):
        monkeypatch.setattr(environment, "_capabilities", lambda: found)
        return precision.why_slow(lower, torch.device("cpu"))

    assert lower in told({"avx2": True}) and "no instructions" in told({"avx2": True})
    assert told({f"avx512_{'bf16' if lower == 'bfloat16' else 'fp16'}": True}) == ""
    assert told({}) == ""  # not known
    assert precision.why_slow("float32", torch.device("cpu")) == ""
    told({"avx2": True})
    set_precision(tiny_model(), lower)
    assert "no instructions" in caplog.text


@pytest.mark.parametrize("ratio, chosen", [(1.08, "float32"), (1.12, "bfloat16")])
def test_auto_changes_labels_only_for_a_gain_of_a_tenth(monkeypatch, ratio, chosen):
    monkeypatch.setattr(precision, "_seconds", lambda model: (ratio, 1.0))
    assert precision.choose_precision(SimpleNamespace(device=torch.device("cpu")))[0] == chosen


def test_the_shortest_of_three_rounds_counts_and_the_first_does_not(monkeypatch):
    clock, calls = [0.0], []
    seconds = {torch.float32: iter([1, 2, 1, 1, 3, 3]), torch.bfloat16: iter([0, 0, 2, 2, 1, 2])}  # two calls a round

    def work(model, dtype):
        def call():
            calls.append(dtype)
            clock[0] += next(seconds[dtype])

        return [call, call]

    monkeypatch.setattr(precision, "_work", work)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    assert precision._seconds(None) == (2, 3)
    single, half = [torch.float32] * 2, [torch.bfloat16] * 2
    assert calls == 3 * (single + half)  # they take turns


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t2p", [False, True])
def test_what_is_measured_is_a_share_of_an_image(dtype, t2p, monkeypatch):
    model, seen = tiny_model(t2p=t2p), {}
    blocks = model.encoder.towers()[0]
    for name, module in {"head": model.head, "mlp": blocks[0].mlp, "other": blocks[1].mlp}.items():
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.setdefault(name, (module, inputs)))
    for call in precision._work(model, dtype):
        call()
    (head, (features, texts)), (mlp, (tokens,)) = seen["head"], seen["mlp"]
    assert "other" not in seen and texts.shape == (1, 32)
    assert [tuple(x.shape) for x in features] == [(1, 32, 12, 12)] * 3 and tokens.shape == (1, 12 * 12, 32)
    assert {x.dtype for x in (*features, tokens)} == dtypes(mlp) == {dtype}
    assert (head is model.head) == (mlp is blocks[0].mlp) == (dtype == torch.float32)  # else copies
    assert (getattr(head, "t2p", None) is not None) == (t2p and dtype == torch.float32)  # which training alone needs


@pytest.mark.parametrize("multiplies", [True, False])
def test_eight_bits_are_for_a_cpu_and_the_rest_is_bfloat16_where_it_is_multiplied(multiplies, monkeypatch, caplog):
    monkeypatch.setattr(precision, "arithmetic", lambda name: multiplies)
    model = tiny_model()
    set_precision(model, "int8")
    assert model.precision == ("int8, else bfloat16" if multiplies else "int8, else float32")
    assert ("has no form in 8 bits is computed in bfloat16" in caplog.text) == multiplies
    with pytest.raises(fgaseg.UsageError, match="precision int8: is for a CPU, and the model is on meta"):
        set_precision(tiny_model(propagation=False, lcs=False, t2p=False).to("meta"), "int8")


def test_float32_stays_as_it_is_without_a_word(monkeypatch, caplog):
    monkeypatch.setattr(environment, "_capabilities", lambda: {"avx2": True})
    model = SimpleNamespace(device=torch.device("cpu"))  # there is nothing that could be called
    set_precision(model, "float32")
    assert precision.why_slow("bfloat16", torch.device("cuda")) == "" and not caplog.records
