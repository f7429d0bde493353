"""Checkpoints of the released FGAseg code and of CAT-Seg (the same tree without FGAseg's parts): read and written.

Those of Pi-Seg, the same tree under other names, and of CAT-Seg on DeCLIP's EVA-02 are read.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import CheckpointError
from ..files import atomic_write
from ..kernels.window_attention.reference import window_mask
from .key_maps import RELEASED_KEYS, SHIFT_MASK, Translation
from .model_files import find_state_dict, load_weights, read_weights
from .recognition import CAT_SEG, Project, recognise
from .released_config import config_of

GAMMA, PATCHES = "head.p2t.gamma", "clip.visual.conv1.weight"
COUNTER = "num_batches_tracked"  # of BatchNorm, which never reads it with a fixed momentum


@dataclass(frozen=True)
class ConversionReport:
    """What became of every key. Keys are given by their names in the released code (or in the file read)."""

    kind: str  # FGAseg, CAT-Seg, Pi-Seg or CAT-Seg on DeCLIP's EVA-02
    mode: str  # fast or no_fast, and cat or add: the released code's four decoder modes
    encoder: str
    kernel_size: int | None  # K of LCS; None: without LCS
    mapped: list[str]
    ignored: list[str] = field(default_factory=list)  # in the file, structural
    training_only: list[str] = field(default_factory=list)  # in the file, of weights that only training uses
    foreign: list[str] = field(default_factory=list)  # in the file, and of no model that we know
    absent: list[str] = field(default_factory=list)  # not in the file, initial value kept: counters
    computed: list[str] = field(default_factory=list)  # buffers of the released code that are no weights of ours
    assumed: dict[str, Any] = field(default_factory=dict)  # switches that keys do not show, from the project's code
    different: dict[str, Any] = field(default_factory=dict)  # switches that the released code does not have

    def lines(self) -> list[str]:
        """The report as text."""
        kernel = "no LCS" if self.kernel_size is None else f"K = {self.kernel_size}"
        lines = [f"{self.kind}, {self.mode}, {self.encoder}, {kernel}: {len(self.mapped)} keys mapped"]
        groups = {
            "ignored (structural)": self.ignored,
            "left out (only training uses them)": self.training_only,
            "left over (not FGAseg's)": self.foreign,
            "not in the file, initial value kept": self.absent,
            "computed (structural)": self.computed,
        }
        lines += [f"{len(keys)} keys {title}: {', '.join(_families(keys))}" for title, keys in groups.items() if keys]
        if self.assumed:
            lines.append(f"assumed, as in the code of {self.kind}: " + _listed(self.assumed))
        if self.different:
            lines.append("WARNING: the released code does not compute these switches: " + _listed(self.different))
        return lines


def _families(keys: Iterable[str]) -> list[str]:
    """Keys that differ in their numbers only, once, and how many they are; a key without others as it is."""
    families: dict[str, list[str]] = {}
    for key in keys:
        families.setdefault(re.sub(r"\.\d+\.", ".#.", key), []).append(key)
    return [f"{family} ({len(of)})" if len(of) > 1 else of[0] for family, of in families.items()]


def _listed(switches: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in switches.items())


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A checkpoint as read: build a model from `config`, then `load_into` it."""

    source: str  # for messages
    project: Project
    config: ModelConfig
    weights: Translation

    def load_into(self, model: nn.Module, allow_foreign: bool = False) -> ConversionReport:
        """Copy the weights into a model of `config`; BatchNorm's counters may be absent and stay as they are.

        allow_foreign  leave out keys that no model of its project has, instead of refusing the file
        Raises CheckpointError naming the keys that are missing, unknown or of another shape; the model is unchanged.
        """
        own, given = model.state_dict(), self.weights
        self.check_shapes({key: tuple(value.shape) for key, value in own.items()}, allow_foreign)
        kind = _kind(self.config, self.project)
        fitting = {ours: tensor for ours, tensor in given.tensors.items() if ours in own}
        load_weights(model, {**own, **fitting}, self.source)
        return ConversionReport(
            kind,
            **_summary(self.config),
            mapped=list(dict.fromkeys(given.origin[ours] for ours in fitting)),
            ignored=list(given.structural),
            training_only=given.training_only,
            foreign=self._foreign(own),
            absent=list(self._absent(own).values()),
            assumed=_assumed(self.config, self.project),
        )

    def check_shapes(self, own: Mapping[str, tuple[int, ...]], allow_foreign: bool = False) -> None:
        """Raise the CheckpointError of `load_into` for a model whose weights have these shapes."""
        given, kind = self.weights, _kind(self.config, self.project)
        misfits = {
            "missing from the file": [key for ours, key in self._absent(own).items() if not ours.endswith(COUNTER)],
            f"unknown to {kind}": [] if allow_foreign else self._foreign(own),
            "of another shape": [
                f"{given.origin[ours]} {list(tensor.shape)}, not {list(own[ours])}"
                for ours, tensor in given.tensors.items()
                if ours in own and tuple(tensor.shape) != own[ours]
            ],
        }
        if any(misfits.values()):
            title = f"{self.source}: keys that do not fit a model of {kind}"
            misfits = {what: list(dict.fromkeys(keys)) for what, keys in misfits.items() if keys}
            lines = [f"  {len(keys)} {what}: {', '.join(_families(keys))}" for what, keys in misfits.items()]
            raise CheckpointError("\n".join([title, *lines]))

    def _foreign(self, own: Mapping[str, Any]) -> list[str]:
        """Keys of the file that the model does not have."""
        given = self.weights
        return list(dict.fromkeys([*given.unknown, *(key for ours, key in given.origin.items() if ours not in own)]))

    def _absent(self, own: Mapping[str, Any]) -> dict[str, str]:
        """Keys of the model that the file lacks, and what they are called there."""
        lacking = (ours for ours in own if ours not in self.weights.tensors)
        return {ours: self.project.keys.to_theirs(ours) or ours for ours in lacking}


