"""Every stage against its plainest form, in float64: concatenation where it shares, loops where it batches."""

import itertools
import math

import open_clip
import pytest
import torch
import torch.nn.functional as F
from accuracy import check_error
from tiny import ARCHITECTURE, NAMES, Largest, pixels, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

import fgaseg.training.losses
from fgaseg.config import LossConfig
from fgaseg.model import reference as plain
from fgaseg.model.aggregation import ClassAttention, ClassSums, SharedGuidanceLinear, SwinBlock, _pooled
from fgaseg.model.alignment import P2Tformer, T2PProjector, positions_of, sine_positions
from fgaseg.model.decoder import LocalUp, UpStage
from fgaseg.model.encoders.image_tower import cubic_weights, resized_positions
from fgaseg.model.encoders.loading import split_projections
from fgaseg.model.head import Output, cosine_logits
from fgaseg.model.supplement import LocalSupplement
from fgaseg.training.losses import segmentation_losses


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(got, expected):
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)


def test_guided_linear_is_a_linear_layer_on_both():
    layer = SharedGuidanceLinear(4, 3, 5).double()
    x, guidance = rand(2, 7, 4), rand(2, 7, 3, seed=1)
    same(layer(x) + layer.project(guidance), layer.linear(torch.cat([x, guidance], -1)))


def test_shared_convolution_is_a_convolution_of_both():
    """In a decoder stage, for the three classes of each of two images."""
    stage = UpStage(20, 3, 16).double()
    x, guidance = rand(6, 4, 5, 20), rand(2, 3, 8, 10, seed=1)
    by_image = [plain.up_stage(stage, rows, g[None]) for rows, g in zip(x.split(3), guidance, strict=True)]
    same(stage(x, stage.conv1.project(guidance)), torch.cat(by_image))


@torch.no_grad()
def test_decoder_stages_in_single_precision():
    """Without gradients they run in the op up_stage, with Winograd's convolutions."""
    stage, local = UpStage(40, 8, 32), LocalUp(40, 32)
    x, guidance = rand(6, 5, 7, 40), rand(2, 8, 10, 14, seed=1)

    def results(dtype: torch.dtype, own: bool) -> list[torch.Tensor]:
        up, low, rows, guides = stage.to(dtype), local.to(dtype), x.to(dtype), guidance.to(dtype)
        if own:
            return [up(rows, up.conv1.project(guides)), low(rows)]
        by_image = [plain.up_stage(up, r, g[None]) for r, g in zip(rows.split(3), guides, strict=True)]
        return [torch.cat(by_image), plain.local_up(low, rows)]

    exact, torchs, got = results(torch.float64, False), results(torch.float32, False), results(torch.float32, True)
    for mine, theirs, right in zip(got, torchs, exact, strict=True):
        check_error(mine, theirs, right, torch.float32)


def by_images(layer, x, guidance):
    """layer on rows [B, T, ...] packed, the classes of every image in two pieces whose sums are added."""
    batch, classes = x.shape[:2]
    offsets = torch.arange(batch + 1) * classes
    kv, rows = layer.packed_kv(), (x.flatten(0, 1), guidance.flatten(0, 1))
    whole = layer.attend(*rows, offsets, layer.add_pads(layer.summarize(rows[0], kv, rows[1], offsets), classes))
    parts = [(p.flatten(0, 1), g.flatten(0, 1), torch.arange(batch + 1) * p.shape[1])
             for p, g in zip(x.split(2, 1), guidance.split(2, 1), strict=True)]  # fmt: skip
    sums = ClassSums(*(sum(s) for s in zip(*(layer.summarize(p, kv, g, o) for p, g, o in parts), strict=True)))
    sums = layer.add_pads(sums, classes)
    pieces = torch.cat([layer.attend(*part, sums).unflatten(0, (batch, -1)) for part in parts], 1)
    same(pieces.flatten(0, 1), whole)
    return whole.unflatten(0, (batch, classes))


