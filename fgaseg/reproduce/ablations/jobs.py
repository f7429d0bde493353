"""Which trainings the rows of the tables need, and the folder of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config import Config, load_config
from ...errors import ConfigError
from ..demo import demo_config
from .tables import DEFAULT, Row, Table, rows_of

DEFAULT_ROW = Row(())
NOISE_SEEDS = (
    0,
    1,
    2,
    3,
    4,
)  # of the default row; with three, only differences of 6 deviations would be significant
ENCODER_LR_FACTOR = 0.05  # for encoders that were trained here, as in configs/demo.yaml
OWN_KEYS = ("train.out=", "train.seed=", "train.steps=")  # options of the command

# what changes neither the weights nor the scores of a training
WITHOUT_EFFECT = (
    ("train", "out"), ("train", "eval_every"), ("train", "save_every"), ("train", "log_every"),
    ("train", "tensorboard"), ("train", "keep_best"), ("train", "trackers"), ("train", "project"), ("data", "workers"),
)  # fmt: skip
# the encoders alone: logits are the cosines of pixel and text embeddings
ENCODERS_ALONE = (
    "model.propagation=false", "model.p2t_layers=0", "model.t2p=false", "model.lcs=false",
    "model.encoder.finetune=scratch",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One result to obtain: a training, or, with `top_k`, an evaluation of its model with that top_k."""

    folder: Path
    config: Config
    top_k: int | None = None

    @property
    def file(self) -> Path:
        """Where the result is stored."""
        return self.folder / ("result.json" if self.top_k is None else f"top_k_{self.top_k}.json")

    @property
    def result(self) -> dict[str, Any] | None:
        """The stored result; None if there is none yet."""
        return json.loads(self.file.read_text()) if self.file.exists() else None


Jobs = Mapping[tuple[Row, int], Job]  # by row and seed


def base_config(on: str, steps: int, out: Path, overrides: Sequence[str]) -> tuple[Config, Job | None]:
    """The configuration that all rows share, and the training of their encoders if none are pretrained.

    on         "scenes" or the path of a training configuration
    overrides  of the configuration; they win over DEFAULT
    Raises ConfigError.
    """
    for text in overrides:
        if text.startswith(OWN_KEYS):
            raise ConfigError(f"override {text!r}: set by ablate itself; use --out, --seed and --steps")
    given = [*DEFAULT, "train.eval_every=0", "train.save_every=50", "train.tensorboard=false", *overrides]
    base = demo_config(given) if on == "scenes" else load_config(on, *given)
    encoders = None
    if base.model.encoder.pretrained is None:
        encoders = make_job(out, base.override(*ENCODERS_ALONE), None)
        start = f"model.encoder.pretrained={json.dumps(str(encoders.folder / 'model'))}"
        base = base.override(start, f"train.encoder_lr_factor={ENCODER_LR_FACTOR}", *overrides)
    warmup = min(base.train.warmup, steps // 10)
    return base.override(f"train.steps={steps}", f"train.warmup={warmup}"), encoders


def row_config(base: Config, row: Row, seed: int = 0) -> Config:
    """The training configuration of a row; `train.out` is set by `make_job`."""
    return base.override(*row.switches, f"train.seed={seed}")


def plan_jobs(
    tables: Mapping[str, Table], base: Config, encoders: Job | None, seeds: Sequence[int], out: Path
) -> dict[tuple[Row, int], Job]:
    """The job of every row and seed, the default row with NOISE_SEEDS first. Rows that are alike share a job."""
    wanted = [(DEFAULT_ROW, seed) for seed in dict.fromkeys((*seeds, *NOISE_SEEDS))]
    wanted += [(row, seed) for row in rows_of(tables.values()) for seed in seeds]
    return {(row, seed): make_job(out, row_config(base, row, seed), encoders, row.top_k) for row, seed in wanted}


def make_job(out: Path, config: Config, encoders: Job | None, top_k: int | None = None) -> Job:
    """The job of a configuration whose encoders `encoders` trains (None: they come as the configuration says)."""
    folder = out / job_key(config, encoders)
    return Job(folder, config.override(**{"train.out": folder}), top_k)


def job_key(config: Config, encoders: Job | None) -> str:
    """A hash of everything that decides a training's result; the encoders' file counts by content, not by path."""
    data = config.changes()
    for section, key in WITHOUT_EFFECT:
        data.get(section, {}).pop(key, None)
    source = config.model.encoder.pretrained
    if encoders is not None:
        data["start"] = encoders.folder.name
    elif source is not None and Path(source).is_file():
        data["start"] = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    else:
        data["start"] = source
    data.get("model", {}).get("encoder", {}).pop("pretrained", None)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
