"""Recordings of a small head, of the losses, of text embeddings and of drawn scenes, and how they are made.

    python tests/recorded.py  # writes tests/recordings again; commit what changes only if it was meant to

The reference implementation reads settings from the model's own modules: the shift of a window, the number of groups,
the rows that a tokenizer cuts. A change of these changes both sides of a comparison, and no number here. Inputs and
weights are not recorded: they are drawn from a generator whose stream is the same for ever.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from recorded_scenes import scenes
from safetensors.torch import save_file
from tiny import tiny_config, tiny_model
from torch import Tensor, nn

from fgaseg.config import LossConfig
from fgaseg.model import reference
from fgaseg.model.encoders import ImageFeatures
from fgaseg.model.head import Head

FOLDER = Path(__file__).with_name("recordings")
CHANNELS, WIDTH, CLASSES, GRID = 16, 12, 5, (5, 7)  # a grid that neither windows nor pools divide
SWITCHES = {"hidden": 16, "guidance_channels": (8, 8), "guidance_hidden": (8, 8)}
HEADS: dict[str, dict[str, Any]] = {
    "paper": {"pad_classes": 9},
    "pooled": {"preset": "released", "pad_classes": 8, "class_pooling_eval": 2, "kernel_norm": "channels"},
    "cosine": {"kernel_norm": "cosine", "lcs_padding": "replicate", "fusion": "add", "class_cap": 3},
}
LOSSES: dict[str, dict[str, Any]] = {
    "paper": {},
    "sum": {"align_reduction": "sum", "lambda_align": 0.5},
    "balanced": {"class_balance": 0.5},
    "released": {"seg": "bce", "align": "bce", "aux_heads": 3},
}
WEIGHTS = (0.5, 2.0, 1.0)  # of the classes
IGNORED = (255, 1)  # a value beyond the classes, and one of them
TEMPLATES = ("a photo of a {}", "an old picture of the {} in it")
WORDS = " ".join(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"])
TEXTS = {"Sofa, couch": "Sofa", "a,b": "a,b", "traffic_light": "traffic light", "ca\u00adt\u200b": "cat", WORDS: WORDS}


def draw(name: str, *shape: int) -> Tensor:
    """Normal numbers in float64, others for every name."""
    stream = np.random.RandomState(zlib.crc32(name.encode()))  # of Generator it may change
    return torch.from_numpy(stream.standard_normal(shape))


@torch.no_grad()
def fill(module: nn.Module, name: str) -> None:
    """Every weight and statistic anew: nothing is left of how the module was initialised."""
    for key, value in module.state_dict().items():
        noise = draw(f"{name}.{key}", *value.shape)
        if key.endswith("running_var"):
            value.copy_(noise.abs() + 0.5)
        elif value.ndim > 1:
            value.copy_(1.5 * noise / value[0].numel() ** 0.5)
        elif value.dtype.is_floating_point:  # of norms around 1
            value.copy_(0.3 * noise + key.endswith("weight"))


def head(name: str) -> tuple[Head, ImageFeatures, Tensor]:
    """The head of one of HEADS in float64 and evaluation mode, with features of an image and unit texts."""
    made = Head(tiny_config(**SWITCHES, **HEADS[name]), CHANNELS, WIDTH).double().eval()
    fill(made, "head")
    parts = (draw(part, 1, n, *GRID) for part, n in (("embedding", CHANNELS), ("early", WIDTH), ("late", WIDTH)))
    return made, ImageFeatures(*parts), F.normalize(draw("texts", CLASSES, CHANNELS), dim=-1)


def stages(name: str) -> dict[str, Tensor]:
    """Every stage by the reference; the aggregation for the classes under the cap."""
    made, features, texts = head(name)
    leaf = texts.clone().requires_grad_()
    logits = reference.run_head(made, features, leaf)
    (gradient,) = torch.autograd.grad((logits * draw("seed", *logits.shape)).sum(), leaf)
    with torch.no_grad():
        unit, gcs, lcs = reference.similarity(made, features.embedding, texts)
        cap = made.config.class_cap or CLASSES
        kept = made.selector.cap(gcs[None], cap).rows if cap < CLASSES else torch.arange(CLASSES)
        assert lcs is not None and made.t2p is not None
        x, _ = reference.embed(made, gcs[kept], lcs[kept])
        layer: Any = made.layers[0]
        normed = layer.guidance_norm(reference.shared_guidance(made, features)[0])
        swin = reference.swin_block(layer.block2, reference.swin_block(layer.block1, x, normed), normed)
        guides = F.relu(made.text_guidance(unit[kept]))
        mixed = reference.across_classes(layer, swin, guides, made.config.class_pooling_eval)
        align = t2p(made.t2p, features.embedding, made.p2t(features.embedding, texts))
    return {"gcs": gcs, "lcs": lcs, "embedded": x, "swin": swin, "mixed": mixed, "logits": logits.detach()[0],
            "align": align[0, :2], "gradient": gradient}  # fmt: skip


def t2p(module: Any, pixels: Tensor, texts: Tensor) -> Tensor:
    """O [1, T, 4H, 4W], written out: two resized convolutions with BatchNorm and ReLU, then one kernel per class."""
    x = pixels
    for part in (module.first, module.second):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        conv, norm = part[0], part[1]
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        x = F.conv2d(x, conv.weight, padding=1)
        x = ((x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    x = F.conv2d(x, module.last.weight, module.last.bias)
    generated = module.text(texts[0])
    side = module.kernel_size
    return F.conv2d(x, generated[:, :-1].reshape(len(generated), -1, side, side), generated[:, -1], padding=side // 2)


def outputs() -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Logits, maps of alignment, auxiliary logits, and labels in 0..2 with some of 255, of two images."""
    aux = [draw(f"aux{i}", 2, 3, 4, 5) for i in range(3)]
    labels = (draw("labels", 2, 8, 10) * 1.5).abs().floor().long()
    return draw("logits", 2, 3, 4, 5), draw("align", 2, 3, 6, 7), aux, torch.where(labels > 2, 255, labels)


