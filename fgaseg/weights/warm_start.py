"""Warm start: training begins from the weights of a file, and what CAT-Seg does not have is newly initialised."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from .key_maps import PAD_TOKENS
from .model_files import load_weights, read_weights
from .recognition import recognise

# P2Tformer, T2P branch, LCS with its embedding and fusions, auxiliary heads: what FGAseg adds to CAT-Seg
ADDED = re.compile(r"head\.(p2t|t2p|lcs|embed_local|fuse|aux_heads|decoder\.(fuse\d|local_up))\.")


@dataclass(frozen=True)
class WarmStartReport:
    """What became of the keys of a warm start.

    loaded   our keys that the file fills
    fresh    our keys that it lacks, which keep their initial value
    skipped  keys of the file that were not used
    """

    loaded: list[str]
    fresh: list[str]
    skipped: list[str]

    def lines(self, source: str | Path) -> list[str]:
        """As text, by parts of the model."""
        groups = {
            "taken from it": [".".join(key.split(".")[:2]) for key in self.loaded],
            "not in it, start fresh": [".".join(key.split(".")[:3]) for key in self.fresh],
            "of it left aside": self.skipped,
        }
        return [f"{source}: {len(keys)} weights {title}: {_families(keys)}" for title, keys in groups.items() if keys]


def _families(keys: list[str]) -> str:
    """Keys that differ in their numbers only, once."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".#", key) for key in keys))


def warm_start(model: nn.Module, source: str | Path, *, quick_gelu: bool) -> WarmStartReport:
    """Fill an FGASeg from a saved model, or a checkpoint of CAT-Seg, Pi-Seg or the released code (.pth, .safetensors).

    quick_gelu  whether the model's encoders have QuickGELU; warns where a released checkpoint meets one that has not
    Weights of P2Tformer, T2P branch, LCS and auxiliary heads may be absent and keep their value; pad tokens of the file
    are skipped where the model has none. Anything else that does not fit is a CheckpointError naming the keys, and
    nothing is changed.
    """
    given, own = read_weights(source), model.state_dict()
    released = not any(key in own for key in given)
    tensors, origin = _translated(given, source) if released else (dict(given), {key: key for key in given})
    for key in [key for key in tensors if key not in own and key.endswith(PAD_TOKENS)]:
        del tensors[key]  # pad tokens of a model that pads
    fresh = [key for key in own if key not in tensors and ADDED.match(key)]
    load_weights(model, tensors | {key: own[key] for key in fresh}, source)
    if released and not quick_gelu:
        warnings.warn(
            f"{source}: its encoders were trained with QuickGELU and this configuration's have the plain one; "
            "set model.encoder.quick_gelu=true",
            stacklevel=2,
        )
    taken = {origin[key] for key in tensors}
    return WarmStartReport([key for key in own if key in tensors], fresh, [key for key in given if key not in taken])


def _translated(weights: Mapping[str, Tensor], source: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Under our keys, and for each of these the key in the file; unknown keys as they are: the model refuses them."""
    found = recognise(weights, str(source)).keys.translate(weights, str(source))
    unknown = {key: weights[key] for key in found.unknown}
    return {**found.tensors, **unknown}, {**found.origin, **{key: key for key in unknown}}
