"""Training and scoring the rows: locked against other processes, resumed where they stopped, never done twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...data import data_sets
from ...environment import processor
from ...errors import NotFiniteError, TrainingError, UsageError
from ...evaluation import FIGURES
from ...files import atomic_write
from ...model import FGASeg
from ...threads import fixed_threads
from ...training import train
from ..demo import validation_scores
from .jobs import Job, base_config, plan_jobs
from .report import collect, markdown, percentages
from .tables import select_tables

STEPS = 250
POLL_SECONDS = 5.0  # between two looks at rows that other processes are training

log = logging.getLogger(__name__)


def run_ablations(
    names: Sequence[str] = (),
    on: str = "scenes",
    steps: int = STEPS,
    seeds: Sequence[int] = (0,),
    out: Path = Path("runs/ablate"),
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Train and score every row of the named tables (none named: all); write results.json and tables.md to `out`.

    on         "scenes" (the demo's drawn scenes and encoders) or a training configuration. If that has no pretrained
               encoders, they are trained first, alone and by its own schedule, with per-patch cosines as logits
               (eq. 4), and every row starts from them
    steps      of every row; warm-up is limited to a tenth of them
    seeds      one run of every row for each; the default row also runs with NOISE_SEEDS, to estimate the noise
    overrides  of the configuration, as "key=value"; the rows' own switches win over them
    returns    the content of results.json, which `markdown` renders

    A finished row is not repeated and an interrupted one resumes. Several processes may share `out`: each takes rows
    that no other is working on. A row whose loss becomes NaN or infinite is recorded as "failed".

    Raises UsageError for an unknown table and under torchrun, ConfigError, and whatever `train` raises.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("torchrun does not spread rows: start several processes with one --out instead")
    tables = select_tables(names)
    base, encoders = base_config(on, steps, out, overrides)
    jobs = plan_jobs(tables, base, encoders, seeds, out)
    about = {
        "command": _command(names, on, steps, seeds, overrides),
        "machine": f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "steps": steps,
        "seeds": list(seeds),
    }
    if encoders is not None:
        about["encoders"] = _train_encoders(encoders)
    results: dict[str, Any] = {}
    for _ in finish(list({job.file: job for job in jobs.values()}.values())):
        results = about | collect(tables, jobs, seeds)
        _save_json(out / "results.json", results)
        _save_text(out / "tables.md", markdown(results))
    return results


def _command(names: Sequence[str], on: str, steps: int, seeds: Sequence[int], overrides: Sequence[str]) -> str:
    options = ["--on", on, "--steps", str(steps), "--seed", ",".join(map(str, seeds))]
    return " ".join(["fgaseg ablate", *names, *options, *overrides])


def _train_encoders(encoders: Job) -> dict[str, Any]:
    """Train the encoders that all rows start from; returns their folder, steps and scores."""
    list(finish([encoders]))
    result = encoders.result or {}
    if "failed" in result:
        raise TrainingError(f"the encoders that all rows start from: {result['failed']}")
    return {"folder": encoders.folder.name, "steps": encoders.config.train.steps, "miou": percentages(result)}


def finish(jobs: Sequence[Job]) -> Iterator[Job]:
    """Run all jobs that have no result; yields each job as soon as it has one, whichever process obtained it."""
    waiting = list(enumerate(jobs, 1))
    while waiting:
        for number, job in waiting:
            with lock(job.folder) as acquired:
                if acquired and job.result is None:
                    log.info("row %d of %d: %s", number, len(jobs), job.file)
                    run_job(job)
            if job.result is not None:
                yield job
        waiting = [(number, job) for number, job in waiting if job.result is None]
        if waiting:
            time.sleep(POLL_SECONDS)  # other processes hold these


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Yields whether the folder's lock was free and is now held; the system releases it if this process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            acquired = True
        except BlockingIOError:
            acquired = False
        yield acquired


def run_job(job: Job) -> None:
    """Obtain a job's result and store it in `job.file`; needs the folder's lock."""
    if job.top_k is not None:
        trained = Job(job.folder, job.config)
        if trained.result is None:
            run_job(trained)
        _save_json(job.file, _evaluate_pruned(job, trained.result or {}))
        return
    try:
        summary = train(job.config)
    except NotFiniteError as error:
        _save_json(job.file, {"failed": str(error)})
        return
    _save_json(job.file, {
        "scores": _figures(summary.scores), "seconds": summary.seconds, "device": summary.device,
        "parameters": summary.parameters, "trained_parameters": summary.trained_parameters, "losses": summary.losses,
        "config": job.config.changes(),
    })  # fmt: skip
    for folder in job.folder.glob("checkpoint*"):  # nothing resumes a training that has its result
        shutil.rmtree(folder, ignore_errors=True)


def _evaluate_pruned(job: Job, trained: dict[str, Any]) -> dict[str, Any]:
    """Scores and time of a trained model with the job's top_k."""
    if "failed" in trained:
        return trained
    device = trained["device"]
    model = FGASeg.from_pretrained(job.folder / "model", top_k=job.top_k).to(device)
    times = {name: milliseconds(model, data, device) for name, data in data_sets(job.config)[1].items()}
    return {"scores": _figures(validation_scores(model, job.config)), "milliseconds": times}


def milliseconds(model: FGASeg, data: Any, device: str, count: int = 30) -> float:
    """Mean time per image over the first `count` images of a data set, the best of three rounds.

    On a CPU the processor time of one thread, which other processes do not disturb; on a GPU wall time.
    """
    photos = [data[index]["image"] for index in range(min(count, len(data)))]
    vocabulary, on_gpu = model.encode(data.names), device.startswith("cuda")
    clock, rounds = time.perf_counter if on_gpu else time.process_time, []
    with fixed_threads(1):
        for _ in range(3):
            began = clock()
            for photo in photos:
                model.predict_labels(photo, vocabulary)
            if on_gpu:
                torch.cuda.synchronize()
            rounds.append(clock() - began)
    return 1000 * min(rounds) / len(photos)


def _figures(scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {name: {key: getattr(one, key) for key in FIGURES} for name, one in scores.items()}


def _save_json(file: Path, data: dict[str, Any]) -> None:
    _save_text(file, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _save_text(file: Path, text: str) -> None:
    atomic_write(file, lambda handle: handle.write(text.encode()))
