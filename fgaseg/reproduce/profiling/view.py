"""The profile of one view, from pixels to labels: what every stage takes, and what the machine could do."""

import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...config import ModelConfig
from ...environment import processor
from ...inference import evaluation_mode, prediction
from ...model import FGASeg, usable_device
from ...vocabulary import ClassNames, Vocabulary
from .machine import copy_rate, product_rate
from .stages import REST, stage_gflop, stage_peaks, stage_seconds, text_gflop, without_values

PHOTO = (480, 640)  # of the labels
ROUNDS = 3
OPS = 15  # of PyTorch, that are listed
WHOLE, TEXT = "whole view", "text tower"


class StageUse(NamedTuple):
    """What one stage of a view takes.

    seconds    in the median round
    gflop      1e9 operations of products and convolutions that the stage needs; NaN for a model that prunes
    share      of the roof: gflop a second, as a part of the machine's own fastest product in this precision
    peak_mb    most memory while it runs, beyond what is in use before the view
    """

    stage: str
    seconds: float
    gflop: float
    share: float
    peak_mb: float

    @property
    def gflop_per_second(self) -> float:
        return self.gflop / self.seconds if self.seconds else 0.0

    def dump(self) -> dict[str, Any]:
        values = {**self._asdict(), "gflop_per_second": self.gflop_per_second}
        del values["stage"]
        return {"stage": self.stage, **{k: None if math.isnan(v) else round(v, 5) for k, v in values.items()}}


class OpTime(NamedTuple):
    """An op of PyTorch in one view: its own seconds, without those of the ops that it calls."""

    op: str
    calls: int
    seconds: float


class ViewProfile(NamedTuple):
    """What one view takes.

    machine  processor, threads, torch, precision, roof (operations a second, and of which product), copy rate
    text     the names, embedded once for all views
    stages   of the view; their seconds and gflop add up to those of `whole`
    ops      the slowest, if they were asked for
    """

    machine: dict[str, Any]
    classes: int
    pixels: tuple[int, ...]
    text: StageUse
    stages: list[StageUse]
    whole: StageUse
    ops: list[OpTime]

    def dump(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "classes": self.classes,
            "pixels": list(self.pixels),
            "text": self.text.dump(),
            "stages": [stage.dump() for stage in self.stages],
            "whole": self.whole.dump(),
            "ops": [op._asdict() for op in self.ops],
        }


def random_model(device: str | None = None) -> FGASeg:
    """A model of the paper's size, ViT-B/16 at 384×384 in the released preset, with random weights.

    device  as of `fgaseg.load`; None: cuda where there is one
    """
    torch.manual_seed(0)
    encoder = {"name": "ViT-B-16-quickgelu", "pretrained": None}
    model = FGASeg(ModelConfig(preset="released", encoder=encoder))  # type: ignore[arg-type]
    return model.to(usable_device(device)).eval()


@torch.inference_mode()
def profile_view(
    model: FGASeg, names: ClassNames, *, rounds: int = ROUNDS, ops: bool = False, photo: tuple[int, int] = PHOTO
) -> ViewProfile:
    """Measure one square view of `image_size` pixels of noise, seen whole, and the embedding of the names.

    names   as `FGASeg.encode` takes them
    rounds  of the view; the median one counts
    ops     also list the slowest ops of PyTorch
    photo   height and width of the labels
    """
    device, precision = model.device.type, model.precision
    roof = product_rate("float32" if precision == "float64" else precision, device)
    side = -(-model.config.image_size // model.patch) * model.patch
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(model.mean)
    bare = without_values(model)
    with evaluation_mode(model):
        text, vocabulary = _text(model, bare, names, roof.per_second)
        counted = _counted(bare, pixels, len(vocabulary.embeddings))

        def step() -> Tensor:
            return prediction.label(model, pixels, vocabulary, photo)[0]

        step()  # warm
        peaks = stage_peaks(step, device)
        timed = sorted((stage_seconds(step, device) for _ in range(rounds)), key=lambda one: sum(one.values()))
        slowest = _ops(step, device) if ops else []
    seconds = timed[(rounds - 1) // 2]

    def use(stage: str, took: float, operations: float, most: float) -> StageUse:
        return StageUse(stage, took, operations, operations * 1e9 / took / roof.per_second if took else 0.0, most / 1e6)

    order = [stage for stage in seconds if stage != REST] + [REST]
    stages = [use(stage, seconds[stage], counted(stage), peaks[stage]) for stage in order]
    whole = use(WHOLE, sum(seconds.values()), sum(stage.gflop for stage in stages), max(peaks.values()))
    machine = {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision,
        "roof_gflop_per_second": round(roof.per_second / 1e9, 1),
        "roof_product": roof.product,
        "copy_gb_per_second": round(copy_rate(device) / 1e9, 1),
    }
    return ViewProfile(machine, len(vocabulary), tuple(pixels.shape), text, stages, whole, slowest)


def _counted(bare: FGASeg, pixels: Tensor, prompts: int) -> Callable[[str], float]:
    """The 1e9 operations of a stage by its name."""
    try:
        gflop = stage_gflop(bare, pixels.shape, prompts)
    except NotImplementedError:
        return lambda stage: math.nan
    return lambda stage: gflop.get(stage, 0.0)


def _text(model: FGASeg, bare: FGASeg, names: ClassNames, roof: float) -> tuple[StageUse, Vocabulary]:
    """Embedding the names, timed once where it takes long, and the vocabulary."""
    encoder = model.text_encoder
    prompts = list(encoder.plan(names).prompts)
    with torch.inference_mode(False):
        vocabulary = encoder.encode(names)
    peaks = stage_peaks(lambda: encoder.embed(prompts), model.device.type)
    begin, times = time.perf_counter(), list[float]()
    while len(times) < ROUNDS and time.perf_counter() - begin < 2:
        times.append(sum(stage_seconds(lambda: encoder.embed(prompts), model.device.type).values()))
    seconds, gflop = statistics.median(times), text_gflop(bare, prompts)
    return StageUse(TEXT, seconds, gflop, gflop * 1e9 / seconds / roof, max(peaks.values()) / 1e6), vocabulary


def _ops(step: Callable[[], Any], device: str) -> list[OpTime]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library writes of its own beginning and end
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=kinds) as recorded:
        step()
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = [OpTime(one.key, one.count, getattr(one, key) / 1e6) for one in recorded.key_averages()]
    return sorted(found, key=lambda one: -one.seconds)[:OPS]
