"""Warm start: the weights that a file has are taken, and the parts that CAT-Seg has not begin anew."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import CheckpointError
from .model_files import load_weights, read_weights
from .released import IGNORED, PADDING, our_key

if TYPE_CHECKING:
    from ..model import FGASeg

# P2Tformer, T2P branch, LCS with its embedding and fusions, auxiliary heads: what FGAseg adds to CAT-Seg
ADDED = re.compile(r"head\.(p2t|t2p|lcs|embed_local|fuse|aux_heads|decoder\.(fuse\d|local_up))\.")


@dataclass(frozen=True)
class Start:
    """What became of the keys of a warm start (our names; those left aside have the file's)."""

    taken: list[str]
    fresh: list[str]
    aside: list[str]

    def lines(self, source: str | Path) -> list[str]:
        """As text, by parts of the model."""
        told = {
            "taken from it": [".".join(key.split(".")[:2]) for key in self.taken],
            "not in it, start fresh": [".".join(key.split(".")[:3]) for key in self.fresh],
            "of it left aside": self.aside,
        }
        return [f"{source}: {len(keys)} weights {title}: {_families(keys)}" for title, keys in told.items() if keys]


def _families(keys: list[str]) -> str:
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".#", key) for key in keys))


def warm_start(model: FGASeg, source: str | Path) -> Start:
    """Fill the model from a saved model, or a checkpoint of CAT-Seg or of the released code (.pth, .safetensors).

    Weights of P2Tformer, T2P branch, LCS and auxiliary heads may be absent and stay as they are; pad tokens of the file
    are left aside by a model without them. Anything else that does not fit is a CheckpointError naming the keys, and
    nothing is changed.
    """
    given, own = read_weights(source), model.state_dict()
    foreign = not any(key in own for key in given)
    tensors: dict[str, Tensor] = {}
    aside: list[str] = []
    for key, value in given.items():
        ours = (our_key(key) or key) if foreign else key
        if ours.endswith(PADDING):
            value = value.reshape(-1)
        bare = key.removeprefix("sem_seg_head.").removeprefix("predictor.")
        structural = foreign and any(pattern.fullmatch(bare) for pattern in IGNORED)
        if structural or (ours not in own and ours.endswith(PADDING)):
            aside.append(key)
        elif ours in tensors:
            raise CheckpointError(f"{source}: two keys are the same weight, the second {key}; remove one")
        else:
            tensors[ours] = value
    fresh = [key for key in own if key not in tensors and ADDED.match(key)]
    load_weights(model, tensors | {key: own[key] for key in fresh}, source)
    if foreign and not model.architecture.get("quick_gelu"):
        warnings.warn(
            f"{source}: its encoders were trained with QuickGELU and this configuration's have the plain one; "
            "set model.encoder.quick_gelu=true",
            stacklevel=2,
        )
    return Start([key for key in own if key in tensors], fresh, aside)
