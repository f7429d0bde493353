"""Running our model on the recorded inputs and comparing every recorded tensor."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import CheckpointError
from ...inference import sliding_scores
from ...kernels import kernel_softmax
from ...model import FGASeg
from ...training import segmentation_losses
from ...weights import RELEASED_KEYS
from .recordings import RecordedCase, Recording, Recordings
from .results import CaseResult, StageResult
from .selection import recorded_selection
from .stages import compare, compare_labels
from .tape import Tape, taped

ROUNDING = 1e-12  # a gradient below this share of the total norm is rounding error, such as that of the keys' bias

log = logging.getLogger(__name__)


def run_parity(folder: Path, dtype: str = "float32", only: Sequence[str] = ()) -> Iterator[CaseResult]:
    """Compare our model with every recording in a folder; yields each case as soon as it is compared.

    folder  of fill.py, *.npz and state_dict_keys_*.txt
    dtype   of our model, "float32" or "float64"
    only    words; cases whose names contain none of them are left out; empty: all
    Raises CheckpointError if there is nothing to compare.
    """
    recordings = Recordings(folder, getattr(torch, dtype))
    paths = [path for path in recordings.paths() if not only or any(word in path.stem for word in only)]
    if not paths:
        raise CheckpointError(f"{folder}: no recording's name contains {' or '.join(only) or '.npz'}")
    for number, path in enumerate(paths, 1):
        log.info("case %d of %d: %s", number, len(paths), path.stem)
        yield run_case(recordings, path)


def run_case(recordings: Recordings, path: Path) -> CaseResult:
    """Compare one recording with our model."""
    case, recorded, start = RecordedCase.of(path), Recording(path), time.perf_counter()
    compare_kind = {"common": _image_side, "infer": _infer, "sliding": _sliding, "train": _train}[case.kind]
    return CaseResult(path.stem, compare_kind(recordings, case, recorded), time.perf_counter() - start)


@torch.no_grad()
def _image_side(recordings: Recordings, case: RecordedCase, recorded: Recording) -> list[StageResult]:
    model = recordings.model(case)
    tape = Tape([torch.zeros(1, 1, dtype=torch.int64)])
    with taped(tape, model):
        model(recordings.pixels(model), model.encode(["thing"]))
    return list(compare(recorded, tape, {}))


@torch.no_grad()
def _infer(recordings: Recordings, case: RecordedCase, recorded: Recording) -> list[StageResult]:
    model, names = recordings.model(case), recordings.names(case)
    vocabulary, results = model.encode(names), list[StageResult]()
    levels = recorded.levels(1, len(names))
    tape = Tape(levels)
    with taped(tape, model), recorded_selection(model.head, levels, results):
        out = model(recordings.pixels(model), vocabulary)
        if model.head.t2p is not None:  # our model skips T2P in inference
            model.head.t2p(tape["pixels"], tape["p2t_out"])
    computed = {"text_emb": vocabulary.embeddings[:, None], **_local_kernels(model, tape, levels[0], recorded)}
    # the released code applies a sigmoid to what the model returns, even where that has been through one
    size = recorded.shape("sem_seg")[1:]
    computed["sem_seg"] = F.interpolate(out.logits.sigmoid(), size=size, mode="bilinear", align_corners=False)[0]
    results += compare(recorded, tape, computed)
    if "argmax_logits" in recorded:
        results.append(compare_labels(recorded, "argmax_logits", out.logits))
    return results


def _local_kernels(model: FGASeg, tape: Tape, capped: Tensor, recorded: Recording) -> dict[str, Tensor]:
    """The kernels of the local supplement [T, C, K, K], for all classes and under the cap, by recorded name."""
    lcs = model.head.lcs
    if lcs is None:
        return {}
    texts = F.normalize(tape["p2t_out"], dim=-1)
    logits = lcs.text(texts)[..., :-1]
    kernels = kernel_softmax(logits, model.config.kernel_size, model.config.kernel_norm)[0]
    computed = {"lcs_kernel": kernels, "lcs_kernel#2": kernels[capped[0]]}
    if "corr_local#2" in recorded:  # the released code also computes it for all classes before the cap
        computed["corr_local"] = lcs(F.normalize(tape["pixels"], dim=1), texts)
    return computed


@torch.no_grad()
def _sliding(recordings: Recordings, case: RecordedCase, recorded: Recording) -> list[StageResult]:
    model, names = recordings.model(case), recordings.names(case)
    height, width = recorded.shape("sem_seg")[1:]
    photo = torch.from_numpy(recordings.fill.image(height, width, 3)).to(recordings.dtype)
    tape = Tape([torch.arange(len(names)).expand(5, -1)])
    with taped(tape, model):
        scores = sliding_scores(model, photo, model.encode(names))
    scores = F.interpolate(scores[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    results = list(compare(recorded, tape, {"sem_seg": scores}))
    return [*results, compare_labels(recorded, "argmax_sem_seg", scores)]


def _train(recordings: Recordings, case: RecordedCase, recorded: Recording) -> list[StageResult]:
    model, names = recordings.model(case), recordings.names(case)
    tape = Tape([torch.arange(len(names))[None]])
    model.train()
    labels = torch.from_numpy(recordings.fill.label(classes=len(names)))[None]
    with taped(tape, model):
        vocabulary = model.encode(names)
        out = model(recordings.pixels(model), vocabulary)
    losses = segmentation_losses(out, labels, model.config.loss)
    losses["loss"].backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    buffers = dict(model.named_buffers())
    computed = {"text_emb": vocabulary.embeddings[:, None]}
    for name in recorded.names:
        side, _, key = name.partition(":")
        if side in ("grad", "bn_after"):
            value = (gradients if side == "grad" else buffers)[RELEASED_KEYS.to_ours(key) or key]
            computed[name] = value.reshape(recorded.shape(name))
    results = list(compare(recorded, tape, computed))
    ours = {"seg": losses["seg"], "align": losses["align"], "total": losses["loss"]}
    for name, value in zip(recorded["loss_names"].tolist(), recorded["loss_values"].tolist(), strict=True):
        results.append(StageResult(f"loss {name}", abs(float(ours[name].detach()) - value) / abs(value)))
    return [*results, *compare_gradient_norms(recorded.path.with_suffix(".json"), gradients)]


def compare_gradient_norms(path: Path, gradients: dict[str, Tensor]) -> list[StageResult]:
    """Compare norm, sum and first element of every gradient with the recorded ones.

    path  a JSON file: "total_grad_norm", and "grads_norm_sum_first", released key → these three figures
    """
    recorded = json.loads(path.read_text())
    total = torch.stack([g.double().norm() for g in gradients.values()]).norm()
    results = [StageResult("gradient norm", abs(float(total) / recorded["total_grad_norm"] - 1))]
    entries = {
        RELEASED_KEYS.to_ours(key) or key: (key, *values) for key, values in recorded["grads_norm_sum_first"].items()
    }
    if alone := sorted(entries.keys() ^ gradients.keys()):
        results.append(StageResult("gradients", float("nan"), "only ours or only recorded: " + ", ".join(alone)))
    kinds: dict[str, dict[str, float]] = {"norms": {}, "sums": {}, "first elements": {}}
    for name in entries.keys() & gradients.keys():
        key, norm, summed, first = entries[name]
        g = gradients[name].double()
        if max(norm, float(g.norm())) < ROUNDING * recorded["total_grad_norm"]:
            continue
        scale = (g.norm(), g.abs().sum(), g.abs().max())  # a sum cancels: its rounding error follows its summands
        ours = (g.norm(), g.sum(), g.flatten()[0])
        for kind, x, y, largest in zip(kinds, ours, (norm, summed, first), scale, strict=True):
            kinds[kind][key] = abs(float(x) - y) / max(float(largest), abs(y))
    for kind, errors in kinds.items():
        worst = max(errors, key=lambda key: errors[key])
        note = f"{len(errors)} of {len(entries)}, the others are rounding error; worst: {worst}"
        results.append(StageResult(f"gradient {kind}", errors[worst], note))
    return results
