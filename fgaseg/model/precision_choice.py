"""Lower precision at inference, as `--precision` names it, and the automatic choice."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..environment import arithmetic, processor
from ..errors import UsageError
from ..notes import note_once
from .encoders import ImageFeatures
from .quantization import quantize

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "auto")
FASTER = 1.1  # "auto" changes labels only for a gain of so many times

log = logging.getLogger(__name__)


class Lowered(Protocol):
    """What the choice of a precision needs of a model; FGASeg has it."""

    encoder: Any
    head: Any

    @property
    def device(self) -> torch.device: ...

    def to(self, dtype: torch.dtype) -> Any: ...


def set_precision(model: Lowered, precision: str) -> None:
    """Convert a model of float32, in place, to one of PRECISIONS, as `--precision` says.

    "auto" measures the machine for a tenth of a second, chooses bfloat16 where it gains, and says so. "int8" quantizes
    the linear layers (`quantize`); the rest is bfloat16 where the processor multiplies it, else float32. Raises
    UsageError for int8 on a GPU.
    """
    if precision == "auto":
        precision, why = choose_precision(model)
        log.info("precision: %s", why)
    elif slow := why_slow(precision, model.device):
        note_once(("precision", precision), slow)
    if precision == "int8":
        if model.device.type != "cpu":
            raise UsageError(f"precision int8: is for a CPU, and the model is on {model.device}: give bfloat16")
        quantize(cast("nn.Module", model))
        if arithmetic("bfloat16"):
            model.to(torch.bfloat16)
            note_once(
                ("precision", "int8 and bfloat16"), "precision int8: what has no form in 8 bits is computed in bfloat16"
            )
    elif precision != "float32":
        model.to(getattr(torch, precision))


def why_slow(precision: str, device: torch.device) -> str:
    """Why a precision takes longer than float32 on a device; "": it does not, or it is not known to."""
    if device.type != "cpu" or precision == "float32" or arithmetic(precision) is not False:
        return ""
    return (
        f"precision {precision}: this processor ({processor()}) has no instructions for it, and it takes longer than "
        "float32, in half the memory; `fgaseg info` lists what it has"
    )


def choose_precision(model: Lowered) -> tuple[str, str]:
    """float32 or bfloat16, and the reason in words: which one is faster on the model's device."""
    if model.device.type != "cpu":
        name = torch.cuda.get_device_name(model.device)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", f"bfloat16, which {name} has; some labels differ from those of float32"
        return "float32", f"float32: {name} has no bfloat16"
    with torch.inference_mode():
        single, half = _seconds(model)
    ratio, where = single / half, f"measured on {processor()} in {torch.get_num_threads()} threads"
    if ratio > FASTER:
        return "bfloat16", f"bfloat16, {ratio:.1f} times as fast as float32 ({where}); some labels differ"
    return "float32", f"float32, because bfloat16 is {ratio:.1f} times as fast ({where})"


def _seconds(model: Lowered, rounds: int = 3) -> tuple[float, float]:
    """Of a small share of an image's work in float32 and in bfloat16: the shortest of some rounds, which take turns."""
    forms = [_work(model, dtype) for dtype in (torch.float32, torch.bfloat16)]
    best = [float("inf"), float("inf")]
    for index in range(rounds):
        for number, form in enumerate(forms):
            begin = time.perf_counter()
            for call in form:
                call()
            if index:  # the first round makes what later ones reuse
                best[number] = min(best[number], time.perf_counter() - begin)
    return best[0], best[1]


def _work(model: Lowered, dtype: torch.dtype) -> list[Callable[[], Any]]:
    """An MLP of the image tower, if it has blocks, and the head with one class of 12×12 patches."""

    def random(*sizes: int) -> Tensor:
        return torch.ones(sizes, dtype=dtype)

    head = model.head
    features = ImageFeatures(random(1, head.channels, 12, 12), *(random(1, head.width, 12, 12) for _ in range(2)))
    parts: list[tuple[nn.Module, tuple[Any, ...]]] = [(head, (features, torch.ones(1, head.channels)))]
    for blocks in model.encoder.towers()[:1]:
        mlp = blocks[0].mlp
        width = next(module.in_features for module in mlp.modules() if isinstance(module, nn.Linear))
        parts.append((mlp, (random(1, 144, width),)))
    if dtype != torch.float32:
        unused = {id(head.t2p): None} if getattr(head, "t2p", None) is not None else {}  # large, and for training alone
        parts = [(copy.deepcopy(module, dict(unused)).to(dtype), inputs) for module, inputs in parts]
    return [partial(module, *inputs) for module, inputs in parts]
