"""A made-up CAT-Seg checkpoint in the format of the published ones: detectron2's, with the optimizer's state."""

import io
from collections import OrderedDict

import torch

from fgaseg import FGASeg, ModelConfig
from fgaseg.weights import to_released

OFF = {"p2t_layers": 0, "t2p": False, "lcs": False}  # CAT-Seg is FGAseg without these


def catseg_model(seed: int = 0, patch: int = 16) -> FGASeg:
    """The released preset without FGAseg's parts, on narrow encoders."""
    architecture = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 2 * patch, "layers": 3, "width": 64, "patch_size": patch, "head_width": 64},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    }
    encoder = {"name": f"ViT-3x64-{patch}", "architecture": architecture}
    torch.manual_seed(seed)
    sizes = {"hidden": 32, "guidance_channels": (16, 16), "guidance_hidden": (16, 8), "decoder_channels": (32, 16)}
    return FGASeg(ModelConfig(preset="released", encoder=encoder, image_size=24 * patch, **OFF, **sizes)).eval()


def catseg_file(model: FGASeg) -> bytes:
    """What detectron2 saves: {"model", "optimizer", "scheduler", "iteration"}."""
    weights, _ = to_released(model.state_dict(), model.config, quick_gelu=True)
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(100)} for i in range(3)}
    groups = [{"lr": 2e-4, "params": [0, 1, 2]}]
    data = {"model": OrderedDict(weights), "optimizer": {"state": moments, "param_groups": groups},
            "scheduler": {"last_epoch": 3}, "iteration": 79999}  # fmt: skip
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()
