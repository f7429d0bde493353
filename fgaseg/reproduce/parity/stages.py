"""Which of our tensors corresponds to which recorded one, and in what layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .recordings import DROPPED, Recording
from .results import MEDIAN_LIMIT, StageResult
from .tape import Tape


def _aggregated(tape: Tape, _: str, index: str) -> Tensor:
    """layerN_out is recorded of the image encoder's guidance blocks or of the aggregation layers."""
    block = f"block{index}"
    return tape[block].transpose(0, 1) if block in tape else tape.volume(f"enter{int(index) + 1}")


# Pattern of recorded names, and a function of tape, name and the pattern's groups: our tensor in the released layout.
STAGES: tuple[tuple[str, Callable[..., Tensor]], ...] = (
    ("clip_in|logits|proj_vis|align_map", lambda tape, name: tape[name]),
    ("train_align", lambda tape, _: tape["align_map"]),
    (r"layer(\d+)_out", _aggregated),
    ("res4", lambda tape, _: tape["early_up"]),
    ("res5", lambda tape, _: tape["late_up"]),
    (r"p2t_(?:attn\d+|out)", lambda tape, name: tape[name].transpose(0, 1)),
    ("corr_global", lambda tape, name: tape[name][:, None]),
    ("corr_local(?:#2)?", lambda tape, _: tape.rows("corr_local").unflatten(0, (tape.batch, -1))),
    ("corr_embed", lambda tape, _: tape.maps("embed_global")),
    ("corr_local_embed", lambda tape, _: tape.maps("embed_local")),
    ("proj_guidance", lambda tape, _: tape["image_guidance"].relu()),
    ("proj_text_guidance", lambda tape, _: tape.rows("text_guidance").relu().unflatten(0, (tape.batch, -1))),
    ("proj_decoder_guidance0", lambda tape, _: tape["early_guidance"].relu()),
    ("proj_decoder_guidance1", lambda tape, _: tape["late_guidance"].relu()),
    ("fused_embed", lambda tape, _: tape.volume("fuse")),
    (r"layer\d+_swin_block1", lambda tape, name: tape.rows(name).flatten(1, 2)),
    (r"layer\d+_swin", lambda tape, name: tape.volume(name)),
    (r"conv_cat_decoder_(\d)", lambda tape, _, i: tape.rows(f"fuse{i}")),
    (r"decoder(\d)", lambda tape, _, i: tape.maps(f"stage{i}")),
    ("corr_local_decoder_projection", lambda tape, _: tape.maps("local_up")),
    (r"mask_aux\d|head", lambda tape, name: tape.rows(name)[:, None]),
)


def compare(recorded: Recording, tape: Tape, computed: Mapping[str, Tensor]) -> Iterator[StageResult]:
    """One result for every recorded tensor except the input image.

    computed  our tensors that are not on the tape, by recorded name
    """
    for name in recorded.names:
        if not recorded.sampled(name) or name == "image":
            continue
        try:
            yield _compare_one(name, recorded, tape, computed)
        except KeyError as error:
            yield StageResult(name, None, f"not computed: our model has {error.args[0]!r} inside a larger step")


def _compare_one(name: str, recorded: Recording, tape: Tape, computed: Mapping[str, Tensor]) -> StageResult:
    if name in computed:
        return StageResult(name, recorded.error(name, computed[name]))
    if name == "clip_features":  # [1, 1 + H·W, C]
        tokens = F.pad(tape["pixels"].flatten(2).transpose(1, 2), (0, 0, 1, 0))
        return StageResult(name, recorded.error(name, tokens, tokens.shape[2]), "class token not computed")
    for pattern, make in STAGES:
        if found := re.fullmatch(pattern, name):
            return StageResult(name, recorded.error(name, make(tape, name, *found.groups())))
    return StageResult(name, float("nan"), "a stage that this comparison does not know")


def compare_labels(recorded: Recording, name: str, scores: Tensor) -> StageResult:
    """Share of pixels whose best class differs from the recorded one although the best two are apart.

    scores  [..., T, h, w]
    """
    labels = torch.from_numpy(recorded[name].astype(np.int64))
    best = scores.topk(2, dim=-3)
    lead = best.values.select(-3, 0) - best.values.select(-3, 1)
    clear = lead > MEDIAN_LIMIT * scores[scores != DROPPED].abs().max()
    chosen = best.indices.select(-3, 0)
    wrong = (chosen != labels.reshape(chosen.shape)) & clear
    return StageResult(name, float(wrong.double().mean()), f"{int((~clear).sum())} tied pixels left out")
