"""Checkpoints of the released FGAseg code, and of CAT-Seg (the same tree without FGAseg's parts), to ours and back."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError
from ..files import atomic_write
from ..kernels.window_attention.reference import window_mask
from .model_files import load_weights, read_weights, state_dict

if TYPE_CHECKING:
    from ..model import FGASeg

M = TypeVar("M", bound="FGASeg")

# theirs, without PREFIX, and ours; # stands for a number, * for the rest
KEYS = (
    ("clip_model.*", "clip.*"),
    ("DCDT.gamma_text", "head.p2t.gamma"),
    ("DCDT.cross_atten_text.#.multihead_attn.*", "head.p2t.layers.#.attention.*"),
    ("DCDT.cross_atten_text.#.MLP.*", "head.p2t.layers.#.linear.*"),
    ("DCDT.cross_atten_text.#.norm.*", "head.p2t.layers.#.norm.*"),
    ("proj.vis.1.*", "head.t2p.first.*"),
    ("proj.vis.3.*", "head.t2p.second.*"),
    ("proj.vis.4.*", "head.t2p.last.*"),
    ("proj.txt.*", "head.t2p.text.*"),
    ("transformer.Local_align.txt.*", "head.lcs.text.*"),
    ("transformer.conv1.*", "head.embed_global.conv.*"),
    ("transformer.conv2.*", "head.embed_local.conv.*"),
    ("transformer.conv_cat.*", "head.fuse.linear.*"),
    ("transformer.guidance_projection.0.*", "head.image_guidance.*"),
    ("transformer.text_guidance_projection.0.*", "head.text_guidance.*"),
    ("transformer.decoder_guidance_projection.0.0.*", "head.early_guidance.*"),
    ("transformer.decoder_guidance_projection.1.0.*", "head.late_guidance.*"),
    ("upsample1.*", "head.early_up.*"),
    ("upsample2.*", "head.late_up.*"),
    ("transformer.layers.#.swin_block.guidance_norm.*", "head.layers.#.guidance_norm.*"),
    ("transformer.layers.#.swin_block.block_#.norm#.*", "head.layers.#.block#.norm#.*"),
    ("transformer.layers.#.swin_block.block_#.attn.q.*", "head.layers.#.block#.attention.q.linear.*"),
    ("transformer.layers.#.swin_block.block_#.attn.k.*", "head.layers.#.block#.attention.k.linear.*"),
    ("transformer.layers.#.swin_block.block_#.attn.v.*", "head.layers.#.block#.attention.v.*"),
    ("transformer.layers.#.swin_block.block_#.attn.proj.*", "head.layers.#.block#.attention.proj.*"),
    ("transformer.layers.#.swin_block.block_#.mlp.fc1.*", "head.layers.#.block#.mlp.0.*"),
    ("transformer.layers.#.swin_block.block_#.mlp.fc2.*", "head.layers.#.block#.mlp.2.*"),
    ("transformer.layers.#.attention.padding_tokens", "head.layers.#.classes.pad_token"),
    ("transformer.layers.#.attention.padding_guidance", "head.layers.#.classes.pad_guidance"),
    ("transformer.layers.#.attention.attention.q.*", "head.layers.#.classes.q.linear.*"),
    ("transformer.layers.#.attention.attention.k.*", "head.layers.#.classes.k.linear.*"),
    ("transformer.layers.#.attention.attention.v.*", "head.layers.#.classes.v.*"),
    ("transformer.layers.#.attention.MLP.*", "head.layers.#.classes.mlp.*"),
    ("transformer.layers.#.attention.norm#.*", "head.layers.#.classes.norm#.*"),
    ("transformer.conv_cat_decoder_#.*", "head.decoder.fuse#.linear.*"),
    ("transformer.corr_local_decoder_projection.0.*", "head.decoder.local_up.up.*"),
    ("transformer.corr_local_decoder_projection.1.double_conv.0.*", "head.decoder.local_up.conv1.*"),
    ("transformer.corr_local_decoder_projection.1.double_conv.1.*", "head.decoder.local_up.norm1.*"),
    ("transformer.corr_local_decoder_projection.1.double_conv.3.*", "head.decoder.local_up.conv2.*"),
    ("transformer.corr_local_decoder_projection.1.double_conv.4.*", "head.decoder.local_up.norm2.*"),
    ("transformer.decoder#.up.*", "head.decoder.stage#.up.*"),
    ("transformer.decoder#.conv.double_conv.0.*", "head.decoder.stage#.conv1.conv.*"),
    ("transformer.decoder#.conv.double_conv.1.*", "head.decoder.stage#.norm1.*"),
    ("transformer.decoder#.conv.double_conv.3.*", "head.decoder.stage#.conv2.*"),
    ("transformer.decoder#.conv.double_conv.4.*", "head.decoder.stage#.norm2.*"),
    ("transformer.head_auxi_#.*", "head.aux_heads.#.conv.*"),
    ("transformer.head.*", "head.decoder.head.conv.*"),
)
PREFIX = "sem_seg_head.predictor."
SHIFT_MASK = "transformer.layers.#.swin_block.block_#.attn_mask"
# recomputed by whoever needs them, or never read: the windows' masks, what CLIP's archives and detectron2 carry along
STRUCTURAL = (SHIFT_MASK, "clip_model.attn_mask", "clip_model.input_resolution", "clip_model.context_length",
              "clip_model.vocab_size", "pixel_mean", "pixel_std", "clip_pixel_mean", "clip_pixel_std")  # fmt: skip
COUNTER = "num_batches_tracked"  # of BatchNorm, which never reads it with a fixed momentum
PADDING = ("classes.pad_token", "classes.pad_guidance")  # [1, 1, hidden] there, [hidden] here
HEAD_WIDTH = 64  # of every CLIP of OpenAI's
GRID = 24  # of the released training, where no shift mask tells


def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(re.escape(key).replace(r"\#", r"(\d+)").replace(r"\*", r"(.+)"))


def _replacement(key: str) -> str:
    numbers = iter(range(1, 10))
    return re.sub(r"[#*]", lambda _: rf"\g<{next(numbers)}>", key)


TO_OURS = tuple((_pattern(theirs), _replacement(ours)) for theirs, ours in KEYS)
TO_THEIRS = tuple((_pattern(ours), _replacement(theirs)) for theirs, ours in KEYS)
IGNORED = tuple(_pattern(key) for key in STRUCTURAL)


def _translate(key: str, table: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    return next((m.expand(to) for pattern, to in table if (m := pattern.fullmatch(key))), None)


def our_key(key: str) -> str | None:
    """Our name of a released key, with or without the prefixes of the whole model; None: we have no such weight."""
    return _translate(_bare(key), TO_OURS)


def released_key(key: str) -> str | None:
    """The released name of one of our keys; None: the released code has no such weight."""
    bare = _translate(key, TO_THEIRS)
    return bare if bare is None or bare.startswith("upsample") else PREFIX + bare


def _bare(key: str) -> str:
    return key.removeprefix("sem_seg_head.").removeprefix("predictor.")


@dataclass(frozen=True)
class Report:
    """What became of every key. Keys bear the name that they have in the released code (or in the file read)."""

    kind: str  # FGAseg or CAT-Seg
    mode: str  # fast or no_fast, and cat or add: the released code's four decoder modes
    encoder: str
    kernel_size: int | None  # K of LCS; None: without LCS
    mapped: list[str]
    ignored: list[str] = field(default_factory=list)  # in the file, structural
    foreign: list[str] = field(default_factory=list)  # in the file, and nothing that we know
    absent: list[str] = field(default_factory=list)  # not in the file, left at its initial value: counters
    computed: list[str] = field(default_factory=list)  # to the released code: not weights of ours, made anew
    assumed: dict[str, Any] = field(default_factory=dict)  # switches that keys do not tell, as the preset has them
    different: dict[str, Any] = field(default_factory=dict)  # switches that the released code cannot follow

    def lines(self) -> list[str]:
        """The report as text."""
        kernel = "no LCS" if self.kernel_size is None else f"K = {self.kernel_size}"
        lines = [f"{self.kind}, {self.mode}, {self.encoder}, {kernel}: {len(self.mapped)} keys mapped"]
        told = {
            "ignored (structural)": self.ignored,
            "left over (not FGAseg's)": self.foreign,
            "not in the file, initial value kept": self.absent,
            "computed (structural)": self.computed,
        }
        lines += [f"{len(keys)} keys {title}: {', '.join(_families(keys))}" for title, keys in told.items() if keys]
        if self.assumed:
            lines.append("assumed, as the released preset has it: " + _listed(self.assumed))
        if self.different:
            lines.append("WARNING: the released code does not compute these switches: " + _listed(self.different))
        return lines


def _families(keys: Iterable[str]) -> list[str]:
    """Keys that differ in their numbers only, once."""
    return list(dict.fromkeys(re.sub(r"\.\d+\.", ".#.", key) for key in keys))


def _listed(switches: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in switches.items())


def read_config(weights: Mapping[str, Tensor], source: str | Path = "state dict") -> ModelConfig:
    """The configuration of a released or CAT-Seg state dict: `released`, and what its keys and shapes tell.

    weights  released names without prefix to tensors (meta tensors will do)
    Only what was read off counts as written down. Raises CheckpointError when a key that tells is absent or makes no
    sense.
    """

    def shape(key: str, *sizes: int) -> tuple[int, ...]:
        if key not in weights:
            raise CheckpointError(f"{source}: not a checkpoint of the released FGAseg code or of CAT-Seg: it has no "
                                  f"{key} (with or without {PREFIX})")  # fmt: skip
        if weights[key].ndim not in sizes:
            raise CheckpointError(f"{source}: {key} {list(weights[key].shape)}: {sizes[0]} dimensions are needed")
        return tuple(weights[key].shape)

    def odd_root(key: str, rows: int, columns: int) -> int:
        root = math.isqrt(max(rows, 0) // columns)
        if root**2 * columns != rows or root % 2 == 0:
            raise CheckpointError(f"{source}: {key} {list(weights[key].shape)}: its rows, less the bias's one, must be "
                                  f"{columns} channels times an odd number squared")  # fmt: skip
        return root

    def count(pattern: str) -> int:
        found = {int(m[1]) for key in weights if (m := _pattern(pattern).match(key))}
        return max(found) + 1 if found else 0

    encoder = _read_encoder(weights, shape, count, source)
    channels = encoder["architecture"]["embed_dim"]
    patch = encoder["architecture"]["vision_cfg"]["patch_size"]
    early, late = shape("upsample1.weight", 4)[1], shape("upsample2.weight", 4)[1]
    guidance = tuple(shape(f"transformer.decoder_guidance_projection.{i}.0.weight", 4)[0] for i in (0, 1))
    decoder = tuple(shape(f"transformer.decoder{i}.conv.double_conv.0.weight", 4)[0] for i in (1, 2))
    data: dict[str, Any] = {
        "preset": "released",
        "encoder": encoder,
        "p2t_layers": count("DCDT.cross_atten_text.#."),
        "t2p": "proj.txt.weight" in weights,
        "lcs": "transformer.Local_align.txt.weight" in weights,
        "hidden": shape("transformer.conv1.weight", 4)[0],
        "aggregation_layers": count("transformer.layers.#."),
        "guidance_channels": (early, late),
        "guidance_hidden": guidance,
        "decoder_channels": decoder,
        "fast": "transformer.head_auxi_0.weight" in weights,
        "image_size": GRID * patch,
    }
    if data["lcs"]:
        rows = shape("transformer.Local_align.txt.weight", 2)[0] - 1
        data["kernel_size"] = odd_root("transformer.Local_align.txt.weight", rows, channels)
        data["fusion"] = "cat" if "transformer.conv_cat.weight" in weights else "add"
    if data["t2p"]:
        rows = shape("proj.txt.weight", 2)[0] - 1
        data["t2p_kernel_size"] = odd_root("proj.txt.weight", rows, channels // 2)
    if data["fast"]:
        data["loss"] = {"aux_heads": count("transformer.head_auxi_#.")}
    if not any(key.endswith("padding_tokens") for key in weights):  # one length for both: no padding, no cap
        data |= {"pad_classes": 0, "class_cap": None}
    mask = next((weights[key] for key in weights if _pattern(SHIFT_MASK).fullmatch(key)), None)
    if mask is not None and mask.ndim == 3:  # [windows of the grid, window², window²]
        data["window"] = math.isqrt(mask.shape[1])
        data["image_size"] = math.isqrt(mask.shape[0]) * data["window"] * patch
    return ModelConfig.from_json(json.dumps(data), str(source))


def _read_encoder(
    weights: Mapping[str, Tensor],
    shape: Callable[..., tuple[int, ...]],
    count: Callable[[str], int],
    source: str | Path,
) -> dict[str, Any]:
    width, _, patch, _ = shape("clip_model.visual.conv1.weight", 4)
    rows = shape("clip_model.visual.positional_embedding", 2)[0] - 1
    if math.isqrt(rows) ** 2 != rows:
        raise CheckpointError(f"{source}: clip_model.visual.positional_embedding: {rows} rows besides the class "
                              "token's are not a square grid")  # fmt: skip
    context, text_width = shape("clip_model.positional_embedding", 2)
    layers = count("clip_model.visual.transformer.resblocks.#.")
    sizes = {12: "B", 24: "L", 32: "H"}
    encoder: dict[str, Any] = {
        "name": f"ViT-{sizes.get(layers, f'{layers}x{width}')}-{patch}",
        "architecture": {
            "embed_dim": shape("clip_model.visual.proj", 2)[1],
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": math.isqrt(rows) * patch,
                "layers": layers,
                "width": width,
                "patch_size": patch,
                "head_width": HEAD_WIDTH,
            },
            "text_cfg": {
                "context_length": context,
                "vocab_size": shape("clip_model.token_embedding.weight", 2)[0],
                "width": text_width,
                "heads": text_width // HEAD_WIDTH,
                "layers": count("clip_model.transformer.resblocks.#."),
            },
        },
    }  # fmt: skip
    prompts = "clip_model.visual.transformer.prompt_tokens"
    if prompts in weights:
        encoder |= {"finetune": "prompt", "prompt_tokens": shape(prompts, 3)[1]}
    return encoder


def load(cls: type[M], source: Mapping[str, Any] | str | Path, overrides: list[str] | None = None,
         allow_foreign: bool = False) -> tuple[M, Report]:  # fmt: skip
    """The model of a released or CAT-Seg checkpoint, in evaluation mode, and what became of its keys.

    source         path (.pth, .safetensors) or the dict that it holds, nested or not
    overrides      dotted switches over what was read off and the `released` preset, such as "top_k=8"
    allow_foreign  leave keys that no FGAseg or CAT-Seg model has aside and list them, instead of refusing the file
    Raises CheckpointError naming every key that is missing, unknown or of another shape; ConfigError for overrides.
    """
    name = "state dict" if isinstance(source, Mapping) else str(source)
    given = state_dict(source, name) if isinstance(source, Mapping) else read_weights(source)
    files = _bare_names(given, name)
    weights = {bare: value for bare, (_, value) in files.items()}
    read = read_config(weights, name)
    config = read.override(overrides or [])
    model = cls(config)
    own = model.state_dict()
    tensors: dict[str, Tensor] = {}
    mapped: list[str] = []
    ignored: list[str] = []
    foreign: list[str] = []
    shapes: list[str] = []
    for bare, (key, value) in files.items():
        ours = _translate(bare, TO_OURS)
        if any(pattern.fullmatch(bare) for pattern in IGNORED):
            ignored.append(key)
        elif ours is None or ours not in own:
            foreign.append(key)
        else:
            mapped.append(key)
            tensors[ours] = value.reshape(-1) if ours.endswith(PADDING) else value
            if tensors[ours].shape != own[ours].shape:
                shapes.append(f"{key} {list(value.shape)}, not {list(own[ours].shape)}")
    absent = {ours: str(released_key(ours)) for ours in own if ours not in tensors}
    _refuse(name, {
        "missing from the file": [key for ours, key in absent.items() if not ours.endswith(COUNTER)],
        "unknown to FGAseg and CAT-Seg": [] if allow_foreign else foreign,
        "of another shape": shapes,
    })  # fmt: skip
    load_weights(model, {**own, **tensors}, name)
    return model.eval(), Report(
        **_described(config),
        mapped=mapped,
        ignored=ignored,
        foreign=foreign,
        absent=list(absent.values()),
        assumed=_assumed(config),
    )


def _bare_names(given: Mapping[str, Tensor], source: str) -> dict[str, tuple[str, Tensor]]:
    """Names without prefix, to the file's own name and the tensor."""
    files: dict[str, tuple[str, Tensor]] = {}
    for key, value in given.items():
        bare = _bare(key)
        if bare in files:
            raise CheckpointError(f"{source}: {files[bare][0]} and {key} are the same weight; remove one")
        files[bare] = (key, value)
    if any(_translate(key, TO_THEIRS) for key in files):
        raise CheckpointError(f"{source}: an fgaseg model already (its keys begin with clip. and head.); "
                              "FGASeg.from_pretrained reads it")  # fmt: skip
    return files


