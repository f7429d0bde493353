"""A configuration that trains in seconds, and the plan of an ablation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from tiny import ARCHITECTURE

from fgaseg.reproduce.ablations.jobs import Jobs, base_config, plan_jobs
from fgaseg.reproduce.ablations.tables import select_tables

MODEL = {
    "encoder": {"architecture": ARCHITECTURE, "finetune": "scratch"}, "image_size": 32, "hidden": 32, "heads": 2,
    "aggregation_layers": 1, "window": 4, "guidance_channels": [16, 16], "guidance_hidden": [8, 8],
    "decoder_channels": [16, 16], "p2t_heads": 2,
}  # fmt: skip


@pytest.fixture
def tiny_yaml(tmp_path: Path) -> str:
    """The path of a configuration that trains its encoders from scratch, in seconds."""
    file = tmp_path / "tiny.yaml"
    data = {"scenes": True, "crop": 32, "val_count": 2}
    recipe = {"steps": 3, "batch": 2, "lr": 1e-3, "classes_per_step": 4, "log_every": 1, "warmup": 2}
    file.write_text(yaml.safe_dump({"model": MODEL, "data": data, "train": recipe}))
    return str(file)


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Jobs]:
    """plan(tables, seeds, steps, overrides): the jobs of an ablation on scenes, in `tmp_path`."""

    def planned(
        names: Sequence[str], seeds: Sequence[int] = (0,), steps: int = 5, overrides: Sequence[str] = ()
    ) -> Jobs:
        base, encoders = base_config("scenes", steps, tmp_path, overrides)
        return plan_jobs(select_tables(names), base, encoders, seeds, tmp_path)

    return planned
