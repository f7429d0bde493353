"""Keys of other projects' state dicts, and ours for the same weights."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import CheckpointError


def key_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of keys as a regular expression: # matches a number, * the rest of the key; each is a group."""
    return re.compile(re.escape(pattern).replace(r"\#", r"(\d+)").replace(r"\*", r"(.+)"))


def _template(pattern: str) -> str:
    """The same pattern as a replacement that puts the matched numbers and rest back in, in order."""
    groups = itertools.count(1)
    return re.sub(r"[#*]", lambda _: rf"\g<{next(groups)}>", pattern)


@dataclass(frozen=True)
class Translation:
    """A state dict of another project under our keys and in our shapes.

    origin         for each of our keys the key in the file
    structural     what the file holds besides weights, under its keys there
    training_only  keys of weights that only training uses
    unknown        keys of the file that the map does not know
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    structural: dict[str, Tensor] = field(default_factory=dict)
    training_only: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


class KeyMap:
    """Translates the keys of another project's state dict to ours and back.

    patterns       (their key without prefix, our key), with # for a number and * for the rest of the key
    fused          (their key, our keys): their tensor holds ours one after the other, in equal parts
    prefixes       that their keys begin with, in order; a file may lack any of them
    unprefixed     beginnings of their keys that never have the prefixes
    structural     patterns of their keys that hold no weight: buffers that are recomputed, or never read
    training_only  patterns of their keys whose weights only training uses
    flattened      endings of our keys whose tensors [n] are [1, 1, n] in their code
    """

    def __init__(
        self,
        patterns: Sequence[tuple[str, str]],
        *,
        fused: Sequence[tuple[str, tuple[str, ...]]] = (),
        prefixes: tuple[str, ...] = (),
        unprefixed: tuple[str, ...] = (),
        structural: tuple[str, ...] = (),
        training_only: tuple[str, ...] = (),
        flattened: tuple[str, ...] = (),
    ) -> None:
        self.prefixes, self.unprefixed, self.flattened = prefixes, unprefixed, flattened
        self._to_ours = [(key_pattern(theirs), _template(ours)) for theirs, ours in patterns]
        self._fused = [(key_pattern(theirs), [_template(part) for part in ours]) for theirs, ours in fused]
        pairs = [*((theirs, part) for theirs, ours in fused for part in ours), *patterns]
        self._to_theirs = [(key_pattern(ours), _template(theirs)) for theirs, ours in pairs]
        self._structural = [key_pattern(pattern) for pattern in structural]
        self._training_only = [key_pattern(pattern) for pattern in training_only]

    @property
    def prefix(self) -> str:
        return "".join(self.prefixes)

    def bare(self, key: str) -> str:
        """One of their keys without the prefixes."""
        for prefix in self.prefixes:
            key = key.removeprefix(prefix)
        return key

    def to_ours(self, key: str) -> str | None:
        """Our key for one of theirs, with or without prefixes; None if we have no such weight, or several for it."""
        return None if self.parts(key) else _rename(self.bare(key), self._to_ours)

    def parts(self, key: str) -> list[str]:
        """Our keys for one of theirs that holds several; none for any other."""
        bare = self.bare(key)
        found = ((match, parts) for pattern, parts in self._fused if (match := pattern.fullmatch(bare)))
        return [match.expand(part) for match, parts in found for part in parts]

    def to_theirs(self, key: str) -> str | None:
        """Their key, prefixes included, for one of ours; None if they have no such weight."""
        bare = _rename(key, self._to_theirs)
        return bare if bare is None or bare.startswith(self.unprefixed) else self.prefix + bare

    def is_structural(self, key: str) -> bool:
        """Whether one of their keys holds no weight."""
        return any(pattern.fullmatch(self.bare(key)) for pattern in self._structural)

    def is_training_only(self, key: str) -> bool:
        """Whether one of their keys is of a weight that only training uses."""
        return any(pattern.fullmatch(self.bare(key)) for pattern in self._training_only)

    def is_known(self, key: str) -> bool:
        """Whether their code has such a key."""
        ours = self.to_ours(key) is not None or self.parts(key)
        return bool(ours) or self.is_structural(key) or self.is_training_only(key)

    def tensor_to_ours(self, key: str, tensor: Tensor) -> Tensor:
        return tensor.reshape(-1) if key.endswith(self.flattened) else tensor

    def tensor_to_theirs(self, key: str, tensor: Tensor) -> Tensor:
        return tensor.reshape(1, 1, -1) if key.endswith(self.flattened) else tensor

    def translate(self, weights: Mapping[str, Tensor], source: str) -> Translation:
        """A whole state dict. Raises CheckpointError, naming `source`, if two of its keys are the same weight."""
        found = Translation()
        for key, tensor in weights.items():
            pieces: dict[str, Tensor] = {}
            if self.is_structural(key):
                found.structural[key] = tensor
            elif self.is_training_only(key):
                found.training_only.append(key)
            elif not (pieces := self._pieces(key, tensor)):
                found.unknown.append(key)
            for ours, piece in pieces.items():
                if ours in found.origin:
                    raise CheckpointError(f"{source}: {found.origin[ours]} and {key} are the same weight; remove one")
                found.tensors[ours], found.origin[ours] = self.tensor_to_ours(ours, piece), key
        return found

    def _pieces(self, key: str, tensor: Tensor) -> dict[str, Tensor]:
        """One of their weights under our keys; nothing if it is unknown, or cannot be parted."""
        if parts := self.parts(key):
            pieces = tensor.chunk(len(parts)) if tensor.ndim else ()
            return dict(zip(parts, pieces, strict=True)) if len(pieces) == len(parts) else {}
        ours = self.to_ours(key)
        return {} if ours is None else {ours: tensor}


def _rename(key: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
    return next((match.expand(template) for pattern, template in table if (match := pattern.fullmatch(key))), None)


SHIFT_MASK = "transformer.layers.#.swin_block.block_#.attn_mask"  # of the windows; bare, as all patterns below

# CAT-Seg: encoders, aggregation and decoder
CATSEG = (
    ("clip_model.*", "clip.*"),
    ("transformer.conv1.*", "head.embed_global.conv.*"),
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
    ("transformer.decoder#.up.*", "head.decoder.stage#.up.*"),
    ("transformer.decoder#.conv.double_conv.0.*", "head.decoder.stage#.conv1.conv.*"),
    ("transformer.decoder#.conv.double_conv.1.*", "head.decoder.stage#.norm1.*"),
    ("transformer.decoder#.conv.double_conv.3.*", "head.decoder.stage#.conv2.*"),
    ("transformer.decoder#.conv.double_conv.4.*", "head.decoder.stage#.norm2.*"),
    ("transformer.head.*", "head.decoder.head.conv.*"),
)
# what FGAseg adds to it
FGASEG_PARTS = (
    ("DCDT.gamma_text", "head.p2t.gamma"),
    ("DCDT.cross_atten_text.#.multihead_attn.*", "head.p2t.layers.#.attention.*"),
    ("DCDT.cross_atten_text.#.MLP.*", "head.p2t.layers.#.linear.*"),
    ("DCDT.cross_atten_text.#.norm.*", "head.p2t.layers.#.norm.*"),
    ("proj.vis.1.*", "head.t2p.first.*"),
    ("proj.vis.3.*", "head.t2p.second.*"),
    ("proj.vis.4.*", "head.t2p.last.*"),
    ("proj.txt.*", "head.t2p.text.*"),
    ("transformer.Local_align.txt.*", "head.lcs.text.*"),
    ("transformer.conv2.*", "head.embed_local.conv.*"),
    ("transformer.conv_cat.*", "head.fuse.linear.*"),
    ("transformer.conv_cat_decoder_#.*", "head.decoder.fuse#.linear.*"),
    ("transformer.corr_local_decoder_projection.0.*", "head.decoder.local_up.up.*"),
    ("transformer.corr_local_decoder_projection.1.double_conv.0.*", "head.decoder.local_up.conv1.*"),
    ("transformer.corr_local_decoder_projection.1.double_conv.1.*", "head.decoder.local_up.norm1.*"),
    ("transformer.corr_local_decoder_projection.1.double_conv.3.*", "head.decoder.local_up.conv2.*"),
    ("transformer.corr_local_decoder_projection.1.double_conv.4.*", "head.decoder.local_up.norm2.*"),
    ("transformer.head_auxi_#.*", "head.aux_heads.#.conv.*"),
)
# what CLIP's archives carry along, and detectron2's normalisation
CARRIED_ALONG = (
    "clip_model.attn_mask",
    "clip_model.input_resolution",
    "clip_model.context_length",
    "clip_model.vocab_size",
    "pixel_mean",
    "pixel_std",
    "clip_pixel_mean",
    "clip_pixel_std",
)
PREFIXES = ("sem_seg_head.", "predictor.")
PAD_TOKENS = ("classes.pad_token", "classes.pad_guidance")

# the released FGAseg code, and CAT-Seg, whose tree is the same without FGAseg's parts
RELEASED_KEYS = KeyMap(
    (*CATSEG, *FGASEG_PARTS),
    prefixes=PREFIXES,
    unprefixed=("upsample",),
    structural=(SHIFT_MASK, *CARRIED_ALONG),
    flattened=PAD_TOKENS,
)


def _in_pi_seg(pattern: str) -> str:
    """A key of CAT-Seg by the names that Pi-Seg has given to spatial and class aggregation."""
    pattern = pattern.replace("layers.#.swin_block.", "layers.#.sptial_agg.")
    return pattern.replace("layers.#.attention.", "layers.#.class_agg.")


# Pi-Seg, from its code: CAT-Seg at inference, with generators of noise on image and text features that only training
# (and its drawings of the noise) uses
PI_SEG_KEYS = KeyMap(
    [(_in_pi_seg(theirs), ours) for theirs, ours in CATSEG],
    prefixes=PREFIXES,
    unprefixed=("upsample",),
    structural=(_in_pi_seg(SHIFT_MASK), *CARRIED_ALONG),
    training_only=(
        "image_vpn.cross_attn.fc_q.*",
        "image_vpn.cross_attn.fc_k.*",
        "image_vpn.cross_attn.fc_v.*",
        "image_vpn.fc_mean.*",
        "image_vpn.fc_variance.*",
        "text_vpn.mu",
        "text_vpn.var",
    ),
    flattened=PAD_TOKENS,
)

# CAT-Seg on the EVA-02 of DeCLIP, from its code: eva_clip's towers by open_clip's and timm's names
DECLIP_KEYS = KeyMap(
    (
        ("clip_model.logit_scale", "clip.logit_scale"),
        ("clip_model.text.*", "clip.text.*"),
        ("clip_model.visual.cls_token", "clip.visual.trunk.cls_token"),
        ("clip_model.visual.pos_embed", "clip.visual.trunk.pos_embed"),
        ("clip_model.visual.patch_embed.*", "clip.visual.trunk.patch_embed.*"),
        ("clip_model.visual.blocks.#.norm#.*", "clip.visual.trunk.blocks.#.norm#.*"),
        ("clip_model.visual.blocks.#.attn.q_proj.weight", "clip.visual.trunk.blocks.#.attn.q_proj.weight"),
        ("clip_model.visual.blocks.#.attn.k_proj.weight", "clip.visual.trunk.blocks.#.attn.k_proj.weight"),
        ("clip_model.visual.blocks.#.attn.v_proj.weight", "clip.visual.trunk.blocks.#.attn.v_proj.weight"),
        ("clip_model.visual.blocks.#.attn.q_bias", "clip.visual.trunk.blocks.#.attn.q_proj.bias"),
        ("clip_model.visual.blocks.#.attn.v_bias", "clip.visual.trunk.blocks.#.attn.v_proj.bias"),
        ("clip_model.visual.blocks.#.attn.inner_attn_ln.*", "clip.visual.trunk.blocks.#.attn.norm.*"),
        ("clip_model.visual.blocks.#.attn.proj.*", "clip.visual.trunk.blocks.#.attn.proj.*"),
        ("clip_model.visual.blocks.#.mlp.w1.*", "clip.visual.trunk.blocks.#.mlp.fc1_g.*"),
        ("clip_model.visual.blocks.#.mlp.w2.*", "clip.visual.trunk.blocks.#.mlp.fc1_x.*"),
        ("clip_model.visual.blocks.#.mlp.ffn_ln.*", "clip.visual.trunk.blocks.#.mlp.norm.*"),
        ("clip_model.visual.blocks.#.mlp.w3.*", "clip.visual.trunk.blocks.#.mlp.fc2.*"),
        ("clip_model.visual.norm.*", "clip.visual.trunk.norm.*"),
        ("clip_model.visual.head.*", "clip.visual.trunk.head.*"),
        *(pair for pair in CATSEG if pair[0] != "clip_model.*"),
    ),
    fused=[
        (
            "clip_model.text.transformer.resblocks.#.attn.in_proj_weight",
            tuple(f"clip.text.transformer.resblocks.#.attn.{x}_proj_weight" for x in "qkv"),
        )
    ],
    prefixes=PREFIXES,
    unprefixed=("upsample",),
    # every block holds the one table of rotary positions
    structural=(
        SHIFT_MASK,
        "clip_model.visual.rope.freqs_*",
        "clip_model.visual.blocks.#.attn.rope.freqs_*",
        *CARRIED_ALONG,
    ),
    flattened=PAD_TOKENS,
)