def _refuse(source: str, wrong: Mapping[str, list[str]]) -> None:
    """One error for all keys that do not fit, each of them named."""
    lines = [f"  {len(keys)} {kind}: {', '.join(keys)}" for kind, keys in wrong.items() if keys]
    if lines:
        raise CheckpointError("\n".join([f"{source}: keys that do not fit a released FGAseg or CAT-Seg model", *lines]))


def _described(config: ModelConfig) -> dict[str, Any]:
    descended = config.p2t_layers or config.t2p or config.lcs
    mode = "fast" if config.fast else "no_fast"
    return {
        "kind": "FGAseg" if descended else "CAT-Seg",
        "mode": f"{mode} {config.fusion}" if config.lcs else mode,
        "encoder": config.encoder.name,
        "kernel_size": config.kernel_size if config.lcs else None,
    }


def _assumed(config: ModelConfig) -> dict[str, Any]:
    """Switches that matter to this model and that neither its keys nor the user told."""
    always = ["template", "first_synonym", "inference", "class_cap", "pad_classes", "heads", "window"]
    if "window" not in config.model_fields_set:  # no shift mask, which tells the grid
        always.append("image_size")
    parts = {
        "p2t_layers": ["p2t_heads", "p2t_value_positions"],
        "t2p": ["t2p_text"],
        "lcs": ["kernel_norm"],
        "fast": ["top_k", "topk_union", "released_fast_scores"],
    }
    names = always + [name for part, its in parts.items() if getattr(config, part) for name in its]
    told = config.model_fields_set - {"image_size"}
    dump = config.dump()
    assumed = {name: dump[name] for name in names if name not in told}
    encoder = config.encoder
    assumed |= {
        f"encoder.{name}": dump["encoder"][name] for name in ("finetune",) if name not in encoder.model_fields_set
    }
    return assumed | {"encoder.quick_gelu": True, "encoder.head_width": 64}


