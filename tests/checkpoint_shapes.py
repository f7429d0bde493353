"""Keys and shapes of checkpoints of CAT-Seg's family, as the public code of each registers them."""

HEAD = "sem_seg_head.predictor."
Shapes = dict[str, list[int]]


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]}


def convolution(name: str, inputs: int, outputs: int, size: int) -> Shapes:
    return {f"{name}.weight": [outputs, inputs, size, size], f"{name}.bias": [outputs]}


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": [channels], f"{name}.bias": [channels]}


def clip(width: int, layers: int, patch: int, rows: int, channels: int) -> Shapes:
    """OpenAI's CLIP with separate q, k and v, as model_vpt.py of CAT-Seg and of Pi-Seg registers it."""
    shapes = {
        "positional_embedding": [77, channels], "text_projection": [channels, channels], "logit_scale": [],
        "visual.class_embedding": [width], "visual.positional_embedding": [rows, width],
        "visual.proj": [width, channels], "visual.conv1.weight": [width, 3, patch, patch],
        "token_embedding.weight": [49408, channels],
        **norm("visual.ln_pre", width), **norm("visual.ln_post", width), **norm("ln_final", channels),
    }  # fmt: skip
    for tower, dim, depth in (("visual.transformer", width, layers), ("transformer", channels, 12)):
        for n in range(depth):
            block = f"{tower}.resblocks.{n}"
            shapes |= {f"{block}.attn.{x}_proj_weight": [dim, dim] for x in "qkv"}
            shapes |= {f"{block}.attn.in_proj_bias": [3 * dim], **linear(f"{block}.attn.out_proj", dim, dim)}
            shapes |= linear(f"{block}.mlp.c_fc", dim, 4 * dim) | linear(f"{block}.mlp.c_proj", 4 * dim, dim)
            shapes |= norm(f"{block}.ln_1", dim) | norm(f"{block}.ln_2", dim)
    return {f"{HEAD}clip_model.{key}": shape for key, shape in shapes.items()}


def layer(spatial: str, classes: str) -> Shapes:
    """One aggregation layer, by the names of its spatial and its class aggregation."""
    shapes = norm(f"{spatial}.guidance_norm", 128)
    for block in (f"{spatial}.block_1", f"{spatial}.block_2"):
        shapes |= norm(f"{block}.norm1", 128) | norm(f"{block}.norm2", 128)
        shapes |= linear(f"{block}.attn.q", 256, 128) | linear(f"{block}.attn.k", 256, 128)
        shapes |= linear(f"{block}.attn.v", 128, 128) | linear(f"{block}.attn.proj", 128, 128)
        shapes |= linear(f"{block}.mlp.fc1", 128, 512) | linear(f"{block}.mlp.fc2", 512, 128)
    shapes |= {f"{classes}.padding_tokens": [1, 1, 128], f"{classes}.padding_guidance": [1, 1, 128]}
    shapes |= linear(f"{classes}.attention.q", 256, 128) | linear(f"{classes}.attention.k", 256, 128)
    shapes |= linear(f"{classes}.attention.v", 128, 128)
    shapes |= linear(f"{classes}.MLP.0", 128, 512) | linear(f"{classes}.MLP.2", 512, 128)
    shapes |= norm(f"{classes}.norm1", 128) | norm(f"{classes}.norm2", 128)
    return shapes | {f"{spatial}.block_2.attn_mask": [4, 144, 144]}


def upsampling(name: str, inputs: int, outputs: int, guidance: int) -> Shapes:
    conv = f"{name}.conv.double_conv"
    return {
        f"{name}.up.weight": [inputs, inputs - guidance, 2, 2], f"{name}.up.bias": [inputs - guidance],
        f"{conv}.0.weight": [outputs, inputs, 3, 3], f"{conv}.3.weight": [outputs, outputs, 3, 3],
        **norm(f"{conv}.1", outputs), **norm(f"{conv}.4", outputs),
    }  # fmt: skip


def aggregator(width: int, channels: int, spatial: str = "swin_block", classes: str = "attention") -> Shapes:
    """Everything but the encoders: two layers at a grid of 24×24, as all published configurations have them."""
    shapes = convolution("transformer.conv1", 1, 128, 7) | convolution("transformer.head", 32, 1, 3)
    shapes |= convolution("transformer.guidance_projection.0", channels, 128, 3)
    shapes |= linear("transformer.text_guidance_projection.0", channels, 128)
    shapes |= convolution("transformer.decoder_guidance_projection.0.0", 256, 32, 3)
    shapes |= convolution("transformer.decoder_guidance_projection.1.0", 128, 16, 3)
    shapes |= upsampling("transformer.decoder1", 128, 64, 32) | upsampling("transformer.decoder2", 64, 32, 16)
    for n in (0, 1):
        shapes |= layer(f"transformer.layers.{n}.{spatial}", f"transformer.layers.{n}.{classes}")
    shapes = {HEAD + key: shape for key, shape in shapes.items()}
    shapes |= {"upsample1.weight": [width, 256, 2, 2], "upsample1.bias": [256]}
    return shapes | {"upsample2.weight": [width, 128, 4, 4], "upsample2.bias": [128]}
