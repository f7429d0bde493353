"""Every family against open_clip's own classes with the same weights, and what its features depend on."""

import copy

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from small_encoders import ENCODERS, PATCH, SIDE, open_clip_model, small_encoder
from torch._dynamo.testing import CompileCounterWithBackend

from fgaseg.model.image_encoder import ImageEncoder

FAMILIES = pytest.mark.parametrize("family", ENCODERS)
PROMPTS = ["a photo of a cat", "a red star", "dog", "the name of a thing much longer than the others have"]
POOLED = [family for family in ENCODERS if family.startswith(("SigLIP", "PE"))]  # by an attention-pooling head
CAUSAL = [family for family in ENCODERS if not family.startswith(("SigLIP", "MobileCLIP2-L"))]


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(family, tokenizer, **switches):
    """open_clip's model in float64, and our encoder with its weights."""
    theirs = open_clip_model(family)
    return theirs.double(), small_encoder(family, tokenizer, theirs.state_dict(), **switches)


def same(got, expected, **kwargs):
    torch.testing.assert_close(got, expected, **{"rtol": 1e-11, "atol": 1e-11, **kwargs})


@torch.no_grad()
@FAMILIES
def test_both_embeddings_equal_those_of_open_clip(family, tokenizer):
    theirs, ours = pair(family, tokenizer)
    pixels = rand(3, 3, SIDE, SIDE)
    expected = theirs.encode_image(pixels)
    assert expected.std() > 0.01 and (expected[0] - expected[1]).abs().max() > 0.01  # there is something to compare
    same(ours.image_tower.pooled(pixels), expected)
    expected = theirs.encode_text(ours.text_tower.tokenizer(PROMPTS))
    assert (expected[0] - expected[1]).abs().max() > 0.01
    same(ours.text(PROMPTS), expected)


@torch.no_grad()
@FAMILIES
def test_errors_in_float32_are_those_of_open_clip(family, tokenizer):
    theirs, ours = pair(family, tokenizer)
    pixels = rand(3, 3, SIDE, SIDE)
    tokens = ours.text_tower.tokenizer(PROMPTS)
    exact = (theirs.encode_image(pixels), theirs.encode_text(tokens))
    theirs, _ = theirs.float(), ours.module.float()
    yardstick = (theirs.encode_image(pixels.float()), theirs.encode_text(tokens))
    got = (ours.image_tower.pooled(pixels.float()), ours.text(PROMPTS))
    for g, y, e in zip(got, yardstick, exact, strict=True):
        assert g.dtype == torch.float32
        assert (g - e).abs().max() <= 2 * (y - e).abs().max() + 1e-6


@torch.no_grad()
@FAMILIES
def test_text_depends_on_every_token_that_matters_and_on_no_other(family, tokenizer):
    """Where attention is causal, on those up to the one that is read; elsewhere on all, padding too."""
    theirs, ours = pair(family, tokenizer)
    tokens = ours.text_tower.tokenizer(PROMPTS[1:2])
    end, before = int(ours.text_tower.ends(tokens)), ours.text_tower.run(tokens)
    assert 2 <= end < tokens.shape[1] - 1 or ours.text_tower.pool == "last"
    for place in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[0, place] = 7 if place != end or ours.text_tower.pool == "last" else tokens[0, place]
        after = ours.text_tower.run(changed)
        same(after, theirs.encode_text(changed))
        matters = place <= end if family in CAUSAL else True
        assert torch.equal(after, before) != (matters and not torch.equal(changed, tokens)), place


@FAMILIES
def test_features_depend_on_every_patch(family, tokenizer):
    ours = small_encoder(family, tokenizer)
    pixels = rand(1, 3, 4 * PATCH, 5 * PATCH).requires_grad_()
    for feature in ours.image(pixels):
        (gradient,) = torch.autograd.grad((feature * rand(*feature.shape, seed=1)).sum(), pixels, retain_graph=True)
        assert gradient.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).abs().amax((0, 1, 4, 5)).min() > 0


