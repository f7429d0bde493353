"""Which weights of every family train, with which gradients, and how they are decayed."""

import pytest
import torch
from small_encoders import CLIP_VISION, ENCODERS, open_clip_model, small_encoder, small_model
from tiny import NAMES, pixels

from fgaseg import EncoderConfig
from fgaseg.errors import EncoderError
from fgaseg.model.encoders import OpenClipEncoder
from fgaseg.model.encoders.loading import split_projections
from fgaseg.training.losses import segmentation_losses

POOLED = ("SigLIP", "SigLIP, no projection", "PE-Core", "PE-Core bigG")
PLAIN = [family for family in ENCODERS if family.startswith(("plain", "worldwide"))]
LAST, BLOCKS = 3, ("visual.transformer.resblocks.3", "visual.trunk.blocks.3")


def gradients(model):
    """Names of the encoder's weights that train, and of those that a step gives no gradient."""
    model.train()
    labels = torch.randint(0, 5, (2, 40, 48), generator=torch.Generator().manual_seed(0))
    out = model(pixels(2, 40, 48), model.encode(NAMES))
    segmentation_losses(out, labels, model.config.loss)["loss"].backward()
    trained = {name for name, p in model.clip.named_parameters() if p.requires_grad}
    reached = {name for name, p in model.clip.named_parameters() if p.grad is not None}
    assert reached <= trained
    assert all(p.grad.abs().max() > 0 for name, p in model.clip.named_parameters() if name in reached)
    return trained, trained - reached


def unread(family, dense, names):
    """The weights that dense features do not read, among these names: see the docstrings of the families."""
    block = BLOCKS[0] if family in PLAIN else BLOCKS[1]
    if family in POOLED:
        parts = {"value": ("latent", "q_proj", "k_proj"), "qq": ("latent", "k_proj"), "csa": ("latent",)}[dense]
        return {n for n in names if n.startswith(tuple(f"visual.trunk.attn_pool.{part}" for part in parts))}
    after = ("mlp", "ln_2", "ls_2", "norm2", "gamma_2")  # qq and csa end with attention
    parts = {"value": ("attn.q", "attn.k"), "qq": ("attn.k", *after), "csa": after}[dense]
    return {n for n in names if n.startswith(tuple(f"{block}.{part}" for part in parts))}


@pytest.mark.parametrize("dense", ["value", "qq", "csa"])
@pytest.mark.parametrize("family", ENCODERS)
def test_gradients_reach_everything_that_is_read(family, dense, tokenizer):
    model = small_model(family, tokenizer, {"finetune": "scratch", "dense": dense})
    every = {name for name, _ in model.clip.named_parameters()}
    trained, without = gradients(model)
    assert trained == every - {"logit_scale", "logit_bias"}
    assert without == unread(family, dense, trained)


@pytest.mark.parametrize("strategy", ["attention", "prompt", "full", "none"])
@pytest.mark.parametrize("family", ENCODERS)
def test_strategies_train_what_table_seven_says(family, strategy, tokenizer):
    model = small_model(family, tokenizer, {"finetune": strategy, "prompt_tokens": 2})
    every = {name for name, _ in model.clip.named_parameters()}
    trained, without = gradients(model)
    blocks = {n for n in every if ".blocks." in n or ".resblocks." in n or n.startswith("transformer.resblocks.")}
    head = {n for n in every if ".attn_pool." in n}
    q_and_v = ("q_proj_weight", "v_proj_weight", "q_proj.weight", "v_proj.weight")
    prompts = "visual.transformer.prompt_tokens" if family in PLAIN else "visual.trunk.prompt_tokens"
    expected = {
        "attention": {n for n in every if n.endswith(q_and_v)},
        "prompt": {prompts},
        "full": blocks | head,
        "none": set(),
    }[strategy]
    assert trained == expected
    assert without == unread(family, model.encoder.dense, trained)
    if strategy == "attention":  # 4 visual and 2 text blocks, and the pooling head
        assert len(trained) == 2 * (4 + 2 + (family in POOLED))
    assert all(p.requires_grad for p in model.head.parameters())


@torch.no_grad()
@pytest.mark.parametrize("family", ENCODERS)
def test_prompt_tokens_of_every_block_that_runs_matter_and_leave_again(family, tokenizer):
    ours = small_encoder(family, tokenizer, finetune="prompt", prompt_tokens=2)
    size = (1, 3, 40, 24)
    photo = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = ours.image(photo).embedding
    prompts = ours.image_tower.stack.prompt_tokens
    kept = prompts.clone()
    for index in range(4):
        prompts[index] = prompts[index].flip(-1)  # a constant would not pass the norm
        after = ours.image(photo).embedding
        assert after.shape == before.shape
        assert torch.equal(after, before) == (index == LAST and family not in POOLED), index
        prompts.copy_(kept)