def to_released(model: FGASeg) -> tuple[dict[str, Tensor], Report]:
    """The state dict that the released code loads strictly (shift masks included), sharing memory, and a report.

    Raises CheckpointError for a model that has no counterpart there (`propagation: false`).
    """
    config = model.config
    if not config.propagation:
        raise CheckpointError("model: propagation is off; the released code always has aggregation and decoder")
    weights = dict(model.state_dict())
    if config.p2t_layers:
        weights["head.p2t.gamma"] = model.head.p2t.gamma  # a constant is no weight of ours, but one of theirs
    tensors: dict[str, Tensor] = {}
    for key, value in weights.items():
        theirs = released_key(key)
        if theirs is None:
            raise CheckpointError(f"model: {key} has no counterpart in the released code")
        tensors[theirs] = value.detach().reshape(1, 1, -1) if key.endswith(PADDING) else value.detach()
    masks = _shift_masks(config, model.patch)
    report = Report(**_described(config), mapped=list(tensors), computed=list(masks), different=_different(model))
    return {**tensors, **masks}, report


def save(model: FGASeg, path: str | Path) -> Report:
    """Write {"model": the released state dict} for torch.load, atomically. Raises as `to_released`, and OSError."""
    tensors, report = to_released(model)
    buffer = io.BytesIO()  # torch.save on a file turns a full disk into an internal error
    torch.save({"model": {key: value.cpu() for key, value in tensors.items()}}, buffer)
    atomic_write(path, lambda file: file.write(buffer.getbuffer()))
    return report


