"""The stages of the model, and what each of them uses: seconds, operations, memory.

A stage is a function of the model that is replaced while it is measured. What it uses inside an inner stage counts for
the inner stage only; what no stage uses is "rest". The functions are those that `Propagation` and the encoders call,
not the ops inside them, so that a faster form of a stage is still that stage. `fgaseg/model/reference.py` has the same
stages.
"""

import contextlib
import copy
import functools
import operator
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...inference import prediction
from ...model import FGASeg
from ...model import reference as plain
from ...model.alignment import P2Tformer
from ...model.head import Head
from ...model.image_encoder import ImageEncoder
from ...model.text_encoder import TextEncoder
from ...vocabulary import Vocabulary
from .machine import DEVICE, Memory, synchronize

REST = "rest"
# (the owner of a function, its name, the stage)
STAGES: tuple[tuple[Any, str, str], ...] = (
    (ImageEncoder, "__call__", "image tower"),
    (TextEncoder, "_embed", "text tower"),
    (P2Tformer, "forward", "P2Tformer"),
    (Head, "global_similarity", "similarity"),
    (Head, "class_maps", "similarity"),
    (Head, "guidance", "guidance"),
    (Head, "_embed", "embedding and fusion"),
    (Head, "_spatial", "Swin blocks"),
    (Head, "_summarize", "class attention"),
    (Head, "_across_classes", "class attention"),
    (Head, "_fuse_stage1", "decoder"),
    (Head, "_decoder_stage1", "decoder"),
    (Head, "_decoder_stage2", "decoder"),
    (prediction, "upsample_argmax", "tail"),
    (prediction, "upsample_argmax_windows", "tail"),
    (plain, "text_tower", "text tower"),
    (plain, "similarity", "similarity"),
    (plain, "shared_guidance", "guidance"),
    (plain, "embed", "embedding and fusion"),
    (plain, "swin_block", "Swin blocks"),
    (plain, "across_classes", "class attention"),
    (plain, "decoder", "decoder"),
    (plain, "labels", "tail"),
)


@contextlib.contextmanager
def by_stage(
    since: Callable[[], float], join: Callable[[float, float], float] = operator.add
) -> Iterator[dict[str, float]]:
    """What every stage uses inside the context, from the first use on; whole when the context ends.

    since  what has been used since it was last called
    join   two amounts of one stage into one
    """
    totals: dict[str, float] = {}
    running = [REST]

    def boundary() -> None:
        amount = since()
        totals[running[-1]] = join(totals[running[-1]], amount) if running[-1] in totals else amount

    def metered(function: Callable, stage: str) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            boundary()
            running.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                boundary()
                running.pop()

        return run

    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in STAGES]
    for owner, name, stage in STAGES:
        setattr(owner, name, metered(getattr(owner, name), stage))
    try:
        since()
        yield totals
        boundary()
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _differences(reading: Callable[[], float]) -> Callable[[], float]:
    last = 0.0

    def since() -> float:
        nonlocal last
        last, before = reading(), last
        return last - before

    return since


def stage_seconds(step: Callable[[], Any], device: str = DEVICE) -> dict[str, float]:
    """The seconds that every stage takes in one run of `step`; their sum is that of the run."""

    def clock() -> float:
        synchronize(device)
        return time.perf_counter()

    with by_stage(_differences(clock)) as seconds:
        step()
    return seconds


def stage_peaks(step: Callable[[], Any], device: str = DEVICE) -> dict[str, float]:
    """The most memory, in bytes, while each stage runs, beyond what is in use before `step`. NaN where not known."""
    memory = Memory(device)
    memory.settle()
    before = memory.used()

    def since() -> float:
        highest = memory.highest() - before
        memory.reset()
        return highest

    with by_stage(since, max) as peaks:
        step()
    return peaks


def without_values(model: FGASeg) -> FGASeg:
    """A copy of the model on PyTorch's meta device, which knows shapes only: running it computes nothing."""
    return copy.deepcopy(model).to("meta").eval().requires_grad_(False)


def stage_gflop(bare: FGASeg, pixels: tuple[int, ...], prompts: int) -> dict[str, float]:
    """The products and convolutions that every stage needs, in 1e9 operations, one image at a time.

    bare     the model `without_values`
    pixels   [1, 3, h, w]
    prompts  of all classes together

    What the model computes is counted, that is, without pad tokens, copies of the guidance and maps that only the
    losses read, and with every op in its plain form, so that nothing that an implementation does more or less is in the
    count. An addition and a multiplication are two operations. Raises NotImplementedError for a model that prunes
    (`fast`), because how much it computes depends on the photo.
    """
    if bare.config.fast and bare.config.top_k:
        raise NotImplementedError("how much a pruned model (fast=true) computes depends on the photo")
    texts = torch.empty(prompts, bare.encoder.channels, device="meta", dtype=bare.dtype)
    vocabulary = Vocabulary(tuple(map(str, range(prompts))), texts)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        with by_stage(_differences(lambda: counter.get_total_flops() / 1e9)) as gflop:
            bare(torch.empty(pixels, device="meta", dtype=bare.dtype), vocabulary)
    return gflop


def text_gflop(bare: FGASeg, prompts: list[str]) -> float:
    """The same of the text tower for prompts, each batch as long as its longest."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        bare.text_encoder._embed(prompts)
    return counter.get_total_flops() / 1e9