def plain_losses(config: LossConfig, ignore: int, weights: Tensor) -> dict[str, Tensor]:
    """The losses from their definitions, in float64, for labels of which 255 and `ignore` count for nothing."""
    logits, maps, aux, labels = outputs()
    labels = torch.where(labels == 255, ignore, labels)
    valid, batch = labels != ignore, len(labels)
    one_hot = torch.stack([(labels == t) & valid for t in range(3)], 1).double()
    pixels = one_hot.sum((0, 2, 3))

    def segmentation(given: Tensor) -> Tensor:
        resized = F.interpolate(given, labels.shape[1:], mode="bilinear", align_corners=False)
        if config.seg == "bce":
            terms = weights[:, None, None] * one_hot * F.softplus(-resized) + (1 - one_hot) * F.softplus(resized)
            return terms.mean()
        own = weights * pixels.clamp(min=1) ** -config.class_balance
        nll = -(one_hot * resized.log_softmax(1)).sum((0, 2, 3))
        return (own * nll).sum() / (own * pixels).sum()

    if config.align == "bce":
        rows, columns = ([i * size // n for i in range(n)] for n, size in zip(maps.shape[2:], (8, 10), strict=True))
        small = one_hot[:, :, rows][:, :, :, columns]
        align = (small * F.softplus(-maps) + (1 - small) * F.softplus(maps)).mean()
    else:
        resized = F.interpolate(maps, labels.shape[1:], mode="bilinear", align_corners=False)
        squares = ((resized - one_hot).square() * valid[:, None]).sum()
        align = squares / (batch if config.align_reduction == "sum" else 3 * valid.sum())
    seg, (first, *rest) = segmentation(logits), [segmentation(one) for one in aux[: config.aux_heads]]
    loss = seg + config.lambda_align * align + config.lambda_aux * first + sum(rest)
    return {"seg": seg, "align": align, "aux": first, "loss": loss}


def losses() -> dict[str, Tensor]:
    return {
        f"{name}.{ignore}.{key}": value
        for name, switches in LOSSES.items()
        for ignore in IGNORED
        for key, value in plain_losses(LossConfig(**switches), ignore, torch.tensor(WEIGHTS).double()).items()
    }


def text_model(templates: tuple[str, ...]) -> Any:
    model = tiny_model(template=templates, first_synonym=True).double()
    fill(model.clip, "clip")
    return model


@torch.no_grad()
def texts() -> dict[str, Tensor]:
    """The tokens of the first template's prompts, and embeddings for one template and for two."""
    encoder = text_model(TEMPLATES).text_encoder
    each = [reference.text_tower(encoder, [one.format(word) for word in TEXTS.values()]) for one in TEMPLATES]
    rows = encoder.encoder.tokenizer([TEMPLATES[0].format(word) for word in TEXTS.values()])
    mean = (each[0] + each[1]) / 2
    return {"tokens": rows, "one": each[0], "two": mean / mean.square().sum(-1, keepdim=True).sqrt()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in HEADS:
        save_file({k: v.contiguous() for k, v in stages(name).items()}, FOLDER / f"head_{name}.safetensors")
    save_file(losses(), FOLDER / "losses.safetensors")
    save_file(texts(), FOLDER / "texts.safetensors")
    save_file(scenes(), FOLDER / "scenes.safetensors")


if __name__ == "__main__":
    main()
