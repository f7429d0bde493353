"""What one training step of a configuration computes, stores and communicates, counted without running it.

    python benchmarks/training_cost.py configs/vitb16.yaml --classes 171

TFLOP of forward and backward for one image (torch.utils.flop_counter on meta tensors: no memory, no time), and MB of
weights, of gradients (what an all-reduce sends) and of Adam's state. The counter cannot look into custom ops, so the
head is counted twice: as it runs here (a lower bound) and in its plain form (an upper bound).
"""

import argparse
import json
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

import fgaseg.model.reference
from fgaseg import FGASeg
from fgaseg.config import load_config
from fgaseg.vocabulary import Vocabulary


def _tflop(forward: Callable[[], torch.Tensor], device: str = "meta") -> float:
    with FlopCounterMode(display=False) as counter, torch.device(device):
        forward().sum().backward()
    return counter.get_total_flops() / 1e12


def count(path: str, classes: int) -> dict[str, float]:
    config = load_config(path, "model.encoder.pretrained=null")
    with torch.device("meta"):
        model = FGASeg(config.model).train()
    side = config.train.image_size or config.data.crop
    names = [f"class {index}" for index in range(classes)]
    pixels = torch.empty(1, 3, side, side, device="meta")
    texts = torch.empty(classes, model.clip.visual.proj.shape[1], device="meta", requires_grad=True)
    parts = {
        "text_tower_tflop": _tflop(
            lambda: model.text_encoder.encode(names, graph=True).embeddings, "cpu"
        ),  # the tokens
        "image_tower_tflop": _tflop(lambda: torch.cat([x.flatten() for x in model.image_encoder(pixels)])),
        "image_and_head_tflop": _tflop(lambda: model(pixels, Vocabulary(tuple(names), texts)).logits),
        "image_and_plain_head_tflop": _tflop(
            lambda: fgaseg.model.reference.training_forward(model, pixels, texts).logits
        ),
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    return parts | {
        "weights_mb": sum(p.numel() for p in model.parameters()) * 4 / 1e6,
        "trained_parameters_m": sum(p.numel() for p in trained) / 1e6,
        "gradients_mb": sum(p.numel() for p in trained) * 4 / 1e6,
        "adam_mb": sum(p.numel() for p in trained) * 8 / 1e6,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--classes", type=int, default=171)
    options = parser.parse_args()
    print(json.dumps(count(options.config, options.classes), indent=2))
