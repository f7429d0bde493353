"""The whole model: its plain form, the accelerated one, and options of it, stage by stage, over vocabulary sizes.

    python benchmarks/model.py --csv FILE [--classes 20,150] [--batch 1,4] [--forms plain,accelerated] [--passes text]
    python benchmarks/model.py --csv FILE --check

`fgaseg bench model` runs it and prints one table. ViT-B/16 with random weights in the released preset, 384×384 pixels.
Passes: "inference" goes from pixels to labels at 480×640 with the vocabulary already embedded; "windows" does so for a
photo of 640×640 in five views; "text" embeds the vocabulary; "training" is one step, forward and backward, including
the text tower. Forms: "fast" prunes to every pixel's best class, with nine of ten classes unlike the image; "uncapped"
computes all classes, not only the 256 strongest, and "budget" does the same within 100 MB of class maps; "compiled" is
the accelerated head and "compiled plain" the plain form, by torch.compile, and both are timed as a whole. Rows are
written as they are measured. A run that needs more memory than is available gets a row with the memory that it would
need instead of a time.

--check compares the logits with the plain form's in float32 instead, and on a GPU prints the kernels that took longest.
Its exit status is 1 if the model in float32 is off by more than 1e-3 of the largest logit, or in bfloat16 by more than
three times what the plain form is off in bfloat16. FGASEG_DRY_RUN=1 takes a small encoder.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import machine, peak
from rich.progress import Progress
from shapes import DEVICE, DRY
from torch import Tensor

import fgaseg
from fgaseg.inference import prediction as segment
from fgaseg.model import reference as plain
from fgaseg.model.head import Output
from fgaseg.reproduce.profiling import stage_seconds
from fgaseg.reproduce.profiling.machine import synchronize
from fgaseg.training.losses import segmentation_losses
from fgaseg.vocabulary import Vocabulary

SIZE, PHOTO = 384, (480, 640)
ENCODER: dict[str, Any] = {"name": "ViT-B-16-quickgelu", "pretrained": None}
if DRY:
    VISION = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16, "head_width": 64}
    TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    ENCODER = {"name": "small", "architecture": {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": TEXT}}
CLASSES = (20, 150, 171, 459, 847, 2000, 10_000)
FORMS = {
    "inference": ("plain", "accelerated", "bfloat16", "compiled", "compiled plain", "fast", "uncapped", "budget"),
    "windows": ("plain", "accelerated", "uncapped", "budget"),
    "text": ("plain", "accelerated", "bfloat16"),
    "training": ("plain", "accelerated", "checkpointing", "bfloat16"),
}
SWITCHES: dict[str, dict[str, Any]] = {
    "fast": {"fast": True, "top_k": 1, "loss": {"aux_heads": 1}},
    "uncapped": {"class_cap": None},
    "budget": {"class_cap": None, "class_maps_budget": 100},
    "checkpointing": {"checkpointing": True},
    "compiled": {},
}
UNCAPPED = 256  # up to this many classes the cap and the budget change nothing
TRAINED = 171  # the largest vocabulary for which training is measured
WHOLE = "all"  # in the place of a stage
SECONDS, ROUNDS = 15, 5  # a measurement is repeated until it has taken so many seconds, or so many rounds


class Bench:
    """The models, and one function per pass and form that runs it once.

    encoder  of the models, as in ModelConfig
    """

    def __init__(self, encoder: dict[str, Any] = ENCODER) -> None:
        torch.manual_seed(0)
        self.encoder = encoder
        self.model = self.build()
        self.variants: dict[str, fgaseg.FGASeg] = {}
        self.compiled_plain = torch.compile(plain.forward, backend="eager" if DRY else "inductor")

    def build(self, **switches: Any) -> fgaseg.FGASeg:
        model = fgaseg.FGASeg(fgaseg.ModelConfig(preset="released", encoder=self.encoder, **switches))
        return model.to(DEVICE).eval()

    def inputs(self, classes: int, batch: int) -> tuple[Tensor, Vocabulary]:
        generator = torch.Generator().manual_seed(classes)
        pixels = torch.randn(batch, 3, SIZE, SIZE, generator=generator).to(DEVICE)
        width = self.model.clip.visual.proj.shape[1]
        texts = F.normalize(torch.randn(classes, width, generator=generator), dim=-1).to(DEVICE)
        return pixels, Vocabulary(tuple(f"thing number {i}" for i in range(classes)), texts)

    @torch.inference_mode()
    def separated(self, pixels: Tensor, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary with all but every tenth class turned away from the image, as most classes are in a photo."""
        mean = F.normalize(self.model.image_encoder(pixels[:1]).embedding.mean((2, 3)), dim=-1)
        texts = vocabulary.embeddings.clone()
        away = torch.arange(len(texts)) % 10 != 0
        texts[away] = F.normalize(texts[away] - 2 * mean, dim=-1)
        return Vocabulary(vocabulary.names, texts)

    def step(self, passed: str, form: str, classes: int, batch: int) -> Callable[[], Any]:
        pixels, vocabulary = self.inputs(classes, batch)
        self.variant(form)  # built now, so that its memory is not measured
        if form == "fast":
            vocabulary = self.separated(pixels, vocabulary)
        if passed == "text":
            return lambda: self.embed(form, list(vocabulary.names))
        if passed == "training":
            labels = torch.randint(0, classes, (batch, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
            return lambda: self.train(form, pixels, vocabulary, labels.to(DEVICE))
        if passed == "windows":
            photo = torch.rand(3, 640, 640, generator=torch.Generator().manual_seed(0)) * 255
            return lambda: self.by_windows(form, photo.to(DEVICE), vocabulary)
        return lambda: self.infer(form, pixels, vocabulary)

    @torch.inference_mode()
    def embed(self, form: str, names: list[str]) -> Tensor:
        text = self.model.text_encoder
        if form == "plain":
            return plain.text_tower(text, [text.templates[0].format(text.subject(name)) for name in names])
        with self.precision(form):
            return text._embed(tuple(names))

    @torch.inference_mode()
    def infer(self, form: str, pixels: Tensor, vocabulary: Vocabulary) -> Tensor:
        if form in ("plain", "compiled plain"):
            forward = plain.forward if form == "plain" else self.compiled_plain
            logits = forward(self.model, pixels, vocabulary.embeddings)
            return torch.stack([plain.labels(one[None], PHOTO) for one in logits])
        with self.precision(form):
            return segment.label(self.variant(form), pixels, vocabulary, PHOTO)[0]

    @torch.inference_mode()
    def by_windows(self, form: str, photo: Tensor, vocabulary: Vocabulary) -> Tensor:
        size = (photo.shape[1], photo.shape[2])
        if form == "plain":
            return plain.windows(self.model, photo, vocabulary.embeddings, size)
        return segment.by_windows(self.variant(form), photo, vocabulary, size)[0]

    def train(self, form: str, pixels: Tensor, vocabulary: Vocabulary, labels: Tensor) -> Tensor:
        model = self.variant(form).train()
        model.zero_grad(set_to_none=True)
        try:
            with self.precision(form):
                out = self.forward(form, pixels, vocabulary)
            loss = segmentation_losses(out, labels, model.config.loss)["loss"]
            loss.backward()
        finally:
            model.eval()
        return loss.detach()

    def forward(self, form: str, pixels: Tensor, vocabulary: Vocabulary) -> Output:
        if form != "plain":
            model = self.variant(form)
            return model(pixels, model.encode(vocabulary.names))
        text = self.model.text_encoder
        texts = plain.text_tower(text, [text.templates[0].format(text.subject(name)) for name in vocabulary.names])
        return plain.training_forward(self.model, pixels, texts)

    def precision(self, form: str) -> Any:
        return torch.autocast(DEVICE, torch.bfloat16, enabled=form == "bfloat16")

    def variant(self, form: str) -> fgaseg.FGASeg:
        """The model, or another one with the same weights and other switches."""
        if form in SWITCHES and form not in self.variants:
            other = self.build(**SWITCHES[form])
            other.load_state_dict(self.model.state_dict(), strict=form != "fast")
            if form == "compiled":
                other.head.compile()
            if form == "fast":
                choose_by_similarity(other.head)
            self.variants = {form: other}
        return self.variants.get(form, self.model)


@torch.no_grad()
def choose_by_similarity(head: Any) -> None:
    """Makes S_g the score for pruning, because the scores of random weights would not separate the classes."""
    for conv in (head.embed_global.conv, head.aux_heads[0].conv):
        conv.weight[0].zero_()
        conv.weight[0, 0, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    head.fuse.linear.weight[0].zero_()
    head.fuse.linear.weight[0, 0] = 1


def needed_bytes(passed: str, form: str, classes: int, batch: int) -> float:
    """The estimated peak memory of a pass beyond the model, in bytes: class maps, tokens and maps at the photo's size.

    The factors are the peaks measured in benchmarks/results/model_cpu.csv, rounded up. Without gradients the
    accelerated forms need little, whatever T.
    """
    literal = form in ("plain", "compiled plain")
    rows = batch * (max(min(classes, 256), 256 if literal and passed != "training" else 0))
    if form in ("uncapped", "budget"):
        rows = batch * classes
    one = 4.0 * (SIZE // 16) ** 2 * 128  # bytes of a class map
    if passed == "text":
        return 4.0 * 512 * (classes * 77 * 16 if literal else 256 * 20 * 12)
    if passed == "training":
        return rows * one * {"plain": 295, "checkpointing": 75}.get(form, 180)
    pixels = {"windows": 640 * 640 * 4}.get(passed, PHOTO[0] * PHOTO[1])
    return rows * one * (26 if literal else 4) + (4.0 * classes * pixels if literal else 2e8)


def available_bytes() -> float:
    if DEVICE == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as lines:
        return next(1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def measure(
    bench: Bench, passed: str, form: str, classes: int, batch: int, longest: float = SECONDS
) -> list[dict[str, Any]]:
    """One row for the whole pass and one for every stage of it; no new round begins after ``longest`` seconds.

    A compiled form has no stages: the clocks between them would have it compiled again, in pieces, in the first round.
    """
    what = {"pass": passed, "form": form, "classes": classes, "batch": batch}
    needed = needed_bytes(passed, form, classes, batch)
    if needed > 0.9 * available_bytes():
        return [what | {"stage": WHOLE, "needed_gb": round(needed / 1e9, 1)}]
    step = bench.step(passed, form, classes, batch)
    begin = time.perf_counter()
    memory = peak(step)  # also the warm-up, and the only round of very long runs
    times, stages, compiled = [time.perf_counter() - begin], dict[str, float](), "compiled" in form
    if times[0] < 5 * longest or compiled:
        times = []
    while not times or (len(times) < ROUNDS and sum(times) < longest):
        now = {WHOLE: whole_seconds(step)} if compiled else stage_seconds(step, DEVICE)
        times.append(sum(now.values()))
        if times[-1] == min(times):
            stages = now
    total = {"stage": WHOLE, "seconds": round(min(times), 4), "peak_mb": round(memory / 1e6), "rounds": len(times)}
    if passed == "inference" and form in ("bfloat16", "compiled"):
        total["labels_changed"] = f"{changed(bench, step, classes, batch):.2e}"
    parts = ({"stage": stage, "seconds": round(t, 4)} for stage, t in stages.items() if stage != WHOLE)
    return [what | total, *(what | part for part in parts)]


def whole_seconds(step: Callable[[], Any]) -> float:
    synchronize(DEVICE)
    begin = time.perf_counter()
    step()
    synchronize(DEVICE)
    return time.perf_counter() - begin


def changed(bench: Bench, step: Callable[[], Tensor], classes: int, batch: int) -> float:
    """The share of pixels whose label differs from that in float32."""
    return float((step() != bench.step("inference", "accelerated", classes, batch)()).float().mean())


@torch.inference_mode()
def check(bench: Bench, classes: int) -> list[dict[str, Any]]:
    """One row per form: its error against the plain form in float32, and the share of cells whose label differs."""
    torch.backends.cudnn.allow_tf32 = False  # matrix products do not use it unless they are told to
    pixels, vocabulary = bench.inputs(classes, 1)
    forms: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: plain.forward(bench.model, pixels, vocabulary.embeddings),
        "accelerated": lambda: bench.model(pixels, vocabulary).logits,
    }
    exact, rows = forms["plain"](), []
    for precision in ("float32", "bfloat16"):
        for form, run in forms.items():
            with bench.precision(precision):
                logits = run().float()
            error = float((logits - exact).abs().max() / exact.abs().max())
            labels = float((logits.argmax(1) != exact.argmax(1)).float().mean())
            row = {"pass": "check", "form": f"{form} {precision}", "classes": classes, "batch": 1}
            rows.append(row | {"error": f"{error:.2e}", "labels_changed": f"{labels:.2e}"})
    return rows


def wrong(rows: list[dict[str, Any]]) -> str:
    """What is not right in the rows of ``check``, or ""."""
    errors = {row["form"]: float(row["error"]) for row in rows}
    limits = {"accelerated float32": 1e-3, "accelerated bfloat16": 3 * errors["plain bfloat16"] + 1e-3}
    return "; ".join(
        f"{f}: error {errors[f]:.1e} > {limit:.1e}" for f, limit in limits.items() if not errors[f] <= limit
    )


def print_kernels(bench: Bench, classes: int) -> None:
    """The kernels of one view in bfloat16 by their time, and how many were launched."""
    step = bench.step("inference", "bfloat16", classes, 1)
    step()
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        step()
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=60))
    print(f"{len(kernels)} kernels and copies in one view with {classes} classes")


def plan(options: argparse.Namespace) -> list[tuple[str, str, int, int]]:
    """(pass, form, classes, batch) of every measurement."""
    out = []
    for passed, form in ((p, f) for p in options.passes for f in FORMS[p] if not options.forms or f in options.forms):
        for classes in options.classes:
            small = classes <= UNCAPPED and form in ("uncapped", "budget")
            if not small and not (passed == "training" and classes > TRAINED):
                out += [(passed, form, classes, b) for b in (options.batch if passed == "inference" else [1])]
    return out


def main() -> int:
    def several(of: type) -> Callable[[str], list]:
        return lambda text: [of(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--classes", type=several(int), default=list(CLASSES))
    parser.add_argument("--batch", type=several(int), default=[1, 4])
    parser.add_argument("--forms", type=several(str), default=[])
    parser.add_argument("--passes", type=several(str), default=list(FORMS))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which no new round of a form begins")
    parser.add_argument("--check", action="store_true", help="compare with the plain form instead of timing")
    options = parser.parse_args()
    bench, todo = Bench(), plan(options)
    fields = ["pass", "form", "classes", "batch", "stage", "seconds", "peak_mb", "needed_gb", "rounds", "error",
              "labels_changed", *machine()]  # fmt: skip
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with open(options.csv, "w", newline="") as file, Progress(transient=True) as progress:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        if options.check:
            return checked(bench, writer)
        task = progress.add_task("", total=len(todo))
        for one in todo:
            progress.update(task, description=" ".join(map(str, one)))
            writer.writerows(row | machine() for row in measure(bench, *one, longest=options.seconds))
            file.flush()
            progress.advance(task)
    return 0


def checked(bench: Bench, writer: csv.DictWriter) -> int:
    classes = 10 if DRY else 150
    rows = check(bench, classes)
    writer.writerows(row | machine() for row in rows)
    for row in rows:
        print(f"{row['form']:<24} error {row['error']}   labels changed {row['labels_changed']}")
    if DEVICE == "cuda":
        print_kernels(bench, classes)
    print(wrong(rows) or "the model agrees with its plain form")
    return 1 if wrong(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
