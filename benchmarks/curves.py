"""Curves of mIoU during the trainings that `fgaseg ablate` has made: a row of Table II each, all seeds.

    fgaseg ablate II --steps 1000 --seed 0,1,2 --out runs/ablate train.eval_every=100
    python benchmarks/curves.py runs/ablate --steps 1000 --seed 0,1,2 --picture curves.png --csv curves.csv

Folder, --steps, --seed, --on and overrides are those of `fgaseg ablate`. With several --steps the schedules are drawn
beside each other. A line is the mean over the seeds, its band from the lowest to the highest.
"""

import argparse
import csv
import io
import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from fgaseg.files import atomic_write
from fgaseg.reproduce.ablations.jobs import base_config, plan_jobs
from fgaseg.reproduce.ablations.tables import select_tables

Points = dict[tuple[int, str, str, int], list[float]]  # (steps of the schedule, row, set, step) → mIoU of each seed


def collect(folder: Path, on: str, steps: list[int], seeds: list[int], overrides: list[str]) -> Points:
    """The evaluations of every row of Table II that is there."""
    found: Points = defaultdict(list)
    for count in steps:
        base, encoders = base_config(on, count, folder, overrides)
        for (row, seed), job in plan_jobs(select_tables(["II"]), base, encoders, seeds, folder).items():
            log = job.folder / "log.jsonl"
            if not row.labels or seed not in seeds or not log.exists():
                continue
            name = " + ".join(part for part, on in zip(("P2T", "T2P", "LCS"), row.labels, strict=True) if on) or "none"
            for line in map(json.loads, log.open()):
                if "miou_gt" in line:
                    found[count, name, line["set"], line["step"]].append(100 * line["miou_gt"])
    return found


def draw(points: Points, picture: Path) -> None:
    """One panel for each validation set and schedule; lines for the rows, in the same colour everywhere."""
    panels = sorted({(dataset, steps) for steps, _, dataset, _ in points})
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(row for _, row, _, _ in points))}
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.6 * len(panels) + 2, 3.4), squeeze=False)
    lines = {}
    for axis, (dataset, steps) in zip(axes[0], panels, strict=True):
        for name, colour in colours.items():
            at = sorted(step for count, row, one, step in points if (count, row, one) == (steps, name, dataset))
            if not at:
                continue
            runs = [points[steps, name, dataset, step] for step in at]
            (lines[name],) = axis.plot(at, [sum(values) / len(values) for values in runs], color=colour)
            axis.fill_between(at, list(map(min, runs)), list(map(max, runs)), color=colour, alpha=0.12)
        axis.set(title=f"{dataset}, {steps} steps", xlabel="step", ylabel="mIoU, %")
        axis.grid(alpha=0.3)
    figure.tight_layout(rect=(0, 0, 1 - 2 / (3.6 * len(panels) + 2), 1))
    figure.legend(lines.values(), lines, loc="center right", fontsize="small")
    atomic_write(picture, lambda file: figure.savefig(file, format="png", dpi=110))


def write_csv(points: Points, path: Path) -> None:
    rows = [(*key, round(value, 2)) for key, values in sorted(points.items()) for value in values]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("schedule", "row", "set", "step", "miou"), *rows])
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def whole_numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--on", default="scenes")
    parser.add_argument("--steps", type=whole_numbers, required=True)
    parser.add_argument("--seed", type=whole_numbers, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--csv", type=Path, required=True)
    options = parser.parse_args()
    points = collect(options.folder, options.on, options.steps, options.seed, options.overrides)
    if not points:
        parser.error(f"{options.folder}: no evaluations of these rows; give ablate's own --steps, --seed and overrides")
    draw(points, options.picture)
    write_csv(points, options.csv)


if __name__ == "__main__":
    main()
