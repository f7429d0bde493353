"""`fgaseg ablate`: the rows of the paper's Tables II to VII, trained on any data set, as tables in the paper's form."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown

from ..config import Config, load_config
from ..data import data_sets
from ..environment import processor
from ..errors import ConfigError, NotFiniteError, TrainingError
from ..evaluation import FIGURES
from ..files import atomic_write
from ..model import FGASeg
from ..training import train
from .demo import demo_config, score

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    labels: Labels  # its first cells
    switches: tuple[str, ...] = ()  # what it sets, over DEFAULT
    paper: str = ""  # the paper's mIoU on A-150, where its text gives it
    top_k: int | None = None  # Table VI: prune the trained model this much, inference alone
    paper_time: str = ""


@dataclass(frozen=True)
class Claim:
    """What the paper says of two rows of a part: the first has the higher mIoU."""

    better: Labels
    worse: Labels
    source: str  # its figures on A-150, or its words


@dataclass(frozen=True)
class Part:
    """Rows under common headings, such as (a) and (b) of Table IV."""

    headings: Labels
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Table:
    title: str
    parts: tuple[Part, ...]
    note: str = ""


# "default parameters" of the paper's ablations; λ_align, sizes and schedule are the configuration's own
DEFAULT = (
    "model.p2t_layers=1", "model.gamma_trainable=true", "model.t2p=true", "model.t2p_kernel_size=3", "model.lcs=true",
    "model.kernel_size=3", "model.kernel_norm=taps", "model.fusion=cat", "model.fast=false", "model.top_k=null",
    "model.encoder.finetune=attention",
)  # fmt: skip
FAST = ("model.fast=true", "model.top_k=8")
NOISE_SEEDS = (0, 1, 2, 3, 4)  # with three, only differences of 6 deviations could count; with five, of 4
STEPS = 250
ENCODER_LR_FACTOR = 0.05  # of encoders that were trained here, as in configs/demo.yaml


def _components(p2t: bool, t2p: bool, lcs: bool, paper: str = "") -> Row:
    keys = {"model.p2t_layers": int(p2t), "model.t2p": t2p, "model.lcs": lcs}
    labels = tuple("✓" if on else "" for on in (p2t, t2p, lcs))
    return Row(labels, tuple(f"{key}={json.dumps(value)}" for key, value in keys.items()), paper)


def _sweep(heading: str, key: str, rows: dict[str, str], *claims: Claim, values: dict[str, str] | None = None) -> Part:
    """A part that varies one key; rows: label -> the paper's figure; values: of labels that are not the value."""
    chosen = values or {}
    made = (Row((label,), (f"{key}={chosen.get(label, label)}",), paper) for label, paper in rows.items())
    return Part((heading,), tuple(made), claims)


def _above(better: str, worse: str, source: str) -> Claim:
    return Claim((better,), (worse,), source)


def _fixed(gamma: float) -> tuple[str, ...]:
    return (f"model.gamma={gamma}", "model.gamma_trainable=false")