def _shift_masks(config: ModelConfig, patch: int) -> dict[str, Tensor]:
    """What the released code registers: 0 between tokens of one region of a shifted window, else -100."""
    grid, window = config.image_size // patch, config.window
    if grid <= window or grid % window:
        return {}
    mask = window_mask((grid, grid), window, window // 2, torch.device("cpu"))
    assert mask is not None  # a shifted grid always has one
    key = PREFIX + "transformer.layers.{}.swin_block.block_2.attn_mask"
    return {key.format(i): mask.clone() for i in range(config.aggregation_layers)}


def _different(model: FGASeg) -> dict[str, Any]:
    """Switches with which the released code, given these weights, would compute something else."""
    config = model.config
    shaping = ("p2t_layers", "t2p", "lcs", "kernel_size", "fusion", "fast", "aggregation_layers", "hidden", "window",
               "guidance_channels", "guidance_hidden", "decoder_channels", "image_size")  # fmt: skip
    released = ModelConfig(preset="released", **{name: getattr(config, name) for name in shaping})
    harmless = {"preset", "encoder", "loss", "gamma", "gamma_trainable", "t2p_kernel_size"}
    found = {name: value for name, value in config.dump().items()
             if name not in harmless and value != released.dump()[name]}  # fmt: skip
    kernel = config.t2p_kernel_size or config.kernel_size
    if config.t2p and kernel != released.t2p_kernel_size:
        found["t2p_kernel_size"] = kernel
    if config.fast and config.loss.aux_heads != released.loss.aux_heads:
        found["loss.aux_heads"] = config.loss.aux_heads
    if not model.architecture.get("quick_gelu"):
        found["encoder.quick_gelu"] = False
    return found