@torch.no_grad()
@FAMILIES
@pytest.mark.parametrize("dense", ["value", "qq", "csa"])
def test_guidance_and_dense_features_at_any_size(family, dense, tokenizer):
    """Guidance is what the blocks give, every rule has its own dense features, and images do not mix."""
    ours = small_encoder(family, tokenizer, dense=dense)
    encoder = ImageEncoder(ours)
    for size in ((SIDE, SIDE), (3 * PATCH, 7 * PATCH), (PATCH, PATCH), (61, 30)):
        pixels = rand(2, 3, *size)
        features, alone = encoder(pixels), encoder(pixels[1:])
        grid = tuple(-(-n // PATCH) for n in size)
        for feature, one, channels in zip(features, alone, (ours.channels, ours.width, ours.width), strict=True):
            assert feature.shape == (2, channels, *grid) and feature.isfinite().all()
            same(feature[1:], one)
    other = small_encoder(family, tokenizer, dense="qq" if dense != "qq" else "csa")
    assert not torch.allclose(other.image(rand(1, 3, 24, 24)).embedding, ours.image(rand(1, 3, 24, 24)).embedding)


@torch.no_grad()
@FAMILIES
def test_guidance_is_the_output_of_the_two_blocks(family, tokenizer):
    theirs, _ = pair(family, tokenizer)
    outputs = []
    blocks = theirs.visual.transformer.resblocks if isinstance(theirs, CLIP) else theirs.visual.trunk.blocks
    for block in blocks:
        block.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    pixels = rand(1, 3, SIDE, SIDE)
    theirs.encode_image(pixels)
    last = len(blocks) - (family not in POOLED)
    for chosen in ((0, 1), (last - 2, last - 1)):
        ours = small_encoder(family, tokenizer, theirs.state_dict(), guidance_blocks=chosen)
        for feature, index in zip(ours.image(pixels)[1:], chosen, strict=True):
            same(feature.flatten(2).transpose(1, 2), outputs[index][:, -16:])


@torch.no_grad()
@pytest.mark.parametrize("family", sorted({*POOLED} - {"PE-Core"}))  # it has a class token beside the patch
@pytest.mark.parametrize("dense", ["value", "qq", "csa"])
def test_one_patch_has_the_features_of_its_image(family, dense, tokenizer):
    """All rules of the pooling head give a lone patch what pooling gives it: features are in the text's space."""
    ours = small_encoder(family, tokenizer, dense=dense)
    pixels = rand(2, 3, PATCH, PATCH)
    same(ours.image(pixels).embedding[..., 0, 0], ours.image_tower.pooled(pixels))


def last_attention(ours, pixels):
    """What enters the last attention, and the heads of its q, k and v, from the tower's own modules."""
    tower = ours.image_tower
    grid = (pixels.shape[2] // PATCH, pixels.shape[3] // PATCH)
    x, rotation = tower.embed(pixels, grid), tower.rotation(grid, pixels.device)
    for block in tower.blocks[: tower.last]:
        x = tower.run(block, x, rotation)
    return x


@torch.no_grad()
def test_self_correlation_of_a_plain_vit_is_that_of_clearclip_and_sclip(tokenizer):
    """Without residual and MLP, scaled as attention is; the two terms of csa are added."""
    for dense in ("qq", "csa"):
        ours = small_encoder("plain CLIP, layer scale", tokenizer, dense=dense)
        visual, pixels = ours.module.visual, rand(1, 3, 24, 40)
        block = visual.transformer.resblocks[-1]
        attention, x = block.attn, last_attention(ours, pixels)
        weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
        q, k, v = (
            (block.ln_1(x) @ w.T + b).unflatten(-1, (2, 16)).transpose(1, 2)
            for w, b in zip(weights, attention.in_proj_bias.chunk(3), strict=True)
        )
        mixed = (q @ q.mT / 4).softmax(-1) @ v
        if dense == "csa":
            mixed = mixed + (k @ k.mT / 4).softmax(-1) @ v
        out = block.ls_1.gamma * attention.out_proj(mixed.transpose(1, 2).flatten(2))
        expected = visual.ln_post(out[:, 1:]) @ visual.proj
        same(ours.image(pixels).embedding.flatten(2).mT, expected)


@torch.no_grad()
@pytest.mark.parametrize("dense", ["csa", "qq", "value"])
def test_dense_features_of_eva_are_those_of_declip(dense, tokenizer):
    """Neither scaled nor rotated, then the norm inside attention; no residual, no MLP; of unit length."""
    ours = small_encoder("EVA-02", tokenizer, dense=dense)
    trunk, pixels = ours.module.visual.trunk, rand(1, 3, 24, 40)
    block, x = trunk.blocks[-1], last_attention(ours, pixels)
    attention, read = block.attn, block.norm1(x)
    q, k, v = (
        layer(read).unflatten(-1, (2, 16)).transpose(1, 2)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    weights = (q @ q.mT).softmax(-1)
    weights = weights + (k @ k.mT).softmax(-1) if dense == "csa" else weights
    mixed = v if dense == "value" else weights @ v
    out = attention.proj(attention.norm(mixed.transpose(1, 2).flatten(2)))
    if dense == "value":
        out = x + out
        out = out + block.mlp(block.norm2(out))
    expected = F.normalize(trunk.head(trunk.norm(out[:, 1:])), dim=-1)
    same(ours.image(pixels).embedding.flatten(2).mT, expected)


@torch.no_grad()
def test_value_path_of_mobileclip_has_the_class_tokens_residual(tokenizer):
    ours = small_encoder("MobileCLIP2-B", tokenizer)
    trunk, pixels = ours.module.visual.trunk, rand(1, 3, 24, 40)
    block, x = trunk.blocks[-1], last_attention(ours, pixels)
    v = block.attn.proj(block.attn.v_proj(block.norm1(x))) + x[:, :1]
    expected = trunk.head(trunk.norm(v + block.mlp(block.norm2(v)))[:, 1:])
    same(ours.image(pixels).embedding.flatten(2).mT, expected)


@torch.no_grad()
@pytest.mark.parametrize("family", [f for f in ENCODERS if not f.startswith(("plain", "worldwide"))])
def test_positions_at_another_size_are_those_of_timm(family, tokenizer):
    """Rotary ones are computed for the grid; tables are resized as plain CLIP's, without antialiasing."""
    theirs, ours = pair(family, tokenizer)
    size, grid, trunk = (24, 56), (3, 7), theirs.visual.trunk
    first = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    square = trunk.pos_embed[0, first:].float().unflatten(0, (4, 4)).permute(2, 0, 1)[None]
    resized = F.interpolate(square, grid, mode="bicubic")[0].flatten(1).T
    table = torch.cat([trunk.pos_embed[0, :first], resized])[None]
    trunk.float().set_input_size(size)
    trunk.double().pos_embed = torch.nn.Parameter(table)
    pixels = rand(2, 3, *size)
    same(ours.image_tower.pooled(pixels), theirs.encode_image(pixels), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(ours.image_tower.pooled(pixels), ours.image_tower.pooled(pixels.flip(2)))


def compiled_marks(family: str) -> list[pytest.MarkDecorator]:
    """Up to a minute a family: one with open_clip's blocks and one with timm's in continuous integration."""
    if family == "SigLIP":
        return []
    return [pytest.mark.slow, *([] if family == "plain CLIP" else [pytest.mark.exhaustive])]


@torch.no_grad()
@pytest.mark.parametrize("family", [pytest.param(f, marks=compiled_marks(f)) for f in ENCODERS])
def test_the_image_tower_compiles_in_one_graph(family, tokenizer):
    ours = small_encoder(family, tokenizer)
    plain, compiled = ImageEncoder(ours), ImageEncoder(ours)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled.compile(backend=counter, dynamic=True, fullgraph=True)
    counts = []
    for size in ((SIDE, SIDE), (24, 48), (40, 56), (48, 16)):  # the first at the tables' own grid
        for got, expected in zip(compiled(rand(1, 3, *size)), plain(rand(1, 3, *size)), strict=True):
            same(got, expected, rtol=1e-5, atol=1e-6)  # positions are resized in float32
        counts.append(counter.frame_count)
    assert counts[0] < counts[1] == counts[2] == counts[3]


def test_an_encoder_can_be_copied(tokenizer):
    ours = small_encoder("SigLIP", tokenizer)
    twin = copy.deepcopy(ours)
    assert twin.image_tower.blocks[0] is twin.module.visual.trunk.blocks[0] is not ours.image_tower.blocks[0]


@FAMILIES
def test_no_linear_layer_is_left_to_the_slow_product(family, tokenizer):
    encoder = small_encoder(family, tokenizer)
    assert not [name for name, layer in encoder.module.named_modules() if type(layer) is torch.nn.Linear]