def read_released(source: Mapping[str, Any] | str | Path, *words: str, **values: Any) -> ReleasedCheckpoint:
    """Read a checkpoint of the released FGAseg code, CAT-Seg, Pi-Seg or DeCLIP's CAT-Seg, and infer its configuration.

    source         path (.pth, .safetensors) or the dict that it holds, nested or not
    words, values  override the ModelConfig that was inferred (the rest is as in the `released` preset), in the form of
                   `ModelConfig.override`: "top_k=8", or top_k=8
    Raises CheckpointError for a file that is no such checkpoint, in one line that says what it seems to be;
    ConfigError for overrides.
    """
    name = "state dict" if isinstance(source, Mapping) else str(source)
    weights = find_state_dict(source, name) if isinstance(source, Mapping) else read_weights(source)
    project = recognise(weights, name)
    translation = project.keys.translate(weights, name)
    config = config_of(translation, name, project.keys, **project.known)
    return ReleasedCheckpoint(name, project, config.override(*words, **values), translation)


def _kind(config: ModelConfig, project: Project = CAT_SEG) -> str:
    has_parts = config.p2t_layers or config.t2p or config.lcs  # of FGAseg
    return "FGAseg" if has_parts else project.name


def _summary(config: ModelConfig) -> dict[str, Any]:
    mode = "fast" if config.fast else "no_fast"
    return {
        "mode": f"{mode} {config.fusion}" if config.lcs else mode,
        "encoder": config.encoder.name,
        "kernel_size": config.kernel_size if config.lcs else None,
    }


def _assumed(config: ModelConfig, project: Project) -> dict[str, Any]:
    """Switches that matter to this model and that neither its keys nor the overrides give."""
    names = ["template", "first_synonym", "inference", "class_cap", "pad_classes", "heads", "window"]
    if "window" not in config.model_fields_set:  # no shift mask, which shows the grid
        names.append("image_size")
    of_part = {
        "p2t_layers": ["p2t_heads", "p2t_value_positions"],
        "t2p": ["t2p_text"],
        "lcs": ["kernel_norm"],
        "fast": ["top_k", "topk_union", "released_fast_scores"],
    }
    names += [name for part, switches in of_part.items() if getattr(config, part) for name in switches]
    given = config.model_fields_set - {"image_size"}
    values = config.dump()
    assumed = {name: values[name] for name in names if name not in given}
    if "finetune" not in config.encoder.model_fields_set:
        assumed["encoder.finetune"] = values["encoder"]["finetune"]
    known = {name: value for name, value in project.known.items() if values[name] == value}
    if config.encoder.architecture is None:  # an encoder that open_clip describes: how it is read is left
        return assumed | known | {"encoder.dense": values["encoder"]["dense"]}
    return assumed | known | {"encoder.quick_gelu": True, "encoder.head_width": 64}