def test_pad_tokens_in_closed_form_equal_pad_tokens_in_the_sequence():
    padded, literal = ClassAttention(8, 6, 2, 9).double(), ClassAttention(8, 6, 2, 0).double()
    literal.load_state_dict({k: v for k, v in padded.state_dict().items() if not k.startswith("pad")})
    with torch.no_grad():
        padded.pad_token.normal_()
        padded.pad_guidance.normal_()
    x, guidance = rand(2, 5, 3, 8), rand(2, 5, 6, seed=1)
    tokens = torch.cat([x, padded.pad_token.expand(2, 4, 3, 8)], 1)
    texts = torch.cat([guidance, padded.pad_guidance.expand(2, 4, 6)], 1)
    same(by_images(padded, x, guidance), by_images(literal, tokens, texts)[:, :5])
    assert not torch.allclose(by_images(padded, x, guidance), by_images(literal, x, guidance))  # it changes the numbers
    same(
        by_images(padded, tokens, texts), by_images(literal, tokens, texts)
    )  # as many classes as places: nothing is padded


def test_each_image_lacks_its_own_number_of_pad_tokens():
    layer = ClassAttention(8, 6, 2, 9).double()
    torch.nn.init.normal_(layer.pad_token), torch.nn.init.normal_(layer.pad_guidance)
    sums = ClassSums(rand(3, 5, 2, 4, 4), rand(3, 5, 2, 4, seed=1))
    together = layer.add_pads(sums, torch.tensor([4, 9, 12]))
    for image, classes in enumerate((4, 9, 12)):
        alone = layer.add_pads(ClassSums(*(x[image : image + 1] for x in sums)), classes)
        for got, expected, before in zip(together, alone, sums, strict=True):
            same(got[image : image + 1], expected)
            assert torch.equal(got[image], before[image]) == (classes >= 9)
    assert ClassAttention(8, 6, 2, 0).add_pads(sums, 4) is sums


def test_class_attention_is_linear_attention_over_the_classes_of_a_pixel():
    layer = ClassAttention(8, 6, 2, 0).double()
    x, guidance = rand(1, 5, 3, 8), rand(1, 5, 6, seed=1)
    expected = torch.empty_like(x)
    for p in range(3):
        normed = layer.norm1(x[0, :, p])
        both = torch.cat([normed, guidance[0]], -1)
        q, k, v = layer.q.linear(both), layer.k.linear(both), layer.v(normed)
        out = []
        for h in (slice(0, 4), slice(4, 8)):
            weights = (F.elu(q[:, h]) + 1) @ (F.elu(k[:, h]) + 1).T
            out.append(weights / (weights.sum(1, keepdim=True) + 1e-6) @ v[:, h])
        y = x[0, :, p] + torch.cat(out, -1)
        expected[0, :, p] = y + layer.mlp(layer.norm2(y))
    same(by_images(layer, x, guidance), expected)


@pytest.mark.parametrize("grid", [(5, 7), (4, 6), (1, 1)], ids=str)
@pytest.mark.parametrize("pooling", [2, 3])
def test_pools_at_the_border_are_means_of_what_is_inside(grid, pooling, monkeypatch):
    x = rand(3, *grid, 4)
    starts = itertools.product(*(range(0, n, pooling) for n in grid))
    means = torch.stack([x[:, i : i + pooling, j : j + pooling].mean((1, 2)) for i, j in starts], 1)
    same(_pooled(x, pooling).flatten(1, 2), means)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    same(_pooled(x, pooling).flatten(1, 2), means)