@torch.no_grad()
@pytest.mark.parametrize("family", ENCODERS)
def test_prompt_tokens_stand_between_class_token_and_patches(family, tokenizer):
    """By open_clip's own blocks; rotary positions are those of the patches, as before."""
    theirs = open_clip_model(family)
    ours = small_encoder(family, tokenizer, finetune="prompt", prompt_tokens=2, guidance_blocks=(0, 1))
    weights = split_projections(theirs.double().state_dict())
    ours.module.load_state_dict({**ours.module.state_dict(), **weights})
    photo = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tower = ours.image_tower
    x, first = tower.embed(photo, (4, 4)), tower.prefix
    trunk = getattr(theirs.visual, "trunk", None)
    rope = getattr(trunk, "rope", None)
    given = {} if rope is None else {"rope": rope.get_embed()}
    for i, kept in enumerate(ours.image(photo)[1:]):
        block = theirs.visual.transformer.resblocks[i] if trunk is None else trunk.blocks[i]
        block.attn.num_prefix_tokens = first + 2
        x = block(torch.cat([x[:, :first], tower.stack.prompt_tokens[i][None], x[:, first:]], dim=1), **given)
        x = torch.cat([x[:, :first], x[:, first + 2 :]], dim=1)
        torch.testing.assert_close(kept.flatten(2).mT, x[:, first:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", ["MobileCLIP2-B", "SigLIP", "EVA-02", "PE-Core"])
def test_positions_class_tokens_latents_and_norms_are_not_decayed(family, tokenizer):
    model = small_model(family, tokenizer, {"finetune": "scratch"})
    groups = model.parameter_groups(2e-4, 0.01, 1e-4)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    plain = {name for name, p in model.clip.named_parameters() if p.requires_grad and decay[id(p)] == 0}
    expected = ("pos_embed", "cls_token", "attn_pool.latent", "token_embedding.weight", "positional_embedding")
    assert {n for n in plain if n.endswith(expected)} == {
        n for n, _ in model.clip.named_parameters() if n.endswith(expected)
    }
    assert all(p.ndim == 1 for n, p in model.clip.named_parameters() if n in plain and not n.endswith(expected))
    assert "visual.trunk.norm.weight" in plain and "visual.trunk.blocks.0.attn.q_proj.weight" not in plain


def test_statistics_of_the_stem_stay_what_they_were(tokenizer):
    """Batches are small, and every process would have statistics of its own."""
    model = small_model("MobileCLIP2-B", tokenizer, {"finetune": "scratch"}).train()
    before = {name: b.clone() for name, b in model.clip.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    training = model.image_encoder(pixels(2, 40, 48)).embedding
    assert torch.equal(training, model.eval().image_encoder(pixels(2, 40, 48)).embedding)
    assert all(torch.equal(b, before[name]) for name, b in model.clip.named_buffers())


def test_fixed_positions_do_not_train_even_from_scratch(tokenizer):
    architecture = {**ENCODERS["plain CLIP"], "vision_cfg": {**CLIP_VISION, "pos_embed_type": "sin_cos_2d"}}
    model = small_model("plain CLIP", tokenizer, {"architecture": architecture})
    assert not model.clip.visual.positional_embedding.requires_grad and model.clip.positional_embedding.requires_grad


def test_guidance_of_blocks_that_do_not_run_is_refused(tokenizer):
    small_encoder("SigLIP", tokenizer, guidance_blocks=(2, 3))  # the last block runs whole
    with pytest.raises(EncoderError, match="must name two of the first 3 blocks .the image tower has 4 and the last"):
        small_encoder("EVA-02", tokenizer, guidance_blocks=(2, 3))
    with pytest.raises(EncoderError, match=r"must name two of the first 4 blocks \(the image tower has 4\)$"):
        small_encoder("SigLIP", tokenizer, guidance_blocks=(3, 4))


@pytest.mark.parametrize("layers, blocks", [(2, (0, 0)), (4, (0, 1)), (6, (1, 3)), (12, (3, 7)), (24, (7, 15))])
def test_guidance_is_of_a_third_and_of_two_thirds_of_the_depth(layers, blocks):
    architecture = {**ENCODERS["plain CLIP"], "vision_cfg": {**CLIP_VISION, "layers": layers}}
    with torch.device("meta"):
        made = OpenClipEncoder(EncoderConfig(name="mine", architecture=architecture), skeleton=True)
    assert made.guidance_blocks == blocks and made.dense == "value"
