"""Warm start: training begins from the weights of a file, and what CAT-Seg does not have is newly initialised."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .key_maps import PAD_TOKENS, Translation
from .model_files import load_weights, read_weights
from .recognition import recognise
from .released_config import EVA
from .saved_config import is_saved_model, read_config

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


def warm_start(model: nn.Module, source: str | Path, *, encoder: Mapping[str, Any]) -> WarmStartReport:
    """Fill an FGASeg from a saved model, or a checkpoint of CAT-Seg, Pi-Seg or the released code (.pth, .safetensors).

    encoder  what the model's encoder does beside its weights: quick_gelu, dense, mean, std. Warns where the weights are
             of an encoder that does otherwise

    Weights of P2Tformer, T2P branch, LCS and auxiliary heads may be absent and keep their value; pad tokens of the file
    are skipped where the model has none. Anything else that does not fit is a CheckpointError naming the keys, and
    nothing is changed.
    """
    given, own = read_weights(source), model.state_dict()
    released = not any(key in own for key in given)
    found = _translated(given, source) if released else Translation(dict(given), {key: key for key in given})
    tensors = dict(found.tensors)
    for key in [key for key in tensors if key not in own and key.endswith(PAD_TOKENS)]:
        del tensors[key]  # pad tokens of a model that pads
    fresh = [key for key in own if key not in tensors and ADDED.match(key)]
    load_weights(model, tensors | {key: own[key] for key in fresh}, source)
    theirs = _released_encoder(tensors) if released else _saved_encoder(Path(source))
    if different := {key: value for key, value in theirs.items() if key in encoder and encoder[key] != value}:
        words = " ".join(f"model.encoder.{key}={json.dumps(value)}" for key, value in different.items())
        warnings.warn(
            f"{source}: its weights are of an encoder that does otherwise than this configuration's; set {words}",
            stacklevel=2,
        )
    taken = {found.origin[key] for key in tensors}
    return WarmStartReport([key for key in own if key in tensors], fresh, [key for key in given if key not in taken])


def _translated(weights: Mapping[str, Tensor], source: str | Path) -> Translation:
    """Under our keys; unknown keys as they are: the model refuses them."""
    found = recognise(weights, str(source)).keys.translate(weights, str(source))
    unknown = {key: weights[key] for key in found.unknown}
    return Translation({**found.tensors, **unknown}, {**found.origin, **{key: key for key in unknown}})


def _released_encoder(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the encoder of a released checkpoint does beside its weights."""
    eva = any(key.startswith(EVA) for key in weights)  # DeCLIP's
    return {"quick_gelu": not eva, "dense": "csa" if eva else "value"}


def _saved_encoder(folder: Path) -> dict[str, Any]:
    """What the encoder of a saved model does beside its weights; nothing is known of a file without its folder."""
    if not is_saved_model(folder):
        return {}
    encoder = read_config(folder / "config.json", folder)[0].dump()["encoder"]
    found = {"quick_gelu": bool((encoder["architecture"] or {}).get("quick_gelu"))}
    return found | {key: encoder[key] for key in ("dense", "mean", "std") if encoder[key] is not None}