def to_released(
    weights: Mapping[str, Tensor], config: ModelConfig, *, quick_gelu: bool
) -> tuple[dict[str, Tensor], ConversionReport]:
    """The state dict that the released code loads strictly, and a report.

    weights     state dict of a model of `config`; the result shares its memory, and adds the windows' shift masks
    quick_gelu  whether the encoders have OpenAI's QuickGELU, as the released code's always have
    Raises CheckpointError for a model that has no counterpart there (`propagation: false`, another encoder).
    """
    if not config.propagation:
        raise CheckpointError("model: propagation is off; the released code always has aggregation and decoder")
    if PATCHES not in weights:
        raise CheckpointError("model: its encoder is no plain CLIP ViT; the released code has no counterpart")
    weights = dict(weights)
    if config.p2t_layers and GAMMA not in weights:  # a constant of ours is still a weight of theirs
        channels = weights["clip.visual.proj"].shape[1]
        weights[GAMMA] = weights["clip.visual.proj"].new_full((channels,), config.gamma)
    tensors: dict[str, Tensor] = {}
    for key, value in weights.items():
        theirs = RELEASED_KEYS.to_theirs(key)
        if theirs is None:
            raise CheckpointError(f"model: {key} has no counterpart in the released code")
        tensors[theirs] = RELEASED_KEYS.tensor_to_theirs(key, value.detach())
    *_, patch = weights[PATCHES].shape
    masks = shift_masks(config, patch)
    report = ConversionReport(
        _kind(config),
        **_summary(config),
        mapped=list(tensors),
        computed=list(masks),
        different=_different(config, quick_gelu),
    )
    return {**tensors, **masks}, report


def write_released(
    path: str | Path, weights: Mapping[str, Tensor], config: ModelConfig, *, quick_gelu: bool
) -> ConversionReport:
    """Write {"model": the released state dict} for torch.load, atomically. Raises as `to_released`, and OSError."""
    tensors, report = to_released(weights, config, quick_gelu=quick_gelu)
    buffer = io.BytesIO()  # torch.save on a file turns a full disk into an internal error
    torch.save({"model": {key: value.cpu() for key, value in tensors.items()}}, buffer)
    atomic_write(path, lambda file: file.write(buffer.getbuffer()))
    return report


def shift_masks(config: ModelConfig, patch: int) -> dict[str, Tensor]:
    """The buffers that the released code registers: 0 between tokens of one region of a shifted window, else -100."""
    grid, window = config.image_size // patch, config.window
    if grid <= window or grid % window:
        return {}
    mask = window_mask((grid, grid), window, window // 2, torch.device("cpu"))
    assert mask is not None  # a shifted grid always has one
    key = RELEASED_KEYS.prefix + SHIFT_MASK.replace("#", "{}")
    return {key.format(layer, 2): mask.clone() for layer in range(config.aggregation_layers)}  # the second block shifts


def _different(config: ModelConfig, quick_gelu: bool) -> dict[str, Any]:
    """Switches with which the released code, given these weights, would compute something else."""
    shaping = ("p2t_layers", "t2p", "lcs", "kernel_size", "fusion", "fast", "aggregation_layers", "hidden", "window",
               "guidance_channels", "guidance_hidden", "decoder_channels", "image_size")  # fmt: skip
    released = ModelConfig(preset="released", **{name: getattr(config, name) for name in shaping})
    harmless = {"preset", "encoder", "loss", "gamma", "gamma_trainable", "t2p_kernel_size"}
    expected = released.dump()
    found = {name: value for name, value in config.dump().items() if name not in harmless and value != expected[name]}
    kernel = config.t2p_kernel_size or config.kernel_size
    if config.t2p and kernel != released.t2p_kernel_size:
        found["t2p_kernel_size"] = kernel
    if config.fast and config.loss.aux_heads != released.loss.aux_heads:
        found["loss.aux_heads"] = config.loss.aux_heads
    if not quick_gelu:
        found["encoder.quick_gelu"] = False
    return found