def _plain_swin(block, x, guidance):
    """One row, token by token: who attends to whom is decided from window and region coordinates, padding left out."""
    height, width, _ = x.shape
    window, shift = (block.window, block.shift) if min(height, width) > block.window else (min(height, width), 0)
    padded = [n + -n % window for n in (height, width)]
    a = block.attention
    normed = block.norm1(x)
    both = torch.cat([normed, guidance], -1)
    q, k, v = a.q.linear(both), a.k.linear(both), a.v(normed)

    def place(y, x_):  # window and region after the shift
        out = []
        for n, size in ((y, padded[0]), (x_, padded[1])):
            rolled = (n - shift) % size
            out.append((rolled // window, rolled >= size - window and rolled >= size - shift))
        return (out[0][0], out[1][0]), (out[0][1], out[1][1])

    out = torch.empty_like(x)
    for y in range(height):
        for x_ in range(width):
            mine, region = place(y, x_)
            keys = [(j, i) for j in range(height) for i in range(width) if place(j, i)[0] == mine]
            penalty = x.new_tensor([0.0 if place(j, i)[1] == region else -100.0 for j, i in keys])
            heads = []
            for h in range(a.heads):
                d = slice(h * q.shape[-1] // a.heads, (h + 1) * q.shape[-1] // a.heads)
                ks, vs = torch.stack([k[j, i, d] for j, i in keys]), torch.stack([v[j, i, d] for j, i in keys])
                scores = ks @ q[y, x_, d] / math.sqrt(ks.shape[1]) + penalty
                heads.append(scores.softmax(0) @ vs)
            out[y, x_] = a.proj(torch.cat(heads))
    x = x + out
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("grid", [(8, 8), (7, 10), (3, 9), (9, 3), (4, 4), (1, 5)], ids=str)
@pytest.mark.parametrize("shift", [0, 2])
def test_swin_block_window_by_window(grid, shift):
    torch.manual_seed(0)
    block = SwinBlock(8, 6, 2, 4, shift).double()
    x, guidance = rand(4, *grid, 8), rand(2, *grid, 6, seed=1)
    got = block(x, block.attention.prepare(guidance))
    for row in range(4):
        same(got[row], _plain_swin(block, x[row], guidance[row // 2]))


def test_sine_positions():
    """Channel c of the first half at row y: sin or cos of 2π (y + 1) / (H + 1e-6) / 10000^(2⌊c/2⌋ / half)."""
    got = sine_positions(3, 5, 8)
    for c in range(4):
        wave = math.sin if c % 2 == 0 else math.cos
        for y in range(3):
            for x in range(5):
                scale = 10000 ** (2 * (c // 2) / 4)
                assert got[c, y, x] == pytest.approx(wave((y + 1) / (3 + 1e-6) * 2 * math.pi / scale), abs=1e-5)
                assert got[4 + c, y, x] == pytest.approx(wave((x + 1) / (5 + 1e-6) * 2 * math.pi / scale), abs=1e-5)


@pytest.mark.parametrize("value_positions", [True, False])
def test_p2tformer_step_by_step(value_positions):
    module = P2Tformer(8, 2, 2, 0.3, True, value_positions).double()
    image, texts = rand(2, 8, 3, 4), F.normalize(rand(5, 8, seed=1), dim=-1)
    positions = sine_positions(3, 4, 8).double()
    expected = []
    for b in range(2):
        keys = (image[b] + positions).flatten(1).T
        values = keys if value_positions else image[b].flatten(1).T
        t = texts
        for layer in module.layers:
            wq, wk, wv = layer.attention.in_proj_weight.chunk(3)
            bq, bk, bv = layer.attention.in_proj_bias.chunk(3)
            q, k, v = t @ wq.T + bq, keys @ wk.T + bk, values @ wv.T + bv
            heads = [((q[:, h] @ k[:, h].T) / 2).softmax(1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
            t = layer.norm(t + layer.linear(layer.attention.out_proj(torch.cat(heads, 1))))
        expected.append(texts + module.gamma * t)
    same(module(image, texts), torch.stack(expected))


def test_p2tformer_switched_off_and_with_fixed_gamma():
    texts = F.normalize(rand(5, 8), dim=-1)
    off = P2Tformer(8, 0, 2, 0.1, True, True).double()
    assert torch.equal(off(rand(1, 8, 2, 2), texts)[0], texts) and not list(off.parameters())
    fixed = P2Tformer(8, 1, 2, 0.5, False, True)
    assert "gamma" not in dict(fixed.named_parameters()) and (fixed.gamma == 0.5).all()
    assert "gamma" not in fixed.state_dict() and "gamma" not in off.state_dict()  # it comes from the configuration
    assert "gamma" in P2Tformer(8, 1, 2, 0.5, True, True).state_dict()


def test_positions_of_a_grid_are_kept_but_not_those_of_a_tracer(monkeypatch):
    pixels = torch.zeros(1, 8, 3, 5)
    kept = positions_of(pixels)
    assert positions_of(pixels) is kept and torch.equal(kept, sine_positions(3, 5, 8))
    assert positions_of(pixels.double()).dtype == torch.float64
    with FakeTensorMode() as mode:
        assert type(positions_of(mode.from_tensor(torch.zeros(1, 8, 11, 13)))) is not torch.Tensor
    assert type(positions_of(torch.zeros(1, 8, 11, 13))) is torch.Tensor
    with torch.inference_mode():
        assert not positions_of(torch.zeros(1, 8, 13, 11)).is_inference()  # training may use it later
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    traced = positions_of(pixels)
    assert traced is not kept and torch.equal(traced, kept)


@torch.no_grad()
def test_p2tformer_keeps_no_attention_weights():
    module, pixels, texts = P2Tformer(8, 1, 2, 0.1, True, True), torch.zeros(1, 8, 20, 20), torch.zeros(50, 8)
    with Largest() as largest:
        module(pixels, texts)
    assert largest.elements < 50 * 400  # of one head


def test_t2p_is_one_convolution_per_class():
    module = T2PProjector(8, 3).double().eval()
    image, texts = rand(2, 8, 3, 4), rand(2, 5, 8, seed=1)
    got = module(image, texts)
    assert got.shape == (2, 5, 12, 16)
    projected = module.project(image)
    for b in range(2):
        for t in range(5):
            generated = module.text(texts[b, t])
            kernel = generated[:-1].reshape(1, 4, 3, 3)
            same(got[b, t], F.conv2d(projected[b : b + 1], kernel, generated[-1:], padding=1)[0, 0])


def test_logits_of_cosines_are_over_the_temperature_and_four_times_as_fine():
    flat, ramp = torch.full((1, 1, 2, 3), 0.35), torch.arange(3.0).view(1, 1, 1, 3) * 0.07
    torch.testing.assert_close(cosine_logits(flat), torch.full((1, 1, 8, 12), 5.0))
    between = [0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.125, 1.375, 1.625, 1.875, 2.0, 2.0]
    torch.testing.assert_close(cosine_logits(ramp), torch.tensor(between).expand(1, 1, 4, 12))


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
@pytest.mark.parametrize("norm", ["taps", "channels", "none", "cosine"])
def test_local_supplement_tap_by_tap(norm, padding):
    module = LocalSupplement(4, 5, norm, padding).double()
    image, texts = F.normalize(rand(1, 4, 3, 6), dim=1), F.normalize(rand(1, 2, 4, seed=1), dim=-1)
    got = module(image, texts)
    for t in range(2):
        generated = module.text(texts[0, t])
        kernel = generated[:-1].reshape(4, 25)
        if norm == "cosine":
            kernel = kernel.softmax(1) * texts[0, t, :, None]
        else:
            kernel = kernel.softmax(1) if norm == "taps" else kernel.softmax(0) if norm == "channels" else kernel
        expected = torch.full((3, 6), generated[-1].item(), dtype=torch.float64)
        for y, x, tap in itertools.product(range(3), range(6), range(25)):
            row, column = y + tap // 5 - 2, x + tap % 5 - 2
            if padding == "replicate":
                row, column = min(max(row, 0), 2), min(max(column, 0), 5)
            if 0 <= row < 3 and 0 <= column < 6:
                expected[y, x] += kernel[:, tap] @ image[0, :, row, column]
        same(got[0, t], expected)


@pytest.mark.parametrize("norm, padding", [("cosine", "zeros"), ("taps", "replicate"), ("cosine", "replicate")])
def test_gradients_of_the_local_supplement(norm, padding):
    module = LocalSupplement(3, 3, norm, padding).double()
    args = [rand(2, 3, 4, 3), rand(2, 3, 3, seed=1), *module.text.parameters()]
    args = [x.detach().requires_grad_() for x in args]

    def maps(pixels, texts, weight, bias):
        return functional_call(module, {"text.weight": weight, "text.bias": bias}, (pixels, texts))

    assert torch.autograd.gradcheck(maps, args)


def test_a_uniform_kernel_of_the_cosine_is_a_mean_of_s_g():
    module = LocalSupplement(8, 3, "cosine", "replicate").double()
    torch.nn.init.zeros_(module.text.weight), torch.nn.init.zeros_(module.text.bias)
    image, texts = F.normalize(rand(1, 8, 4, 5), dim=1), F.normalize(rand(1, 3, 8, seed=1), dim=-1)
    gcs = torch.einsum("bchw,btc->bthw", image, texts)
    same(module(image, texts), F.avg_pool2d(F.pad(gcs, (1, 1, 1, 1), mode="replicate"), 3, stride=1))


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_the_local_supplement_of_half_a_model_is_in_float32(lower):
    module = LocalSupplement(8, 3, "cosine", "replicate")
    image, texts = rand(1, 8, 4, 5).to(lower), F.normalize(rand(1, 3, 8, seed=1), dim=-1).to(lower)
    expected = module(image.float(), texts.float())
    got = module.to(lower)(image, texts)
    assert got.dtype == torch.float32 and torch.equal(got, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(image, texts).dtype == torch.bfloat16


@pytest.mark.parametrize("norm, padding", [("cosine", "zeros"), ("cosine", "replicate"), ("taps", "replicate")])
def test_the_local_supplement_compiles_whole(norm, padding):
    module = LocalSupplement(8, 3, norm, padding)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    image, texts = rand(1, 8, 4, 5).float(), rand(1, 3, 8, seed=1).float().requires_grad_()
    got, expected = (torch.autograd.grad(run(image, texts).square().sum(), texts)[0] for run in (compiled, module))
    torch.testing.assert_close(got, expected)


def _open_clip_twin(model):
    """open_clip's own model with the same weights."""
    weights = dict(model.clip.state_dict())
    for key in [k for k in weights if k.endswith("q_proj_weight")]:
        stem = key.removesuffix("q_proj_weight")
        weights[stem + "in_proj_weight"] = torch.cat([weights.pop(f"{stem}{p}_proj_weight") for p in "qkv"])
    twin = open_clip.model.CLIP(**ARCHITECTURE).double().eval()
    twin.load_state_dict(weights)
    assert split_projections(weights).keys() == model.clip.state_dict().keys()
    return twin


def test_text_tower_equals_open_clip_without_the_cut():
    model = tiny_model().double()
    twin = _open_clip_twin(model)
    prompts = [f"a photo of a {n}" for n in [*NAMES, "a much longer name of a class than the others have"]]
    expected = F.normalize(twin.encode_text(open_clip.SimpleTokenizer(context_length=16)(prompts)), dim=-1)
    got = model.encode([p.removeprefix("a photo of a ") for p in prompts]).embeddings
    same(got.detach(), expected.detach())


def test_image_tower_equals_open_clip_up_to_the_dense_block():
    model = tiny_model().double()
    twin, photo = _open_clip_twin(model), pixels(2, 32, 32).double()
    outputs = []
    for block in twin.visual.transformer.resblocks:
        block.register_forward_hook(lambda _, inputs, output: outputs.append((inputs[0], output)))
    twin.encode_image(photo)
    got = model.image_encoder(photo)
    for feature, block in ((got.early, 0), (got.late, 1)):
        same(feature.flatten(2).transpose(1, 2), outputs[block][1][:, 1:])
    last, x = twin.visual.transformer.resblocks[-1], outputs[2][0]
    weight, bias = last.attn.in_proj_weight.chunk(3)[2], last.attn.in_proj_bias.chunk(3)[2]
    v = last.attn.out_proj(last.ln_1(x) @ weight.T + bias) + x[:, :1]
    dense = twin.visual.ln_post(v + last.mlp(last.ln_2(v))) @ twin.visual.proj
    same(got.embedding.flatten(2).transpose(1, 2), dense[:, 1:])


def test_prompt_tokens_stand_after_the_class_token_and_leave_again():
    model = tiny_model(encoder={"finetune": "prompt", "prompt_tokens": 2})
    with torch.no_grad():  # for all three: with a graph sums are rounded otherwise
        before = model.image_encoder(pixels())
        model.clip.visual.transformer.prompt_tokens[2] += 1  # the dense block has no use for them
        assert torch.equal(model.image_encoder(pixels()).embedding, before.embedding)
        model.clip.visual.transformer.prompt_tokens[0] += 1
        after = model.image_encoder(pixels())
    assert after.embedding.shape == before.embedding.shape and not torch.allclose(after.embedding, before.embedding)


@pytest.mark.parametrize("old, new", [(4, 9), (9, 4), (5, 5), (1, 3), (7, 1), (14, 37)])
def test_cubic_weights_are_those_of_interpolate(old, new):
    """Applied to every unit vector."""
    expected = F.interpolate(torch.eye(old).double()[None, :, :, None], (new, 1), mode="bicubic")[0, :, :, 0].T
    torch.testing.assert_close(cubic_weights(old, new, torch.device("cpu")).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_positions_of_low_precision_are_resized_in_float32(first):
    table = rand(first + 12, 6).bfloat16()
    got = resized_positions(table, (3, 4), (5, 2), first)
    assert got.dtype == torch.bfloat16 and torch.equal(got[:first], table[:first])
    assert torch.equal(got, resized_positions(table.float(), (3, 4), (5, 2), first).bfloat16())


def test_positions_keep_the_class_row_and_their_own_grid():
    table = rand(1 + 16, 6)
    assert resized_positions(table, (4, 4), (4, 4)) is table
    resized = resized_positions(table, (4, 4), (3, 7))
    assert resized.shape == (22, 6) and torch.equal(resized[0], table[0])
    square = table[1:].T.reshape(1, 6, 4, 4).float()
    expected = F.interpolate(square, size=(3, 7), mode="bicubic", align_corners=False, antialias=False)
    torch.testing.assert_close(resized[1:].float(), expected[0].flatten(1).T)


@pytest.mark.parametrize("grid", [(3, 7), (4, 5), (9, 2), (8, 10)])
def test_exported_positions_are_those_that_interpolate_gives(grid, monkeypatch):
    table = rand(1 + 20, 6).float()
    expected = resized_positions(table, (4, 5), grid)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(resized_positions(table, (4, 5), grid), expected)


def _output(logits, align=None, aux=()):
    return Output(logits, logits, None, align, list(aux), None)


LABELS = torch.tensor([[[0, 1, 2, 255], [2, 2, 255, 255], [1, 0, 0, 1], [2, 1, 0, 0]]])


@pytest.fixture(params=[1, 2, 32])
def piece(request, monkeypatch):
    monkeypatch.setattr(fgaseg.training.losses, "CLASSES_PER_CHUNK", request.param)


def test_losses_of_the_paper_pixel_by_pixel(piece):
    logits, small, aux = rand(1, 3, 4, 4), rand(1, 3, 2, 2, seed=1), rand(1, 3, 4, 4, seed=2)
    align = F.interpolate(small, (4, 4), mode="bilinear", align_corners=False)
    config = LossConfig(lambda_align=0.5, lambda_aux=0.25)
    got = segmentation_losses(_output(logits, small, [aux]), LABELS, config)
    ce, aux_ce, squares, n = 0.0, 0.0, 0.0, 0
    for y in range(4):
        for x in range(4):
            label = int(LABELS[0, y, x])
            if label == 255:
                continue
            n += 1
            ce -= logits[0, :, y, x].log_softmax(0)[label].item()
            aux_ce -= aux[0, :, y, x].log_softmax(0)[label].item()
            squares += sum((align[0, t, y, x].item() - (t == label)) ** 2 for t in range(3))
    assert got["seg"].item() == pytest.approx(ce / n, rel=1e-6)
    assert got["aux"].item() == pytest.approx(aux_ce / n, rel=1e-6)
    assert got["align"].item() == pytest.approx(squares / (3 * n), rel=1e-6)
    assert got["loss"].item() == pytest.approx((ce + 0.25 * aux_ce) / n + 0.5 * squares / (3 * n), rel=1e-6)
    summed = segmentation_losses(_output(logits, small), LABELS, LossConfig(align_reduction="sum"))
    assert summed["align"].item() == pytest.approx(squares, rel=1e-6)


def test_losses_of_the_released_code(piece):
    logits, align = rand(1, 3, 4, 4), rand(1, 3, 2, 2, seed=1)
    heads = [rand(1, 3, 4, 4, seed=s) for s in (2, 3, 4)]
    config = LossConfig(seg="bce", align="bce", aux_heads=3)
    got = segmentation_losses(_output(logits, align, heads), LABELS, config)
    target = torch.zeros(1, 3, 4, 4)
    for t in range(3):
        target[0, t] = LABELS[0] == t  # an unlabelled pixel is a negative of every class
    seg, *aux = (F.binary_cross_entropy_with_logits(x.float(), target) for x in (logits, *heads))
    alignment = F.binary_cross_entropy_with_logits(align.float(), target[:, :, ::2, ::2])
    assert got["align"].item() == pytest.approx(alignment.item(), rel=1e-6)
    expected = seg + 0.02 * alignment + 0.2 * aux[0] + aux[1] + aux[2]
    assert got["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["mse", "bce"])
def test_pieces_of_the_classes_change_no_gradient(kind, monkeypatch):
    config, gradients = LossConfig(seg="bce", align=kind, lambda_align=0.5), []
    for size in (32, 2):
        monkeypatch.setattr(fgaseg.training.losses, "CLASSES_PER_CHUNK", size)
        logits, align = rand(1, 3, 2, 2).requires_grad_(), rand(1, 3, 2, 2, seed=1).requires_grad_()
        loss = segmentation_losses(_output(logits, align), LABELS, config)["loss"]
        gradients.append(torch.cat(torch.autograd.grad(loss, [logits, align])))
    assert gradients[0].abs().min() > 0
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("switches", [{}, {"class_balance": 0.5}, {"seg": "bce", "align": "bce"}], ids=str)
def test_losses_of_two_halves_add_up_to_the_whole(switches):
    config = LossConfig(**switches)
    logits, align = rand(4, 3, 4, 4), rand(4, 3, 8, 8, seed=1)
    labels = torch.cat([LABELS, LABELS.flip(1), LABELS.clone().fill_(255), LABELS.flip(2)])
    whole = segmentation_losses(_output(logits, align), labels, config)

    def part(s, world):
        return segmentation_losses(_output(logits[s], align[s]), labels[s], config, sum_over_ranks=world)

    halves, counts = (slice(0, 2), slice(2, 4)), ([], [])
    for s, own in zip(halves, counts, strict=True):
        part(s, lambda count, own=own: own.append(count) or count)
    totals = [sum(pair) for pair in zip(*counts, strict=True)]
    parts = []
    for s in halves:
        left = iter(totals)
        parts.append(part(s, lambda _, left=left: next(left)))
    for key in whole:
        assert sum(p[key] for p in parts).item() == pytest.approx(whole[key].item(), rel=1e-5)


def test_class_balance_weighs_classes_by_their_pixels():
    logits = rand(1, 3, 4, 4)
    got = segmentation_losses(_output(logits), LABELS, LossConfig(class_balance=1.0))["seg"]
    per_class = []
    for t in range(3):
        y, x = (LABELS[0] == t).nonzero().T
        per_class.append(-logits[0, :, y, x].log_softmax(0)[t].mean().item())
    assert got.item() == pytest.approx(sum(per_class) / 3, rel=1e-6)  # every class present counts the same


def test_a_batch_without_any_label_has_loss_zero_and_not_nan():
    losses = segmentation_losses(_output(rand(1, 3, 4, 4), rand(1, 3, 4, 4)), LABELS.clone().fill_(255), LossConfig())
    assert all(value.item() == 0 for value in losses.values())
