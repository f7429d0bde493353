"""Which project a checkpoint comes from, told by its keys; one line for those that cannot be read here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError
from .key_maps import DECLIP_KEYS, PI_SEG_KEYS, RELEASED_KEYS, KeyMap

READABLE = "checkpoints of FGAseg's released code, of CAT-Seg, of Pi-Seg and of CAT-Seg on DeCLIP's EVA-02"


@dataclass(frozen=True)
class Project:
    """Code whose checkpoints are read.

    name   for reports
    keys   the map of its keys
    mark   a regular expression that is found in a key of its checkpoints; for CAT-Seg, also of some that build on it
    known  fields of ModelConfig that its code decides, its keys do not show, and the `released` preset has otherwise
    """

    name: str
    keys: KeyMap
    mark: str
    known: Mapping[str, Any] = field(default_factory=dict)


# CAT-Seg's, and that of FGAseg's released code, which has CAT-Seg's keys and some more
CAT_SEG = Project("CAT-Seg", RELEASED_KEYS, r"(^|\.)transformer\.layers\.\d+\.swin_block\.")
# more than 256 classes all enter its aggregation, which pads fewer to 256 as CAT-Seg does
PI_SEG = Project("Pi-Seg", PI_SEG_KEYS, r"(^|\.)transformer\.layers\.\d+\.sptial_agg\.", {"class_cap": None})
DECLIP = Project("CAT-Seg on DeCLIP's EVA-02", DECLIP_KEYS, r"(^|\.)clip_model\.visual\.blocks\.\d+\.")


@dataclass(frozen=True)
class Foreign:
    """Checkpoints that cannot be read.

    marks   regular expressions; each is found in a key of such a checkpoint
    what    it seems to be
    advice  what to do instead
    absent  a regular expression that is found in none of its keys
    """

    marks: tuple[str, ...]
    what: str
    advice: str = f"only {READABLE}, and models saved by fgaseg, are read"
    absent: str | None = None

    def fits(self, keys: Sequence[str]) -> bool:
        return all(_found(mark, keys) for mark in self.marks) and not (self.absent and _found(self.absent, keys))


MASKS = "proposes masks and classifies them, which is another architecture"
FIXED = "with a fixed set of classes"
# the first that fits is named: the more special ones come first
FOREIGN = (
    Foreign(
        (r"\blora_(A|B|a|b|up|down)\b|^lora_",),
        "a LoRA adapter, which holds differences to another model's weights",
        "merge it into that model with the tool that made it",
    ),
    Foreign(
        (CAT_SEG.mark, r"^backbone\."),
        "the CAT-Seg of 2023, with a second image backbone (Swin or ResNet) that this model does not have",
        "take the later weights: the models cat-seg-b16 and cat-seg-l14",
        absent=r"^upsample1\.",  # in its place the backbone guides the decoder
    ),
    Foreign((r"\bclip_model_remote\.",), "an RSKT-Seg model, with a second CLIP that this model does not have"),
    Foreign((r"^side_adapter_network\.",), f"a SAN model; SAN {MASKS}"),
    Foreign((r"^(category|word)_head\.|^backbone\.feature_extractor\.",), f"an ODISE model; ODISE {MASKS}"),
    Foreign((r"^clip_adapter\.",), f"an OVSeg model; OVSeg {MASKS}"),
    Foreign((r"^backbone\.clip_model\.|^void_embedding\.",), f"an FC-CLIP model; FC-CLIP {MASKS}"),
    Foreign((r"^sem_seg_head\.pixel_decoder\.",), f"a MaskFormer or Mask2Former model; MaskFormer {MASKS}"),
    Foreign((r"^(proposal_generator|roi_heads)\.",), "a detector of detectron2"),
    Foreign((r"^(mask_decoder|prompt_encoder|sam_mask_decoder)\.",), "a Segment Anything model"),
    Foreign((r"^segformer\.", r"^decode_head\."), f"a SegFormer of transformers, {FIXED}"),
    Foreign((r"^decode_head\.",), "a model of mmsegmentation"),
    Foreign((r"^backbone\.", r"^classifier\."), f"a segmentation model of torchvision, {FIXED}"),
    Foreign(
        (r"^(model\.diffusion_model|first_stage_model|(down|up)_blocks|mid_block|(en|de)coder\.(down|up|mid)\w*)\.",),
        "a diffusion model, or its autoencoder",
    ),
    Foreign((r"^clip\.(vision|text)_model\.",), "a CLIPSeg model of transformers"),
    Foreign(
        (r"^(vision|text)_model\.",),
        "an image-text encoder in the format of transformers, without a segmentation head",
        "to train a head on such an encoder, take it from open_clip: model.encoder.name and model.encoder.pretrained",
    ),
    Foreign(
        (r"^visual\.blocks\.",),
        "an EVA-CLIP alone, by the names of its original code and without a segmentation head",
        "to train a head on it, take it from open_clip: model.encoder.name=EVA02-B-16, or another of its EVA models",
    ),
    Foreign(
        (r"^(model\.)?visual\.",),
        "an image-text encoder (CLIP) alone, without a segmentation head",
        "to train a head on it, give the file as model.encoder.pretrained and its open_clip name as model.encoder.name",
    ),
    Foreign((r"^(embeddings\.)?cls_token$|^blocks\.\d+\.attn\.",), "an image encoder alone (timm, DINO)"),
    Foreign((r"^(features|layer[1-4])\.\d+\.",), "an image classifier (torchvision, timm)"),
)


def recognise(keys: Iterable[str], source: str) -> Project:
    """The project whose keys these are.

    Raises CheckpointError, one line that names `source`, what it seems to be and what to do, where it is none that is
    read. Single keys that do not fit are not looked for.
    """
    keys = list(keys)
    if any(re.match(r"clip\.(visual|text|transformer)\.|head\.(layers|embed_global)\.", key) for key in keys):
        raise CheckpointError(
            f"{source}: an fgaseg model already (its keys begin with clip. and head.); FGASeg.from_pretrained reads it"
        )
    for foreign in FOREIGN:
        if foreign.fits(keys):
            raise CheckpointError(f"{source}: seems to be {foreign.what}; {foreign.advice}")
    project = next((one for one in (PI_SEG, DECLIP, CAT_SEG) if _found(one.mark, keys)), None)
    if project is not None:
        return project
    strange = [key for key in keys if not CAT_SEG.keys.is_known(key)]
    if 2 * len(strange) > len(keys):
        raise CheckpointError(
            f"{source}: {len(strange)} of its {len(keys)} keys are unknown here, such as {', '.join(strange[:3])}; "
            f"only {READABLE}, and models saved by fgaseg, are read"
        )
    return CAT_SEG


def _found(pattern: str, keys: Iterable[str]) -> bool:
    return any(re.search(pattern, key) for key in keys)