TABLES = {
    "II": Table(
        "Table II: components",
        (
            Part(
                ("P2Tformer", "T2Ploss", "Local cost"),
                (
                    _components(False, False, False),
                    _components(True, False, False),
                    _components(True, True, False),
                    _components(True, False, True),
                    _components(True, True, True, "31.4"),
                ),
                (
                    Claim(("✓", "✓", "✓"), ("", "", ""), "31.4 against 29.9 for its lowest row"),
                    Claim(("✓", "✓", ""), ("✓", "", ""), "slight improvements"),
                    Claim(("✓", "✓", "✓"), ("✓", "✓", ""), "the best performance"),
                ),
            ),
        ),
        "The paper's four rows have 29.9, 30.3, 31.4 and 31.4 on A-150; the ticks of the first three are lost in its "
        "text, so only the last is placed here.",
    ),
    "III": Table(
        "Table III: pixel alignment",
        (
            _sweep("P2Tformer", "model.p2t_layers", {"no": "", "yes": "31.4"},
                   _above("yes", "no", "higher scores across all datasets"), values={"no": "0", "yes": "1"}),
            _sweep("layers N", "model.p2t_layers", {"0": "", "1": "31.4", "2": "", "4": "", "6": ""},
                   _above("1", "0", "substantially better"), _above("6", "1", "1 and 6 both high, little gained")),
            Part(
                ("γ",),
                (Row(("trainable",), (), "31.4"), *(Row((f"fixed {g}",), _fixed(g)) for g in (0.1, 0.5, 1.0))),
                (_above("trainable", "fixed 0.5", "consistently better than fixed values"),),
            ),
            _sweep("λ_align", "model.loss.lambda_align", {"0.002": "", "0.02": "31.4", "0.2": "", "2.0": ""},
                   _above("0.02", "0.002", "smaller values do not constrain enough"),
                   _above("0.02", "2.0", "larger values dominate the loss")),
        ),
        "The body of the paper's table is lost; rows and claims are those of its prose, and 31.4 is its default row. "
        "λ_align weighs the mean over pixels × classes here.",
    ),
    "IV": Table(
        "Table IV: local cost",
        (
            _sweep("kernel size", "model.kernel_size",
                   {"1": "31.4", "3": "31.4", "5": "31.3", "7": "31.8", "9": "31.9", "11": "32.0", "13": "31.8",
                    "15": "31.2"},
                   _above("9", "3", "31.9 against 31.4"), _above("9", "15", "31.9 against 31.2")),
            _sweep("kernel norm", "model.kernel_norm", {"none": "29.4", "taps": "31.4", "channels": ""},
                   _above("taps", "none", "31.4 against 29.4")),
        ),
        "T2Ploss keeps its 3×3 kernel. The paper's \"Yes\" is `taps` (softmax over a kernel's K² taps); `channels` is "
        "the other reading of its words. Kernels wider than the patch grid see padding with their outer taps.",
    ),
    "V": Table(
        "Table V: decoder",
        (
            Part(
                ("decoder",),
                (
                    Row(("Fast+Cat",), (*FAST, "model.fusion=cat"), "31.6"),
                    Row(("Fast+Add",), (*FAST, "model.fusion=add"), "31.6"),
                    Row(("NoFast+Cat",), ("model.fast=false", "model.top_k=null", "model.fusion=cat"), "31.4"),
                    Row(("NoFast+Add",), ("model.fast=false", "model.top_k=null", "model.fusion=add"), "30.9"),
                ),
                (
                    _above("NoFast+Cat", "NoFast+Add", "31.4 against 30.9"),
                    _above("NoFast+Cat", "Fast+Add", "called highest, though 31.4 against 31.6"),
                ),
            ),
        ),
        "Fast: one auxiliary head, top-k 8.",
    ),
    "VI": Table(
        "Table VI: top-k, inference alone with the Fast+Cat model",
        (
            Part(
                ("top-k",),
                tuple(
                    Row((str(k),), (*FAST, "model.fusion=cat"), miou, k, milliseconds)
                    for k, miou, milliseconds in (
                        (1, "31.4", "146"), (4, "31.5", "185"), (8, "31.4", "210"), (16, "31.5", "240"),
                        (32, "31.5", "293"))
                ),
            ),
        ),
        "Time: ms of processor time an image on one thread, labels of the photo's size included (on a GPU: ms of wall "
        "time). The paper gives no unit.",
    ),
    "VII": Table(
        "Table VII: what trains in CLIP",
        (
            _sweep("strategy", "model.encoder.finetune", {"prompt-16": "", "attention": "31.4", "full": ""},
                   _above("attention", "prompt-16", "prompt-16 is lowest"),
                   _above("attention", "full", "full falls short of attention"), values={"prompt-16": "prompt"}),
        ),
        "The body of the paper's table is lost; the claims are those of its prose, and 31.4 is its default row.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One result to obtain: a training, or with `top_k` another scoring of its model. Equal jobs are done once."""

    folder: Path
    config: Config
    top_k: int | None = None

    @property
    def file(self) -> Path:
        return self.folder / ("result.json" if self.top_k is None else f"top_k_{self.top_k}.json")

    @property
    def result(self) -> dict[str, Any] | None:
        return json.loads(self.file.read_text()) if self.file.exists() else None


def run_ablations(
    names: Sequence[str],
    on: str = "scenes",
    steps: int = STEPS,
    seeds: Sequence[int] = (0,),
    out: Path = Path("runs/ablate"),
    overrides: Sequence[str] = (),
    as_json: bool = False,
) -> dict[str, Any]:
    """Train and score every row of the tables (none named: all), print them, leave results.json and tables.md in `out`.

    on         "scenes" (the demo's drawn scenes and encoders) or a training configuration. Where that has no pretrained
               encoders, they are trained first, by its own schedule, patch by patch (eq. 4), and every row starts there
    steps      of every row; warm-up is cut to a tenth of them
    seeds      runs of every row; the default row also has NOISE_SEEDS, from which the noise is estimated
    overrides  of the configuration; the rows' own switches win over them
    returns    what results.json holds

    A finished row is not repeated, an interrupted one goes on. Several processes may share `out`: each takes rows that
    no other is at. A row whose loss becomes no number is a result ("failed"). Raises ConfigError and what `train` does.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("ablate: rows are not spread by torchrun: start several processes with one --out instead")
    chosen = _tables(names)
    for text in overrides:
        if text.startswith(("train.out=", "train.seed=", "train.steps=")):
            raise ConfigError(f"override {text!r}: ablate sets it; use --out, --seed and --steps")
    base, encoders = _base(on, steps, out, overrides)
    jobs = _jobs(chosen, base, encoders, seeds, out)
    about = {
        "command": _command(names, on, steps, seeds, overrides),
        "machine": f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "steps": steps,
        "seeds": list(seeds),
    }
    console = Console(stderr=True)
    if encoders is not None:
        about["encoders"] = _trained(encoders, console)
    results: dict[str, Any] = {}
    for _ in _finish(list({job.file: job for job in jobs.values()}.values()), console):
        results = about | _collect(chosen, jobs, seeds)
        _write(out, results)
    if as_json:
        sys.stdout.write(json.dumps(results) + "\n")
    elif sys.stdout.isatty():
        Console().print(Markdown(markdown(results)))
    else:
        sys.stdout.write(markdown(results))
    return results


# --- which rows, and what each is made of


def _tables(names: Sequence[str]) -> dict[str, Table]:
    for name in names:
        if name.upper() not in TABLES:
            raise ConfigError(f"table {name!r}: there is none of that name; give some of {', '.join(TABLES)}")
    return {key: TABLES[key] for key in TABLES if not names or key in [name.upper() for name in names]}


def _base(on: str, steps: int, out: Path, overrides: Sequence[str]) -> tuple[Config, Job | None]:
    """What all rows share, and the job that trains their encoders if nothing pretrained is given."""
    given = [*DEFAULT, "train.eval_every=0", "train.save_every=50", "train.tensorboard=false", *overrides]
    base = demo_config(given) if on == "scenes" else load_config(on, given)
    encoders = None
    if base.model.encoder.pretrained is None:
        alone = ["model.propagation=false", "model.p2t_layers=0", "model.t2p=false", "model.lcs=false",
                 "model.encoder.finetune=scratch"]  # fmt: skip
        encoders = _job(out, base.override(alone), None)
        start = f"model.encoder.pretrained={json.dumps(str(encoders.folder / 'model'))}"
        base = base.override([start, f"train.encoder_lr_factor={ENCODER_LR_FACTOR}", *overrides])
    warmup = min(base.train.warmup, steps // 10)
    return base.override([f"train.steps={steps}", f"train.warmup={warmup}"]), encoders


def row_config(base: Config, row: Row, seed: int = 0) -> Config:
    """The training of a row, but for its folder."""
    return base.override([*row.switches, f"train.seed={seed}"])


def _job(out: Path, config: Config, start: Job | None, top_k: int | None = None) -> Job:
    """`start`: what trained the encoders."""
    folder = out / _key(config, start)
    return Job(folder, config.override([f"train.out={json.dumps(str(folder))}"]), top_k)


def _key(config: Config, start: Job | None) -> str:
    """A name for all that decides a training's result, the same wherever its encoders' file lies."""
    plain = config.model_dump(mode="json", exclude_defaults=True)
    for section, key in (("train", "out"), ("train", "eval_every"), ("train", "save_every"), ("train", "log_every"),
                         ("train", "tensorboard"), ("data", "workers")):  # fmt: skip
        plain.get(section, {}).pop(key, None)
    source = config.model.encoder.pretrained
    if start is not None:
        plain["start"] = start.folder.name
    elif source is not None and Path(source).is_file():
        plain["start"] = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    else:
        plain["start"] = source
    plain["model"]["encoder"].pop("pretrained", None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def _jobs(
    tables: dict[str, Table], base: Config, encoders: Job | None, seeds: Sequence[int], out: Path
) -> dict[tuple[Row, int], Job]:
    """The job of every row and seed, the default row first."""
    wanted = [(Row(()), seed) for seed in dict.fromkeys((*seeds, *NOISE_SEEDS))]
    wanted += [(row, seed) for row in _rows(tables.values()) for seed in seeds]
    return {(row, seed): _job(out, row_config(base, row, seed), encoders, row.top_k) for row, seed in wanted}


def _rows(tables: Iterable[Table]) -> list[Row]:
    return [row for table in tables for part in table.parts for row in part.rows]


def _command(names: Sequence[str], on: str, steps: int, seeds: Sequence[int], overrides: Sequence[str]) -> str:
    options = ["--on", on, "--steps", str(steps), "--seed", ",".join(map(str, seeds))]
    return " ".join(["fgaseg ablate", *names, *options, *overrides])


# --- running them


def _finish(jobs: list[Job], console: Console) -> Iterator[Job]:
    """Do all jobs; yields each as soon as it has a result, whichever process obtained it."""
    waiting = jobs
    while waiting:
        for job in waiting:
            with _alone(job.folder) as free:
                if free and job.result is None:
                    console.print(
                        f"row {jobs.index(job) + 1} of {len(jobs)}: {job.file}", highlight=False, soft_wrap=True
                    )
                    _do(job)
            if job.result is not None:
                yield job
        waiting = [job for job in waiting if job.result is None]
        if waiting:
            time.sleep(5)  # another process is at these


def _trained(encoders: Job, console: Console) -> dict[str, Any]:
    """Train what all rows start from; its time and scores."""
    list(_finish([encoders], console))
    result = encoders.result or {}
    if "failed" in result:
        raise TrainingError(f"the encoders that all rows start from: {result['failed']}")
    return {"folder": encoders.folder.name, "steps": encoders.config.train.steps, "miou": _percents(result)}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """True unless another process is at this folder; the system releases the claim of one that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free


def _do(job: Job) -> None:
    if job.top_k is not None:
        trained = Job(job.folder, job.config)
        if trained.result is None:
            _do(trained)
        _save(job.file, _pruned(job, trained.result or {}))
        return
    try:
        summary = train(job.config)
    except NotFiniteError as error:
        _save(job.file, {"failed": str(error)})
        return
    figures = {name: {key: getattr(one, key) for key in FIGURES} for name, one in summary.scores.items()}
    _save(job.file, {
        "scores": figures, "seconds": summary.seconds, "device": summary.device, "parameters": summary.parameters,
        "trained_parameters": summary.trained_parameters, "losses": summary.losses,
        "config": job.config.model_dump(mode="json", exclude_defaults=True),
    })  # fmt: skip
    for folder in job.folder.glob("checkpoint*"):  # the result is there: nothing will go on from them
        shutil.rmtree(folder, ignore_errors=True)


def _pruned(job: Job, trained: dict[str, Any]) -> dict[str, Any]:
    """Scores and time of a trained model at another top-k."""
    if "failed" in trained:
        return trained
    device = trained["device"]
    model = FGASeg.from_pretrained(job.folder / "model", top_k=job.top_k).to(device)
    scores = {name: {key: getattr(one, key) for key in FIGURES} for name, one in score(model, job.config).items()}
    times = {name: _milliseconds(model, data, device) for name, data in data_sets(job.config)[1].items()}
    return {"scores": scores, "milliseconds": times}


def _milliseconds(model: FGASeg, data: Any, device: str, count: int = 30) -> float:
    """Time of an image, mean over the first `count`, the best of three rounds; one thread's, whatever else runs."""
    photos = [data[index]["image"] for index in range(min(count, len(data)))]
    vocabulary, on_gpu = model.encode(data.names), device.startswith("cuda")
    clock, threads = time.perf_counter if on_gpu else time.process_time, torch.get_num_threads()
    torch.set_num_threads(1)
    rounds = []
    try:
        for _ in range(3):
            began = clock()
            for photo in photos:
                model.predict_labels(photo, vocabulary)
            if on_gpu:
                torch.cuda.synchronize()
            rounds.append(clock() - began)
    finally:
        torch.set_num_threads(threads)
    return 1000 * min(rounds) / len(photos)


def _save(file: Path, data: dict[str, Any]) -> None:
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    atomic_write(file, lambda handle: handle.write(text.encode()))


# --- results, and their tables


def _collect(tables: dict[str, Table], jobs: dict[tuple[Row, int], Job], seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that has a result by now, as plain JSON types; mIoU in percent."""
    found = {key: job.result for key, job in jobs.items()}
    columns = next((list(result["scores"]) for result in found.values() if result and "scores" in result), [])
    default = {str(seed): _percents(result) for (row, seed), result in found.items() if row == Row(()) and result}
    shown = {
        name: [
            [_line(row, [found[row, seed] for seed in seeds], jobs[row, seeds[0]].folder.name) for row in part.rows]
            for part in table.parts
        ]
        for name, table in tables.items()
    }
    repeated = _repeated(jobs.values())
    noise = {column: _noise([list(_column(runs, column)) for runs in repeated]) for column in columns}
    return {"columns": columns, "default_row": default, "noise": noise, "tables": shown}


def _repeated(jobs: Iterable[Job]) -> list[list[dict[str, float]]]:
    """The scores of trainings that differ in the seed alone, group by group."""
    groups: dict[str, dict[Path, dict[str, float]]] = {}
    for job in jobs:
        if job.top_k is None and (scores := _percents(job.result)):
            alike = job.config.override(["train.seed=0", "train.out=any"]).to_json()
            groups.setdefault(alike, {})[job.folder] = scores
    return [list(group.values()) for group in groups.values()]


def _line(row: Row, results: list[dict[str, Any] | None], folder: str) -> dict[str, Any]:
    runs = [result for result in results if result is not None]
    line: dict[str, Any] = {"labels": list(row.labels), "switches": list(row.switches), "folder": folder}
    if failed := [run["failed"] for run in runs if "failed" in run]:
        return line | {"failed": failed[0]}
    line["runs"] = [_percents(run) for run in runs]
    line["seconds"] = [round(run["seconds"]) for run in runs if "seconds" in run]
    if runs and len(runs) == len(results):
        line["miou"] = {column: statistics.mean(_column(line["runs"], column)) for column in runs[0]["scores"]}
        if row.top_k is not None:
            times = [run["milliseconds"] for run in runs]
            line["milliseconds"] = {column: statistics.mean(_column(times, column)) for column in times[0]}
        else:
            line["trained_parameters"] = runs[0]["trained_parameters"]
    return line


def _percents(result: dict[str, Any] | None) -> dict[str, float]:
    scores = (result or {}).get("scores", {})
    return {name: round(100 * figures["miou_gt"], 2) for name, figures in scores.items()}


def _column(runs: Iterable[dict[str, float]], column: str) -> Iterator[float]:
    return (run[column] for run in runs if column in run)


# Student's t, two-sided 95 %, by degrees of freedom 1, 2, ...; beyond ten the tenth, which errs on the safe side
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


def _noise(groups: list[list[float]]) -> dict[str, float] | None:
    """Standard deviation between seeds, pooled over groups of runs that differ in the seed alone; None: no two runs.

    "counts" is the difference of two single runs that this noise explains in one of twenty cases.
    """
    groups = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    deviation = math.sqrt(sum(statistics.variance(group) * (len(group) - 1) for group in groups) / freedom)
    counts = T95[min(freedom, len(T95)) - 1] * math.sqrt(2) * deviation
    return {"deviation": deviation, "degrees_of_freedom": freedom, "counts": counts}


def _write(out: Path, results: dict[str, Any]) -> None:
    _save(out / "results.json", results)
    atomic_write(out / "tables.md", lambda file: file.write(markdown(results).encode()))


CAVEAT = (
    "Short schedules of a small model: only the direction of a difference can be compared with the paper's ViT-B/16, "
    "trained on COCO-Stuff. Of twenty differences without any cause, one passes the 95 % below."
)


def markdown(results: dict[str, Any]) -> str:
    """The tables in the paper's form, each with what the paper says and whether it is so here."""
    lines = [f"# Ablations: mIoU (%) of {', '.join(results['columns'])}", "", f"`{results['command']}`  "]
    lines += [f"{results['machine']}; {results['steps']} steps a row, seeds {results['seeds']}.", "", CAVEAT, ""]
    if "encoders" in results:
        start = results["encoders"]
        alone = ", ".join(f"{column} {value:.1f}" for column, value in start["miou"].items())
        lines += [f"All rows start from encoders trained alone for {start['steps']} steps: mIoU {alone}.", ""]
    lines += [*_noise_text(results), ""]
    for name, parts in results["tables"].items():
        table = TABLES[name]
        lines += [f"## {table.title}", "", *([table.note, ""] if table.note else [])]
        for part, rows in zip(table.parts, parts, strict=True):
            lines += [*_part(part, rows, results["columns"]), ""]
            lines += [*_verdicts(part, rows, results), ""] if part.claims else []
            lines += [_pruning(rows, results["columns"]), ""] if name == "VI" else []
    return "\n".join(lines).rstrip() + "\n"


def _noise_text(results: dict[str, Any]) -> list[str]:
    lines = []
    for column, noise in results["noise"].items():
        runs = ", ".join(f"{value:.1f}" for value in _column(results["default_row"].values(), column))
        if noise is None:
            lines.append(f"Noise of {column}: not known, one seed only ({runs}).")
            continue
        lines.append(
            f"Noise of {column}: the default row with other seeds gives {runs}; standard deviation "
            f"{noise['deviation']:.2f} (degrees of freedom: {noise['degrees_of_freedom']}), so two single runs must "
            f"differ by {noise['counts']:.1f} to differ at all (95 %).  "
        )
    return lines


def _part(part: Part, rows: list[dict[str, Any]], columns: list[str]) -> list[str]:
    timed = any(row.top_k is not None for row in part.rows)
    times = [f"{column}, ms" for column in columns] if timed else []
    header = [*part.headings, *columns, *times, "paper: A-150", *(["paper: time"] if timed else [])]
    rule = [*(":--" for _ in part.headings), *("--:" for _ in header[len(part.headings) :])]
    body = []
    for row, line in zip(part.rows, rows, strict=True):
        cells = [_number(line, "miou", column) for column in columns]
        cells += [_number(line, "milliseconds", column) for column in columns if timed]
        body.append([*row.labels, *cells, row.paper or "–", *([row.paper_time] if timed else [])])
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *body)]


def _number(line: dict[str, Any], key: str, column: str) -> str:
    return "failed" if "failed" in line else f"{line[key][column]:.1f}" if key in line else "–"


def _verdicts(part: Part, rows: list[dict[str, Any]], results: dict[str, Any]) -> list[str]:
    lines = {row.labels: line for row, line in zip(part.rows, rows, strict=True)}
    return [
        f"- Paper: {_name(part, claim.better)} above {_name(part, claim.worse)} ({claim.source}). "
        f"Here: {_verdict(lines[claim.better], lines[claim.worse], results)}."
        for claim in part.claims
    ]


def _name(part: Part, labels: Labels) -> str:
    """Of a row: "kernel size 9", or the parts that are ticked."""
    if len(labels) == 1:
        return f"{part.headings[0]} {labels[0]}"
    return " + ".join(heading for heading, tick in zip(part.headings, labels, strict=True) if tick) or "none"


def _verdict(better: dict[str, Any], worse: dict[str, Any], results: dict[str, Any]) -> str:
    if "miou" not in better or "miou" not in worse:
        return "not both rows have a figure"
    texts = []
    for column in results["columns"]:
        gain, noise = better["miou"][column] - worse["miou"][column], results["noise"][column]
        limit = noise["counts"] / math.sqrt(len(results["seeds"])) if noise else None
        side = "as in the paper" if gain > 0 else "**the other way**"
        if limit is None:
            side = "noise not known"
        elif abs(gain) < limit:
            side = "within the noise"
        texts.append(f"{column} {gain:+.1f} ({side})")
    return ", ".join(texts)


def _pruning(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """How mIoU and time change from the smallest k to the largest; one model, so no noise of training in between."""
    if any("milliseconds" not in line for line in rows):
        return "Not all rows have a figure."
    first, last = rows[0], rows[-1]
    texts = []
    for column in columns:
        values = [line["miou"][column] for line in rows]
        ratio = last["milliseconds"][column] / first["milliseconds"][column]
        texts.append(f"{column} mIoU within {max(values) - min(values):.1f}, time × {ratio:.2f}")
    return (
        f"Paper, from k = {first['labels'][0]} to {last['labels'][0]}: mIoU within 0.1, time × 2.01 (A-150). "
        f"Here: {'; '.join(texts)}."
    )
