"""From the results of the rows to tables in the paper's form, each claim of the paper judged against the seed noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .jobs import DEFAULT_ROW, Job, Jobs
from .tables import ON, TABLES, Labels, Part, Row, Table

# Student's t, two-sided 95 %, by degrees of freedom; between two of them the smaller is used, which is conservative
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 15: 2.13, 20: 2.09,
       30: 2.04, 60: 2.00}  # fmt: skip

CAVEAT = (
    "Short schedules of a small model: only the direction of a difference can be compared with the paper's ViT-B/16, "
    "trained on COCO-Stuff. Of twenty differences due to chance alone, one exceeds the 95 % limit below."
)


# --- results, as the plain data that results.json holds


def collect(tables: Mapping[str, Table], jobs: Jobs, seeds: Sequence[int]) -> dict[str, Any]:
    """All results that exist by now, as plain JSON types; mIoU in percent.

    columns      the validation sets
    default_row  seed → validation set → mIoU
    noise        validation set → `seed_noise`
    tables       table → part → row, as `_row_results` gives it
    """
    found = {key: job.result for key, job in jobs.items()}
    columns = next((list(result["scores"]) for result in found.values() if result and "scores" in result), [])
    default = {str(seed): percentages(result) for (row, seed), result in found.items() if row == DEFAULT_ROW and result}
    shown = {
        name: [
            [
                _row_results(row, [found[row, seed] for seed in seeds], jobs[row, seeds[0]].folder.name)
                for row in part.rows
            ]
            for part in table.parts
        ]
        for name, table in tables.items()
    }
    groups = repeated_runs(jobs.values())
    noise = {column: seed_noise([list(_column(runs, column)) for runs in groups]) for column in columns}
    return {"columns": columns, "default_row": default, "noise": noise, "tables": shown}


def _row_results(row: Row, results: list[dict[str, Any] | None], folder: str) -> dict[str, Any]:
    """One row's results over the seeds; no mean ("miou") before all seeds are finished."""
    runs = [result for result in results if result is not None]
    data: dict[str, Any] = {"labels": list(row.labels), "switches": list(row.switches), "folder": folder}
    if failed := [run["failed"] for run in runs if "failed" in run]:
        return data | {"failed": failed[0]}
    data["runs"] = [percentages(run) for run in runs]
    data["seconds"] = [round(run["seconds"]) for run in runs if "seconds" in run]
    if runs and len(runs) == len(results):
        data["miou"] = {column: statistics.mean(_column(data["runs"], column)) for column in runs[0]["scores"]}
        if row.top_k is not None:
            times = [run["milliseconds"] for run in runs]
            data["milliseconds"] = {column: statistics.mean(_column(times, column)) for column in times[0]}
        else:
            data["trained_parameters"] = runs[0]["trained_parameters"]
    return data


def percentages(result: dict[str, Any] | None) -> dict[str, float]:
    """Validation set → mIoU in percent, over the classes that occur in the ground truth; empty without scores."""
    scores = (result or {}).get("scores", {})
    return {name: round(100 * figures["miou_gt"], 2) for name, figures in scores.items()}


def _column(runs: Iterable[dict[str, float]], column: str) -> Iterator[float]:
    return (run[column] for run in runs if column in run)


def repeated_runs(jobs: Iterable[Job]) -> list[list[dict[str, float]]]:
    """The scores of trainings that differ only in their seed, grouped."""
    groups: dict[str, dict[Path, dict[str, float]]] = {}
    for job in jobs:
        if job.top_k is None and (scores := percentages(job.result)):
            alike = job.config.override("train.seed=0", "train.out=any").to_json()
            groups.setdefault(alike, {})[job.folder] = scores
    return [list(group.values()) for group in groups.values()]


def seed_noise(groups: list[list[float]]) -> dict[str, float] | None:
    """Standard deviation between seeds, pooled over groups of runs that differ only in their seed.

    "counts" is the difference between two single runs that this noise alone exceeds in one case out of twenty
    (Student's t). None if no group has two runs.
    """
    groups = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    deviation = math.sqrt(sum(statistics.variance(group) * (len(group) - 1) for group in groups) / freedom)
    counts = T95[max(known for known in T95 if known <= freedom)] * math.sqrt(2) * deviation
    return {"deviation": deviation, "degrees_of_freedom": freedom, "counts": counts}


# --- Markdown


def markdown(results: dict[str, Any]) -> str:
    """The tables in the paper's form, each with the paper's claims and whether they hold here.

    results  what `run_ablations` returns and results.json holds
    """
    lines = [f"# Ablations: mIoU (%) of {', '.join(results['columns'])}", "", f"`{results['command']}`  "]
    lines += [f"{results['machine']}; {results['steps']} steps per row, seeds {results['seeds']}.", "", CAVEAT, ""]
    if "encoders" in results:
        start = results["encoders"]
        alone = ", ".join(f"{column} {value:.1f}" for column, value in start["miou"].items())
        lines += [f"All rows start from encoders trained alone for {start['steps']} steps: mIoU {alone}.", ""]
    lines += [*_noise_lines(results), ""]
    for name, parts in results["tables"].items():
        table = TABLES[name]
        lines += [f"## {table.title}", "", *([table.note, ""] if table.note else [])]
        for part, rows in zip(table.parts, parts, strict=True):
            lines += [*_table_lines(part, rows, results["columns"]), ""]
            lines += [*_effect_lines(part, rows, results), ""] if _is_factorial(part) else []
            lines += [*_claim_lines(part, rows, results), ""] if part.claims else []
            lines += [_pruning_line(rows, results["columns"]), ""] if name == "VI" else []
    return "\n".join(lines).rstrip() + "\n"


def _noise_lines(results: dict[str, Any]) -> list[str]:
    lines = []
    seeds = len(results["seeds"])
    for column, noise in results["noise"].items():
        runs = ", ".join(f"{value:.1f}" for value in _column(results["default_row"].values(), column))
        if noise is None:
            lines.append(f"Noise of {column}: unknown, one seed only ({runs}).")
            continue
        lines.append(
            f"Noise of {column}: the default row with other seeds gives {runs}; standard deviation over all rows "
            f"{noise['deviation']:.2f} (degrees of freedom: {noise['degrees_of_freedom']}). 95 % interval of a figure "
            f"below: ± {noise['counts'] / math.sqrt(2 * seeds):.1f}; of the difference between two: ± "
            f"{noise['counts'] / math.sqrt(seeds):.1f}.  "
        )
    return lines


def _table_lines(part: Part, rows: list[dict[str, Any]], columns: list[str]) -> list[str]:
    timed = any(row.top_k is not None for row in part.rows)
    times = [f"{column}, ms" for column in columns] if timed else []
    header = [*part.headings, *columns, *times, "paper: A-150", *(["paper: time"] if timed else [])]
    rule = [*(":--" for _ in part.headings), *("--:" for _ in header[len(part.headings) :])]
    body = []
    for row, data in zip(part.rows, rows, strict=True):
        cells = [_cell(data, "miou", column) for column in columns]
        cells += [_cell(data, "milliseconds", column) for column in columns if timed]
        body.append([*row.labels, *cells, row.paper or "–", *([row.paper_time] if timed else [])])
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *body)]


def _cell(data: dict[str, Any], key: str, column: str) -> str:
    return "failed" if "failed" in data else f"{data[key][column]:.1f}" if key in data else "–"


def _claim_lines(part: Part, rows: list[dict[str, Any]], results: dict[str, Any]) -> list[str]:
    by_labels = {row.labels: data for row, data in zip(part.rows, rows, strict=True)}
    return [
        f"- Paper: {_row_name(part, claim.better)} above {_row_name(part, claim.worse)} ({claim.source}). "
        f"Here: {_verdict(by_labels[claim.better], by_labels[claim.worse], results)}."
        for claim in part.claims
    ]


def _is_factorial(part: Part) -> bool:
    """Whether the part has every combination of two or more switches that are on or off."""
    switches = len(part.headings)
    combinations = {row.labels for row in part.rows if set(row.labels) <= {"", ON}}
    return switches > 1 and len(part.rows) == len(combinations) == 2**switches


def _effect_lines(part: Part, rows: list[dict[str, Any]], results: dict[str, Any]) -> list[str]:
    """What each switch of a factorial part changes on average over all settings of the others, with its interval."""
    if any("miou" not in row for row in rows):
        return ["Effects: not all rows have a figure."]
    lines = []
    for index, heading in enumerate(part.headings):
        texts = []
        for column in results["columns"]:
            on, off = (
                statistics.mean(
                    data["miou"][column]
                    for row, data in zip(part.rows, rows, strict=True)
                    if (row.labels[index] == ON) is chosen
                )
                for chosen in (True, False)
            )
            texts.append(_judged(column, on - off, len(rows) // 2, results))
        lines.append(f"- Effect of {heading}, mean over all settings of the others: {', '.join(texts)}.")
    return lines


def _row_name(part: Part, labels: Labels) -> str:
    """ "kernel size 9", or the names of the components that are switched on."""
    if len(labels) == 1:
        return f"{part.headings[0]} {labels[0]}"
    return " + ".join(heading for heading, tick in zip(part.headings, labels, strict=True) if tick) or "none"


def _verdict(better: dict[str, Any], worse: dict[str, Any], results: dict[str, Any]) -> str:
    """The difference on every validation set, and whether it has the sign that the paper claims."""
    if "miou" not in better or "miou" not in worse:
        return "not both rows have a figure"
    texts = []
    for column in results["columns"]:
        texts.append(_judged(column, better["miou"][column] - worse["miou"][column], 1, results))
    return ", ".join(texts)


def _judged(column: str, gain: float, rows: int, results: dict[str, Any]) -> str:
    """A difference between two means over `rows` rows each, with its 95 % interval and what that says of the claim."""
    noise = results["noise"][column]
    if noise is None:
        return f"{column} {gain:+.1f} (noise unknown)"
    limit = noise["counts"] / math.sqrt(rows * len(results["seeds"]))
    side = "within the noise" if abs(gain) < limit else "as in the paper" if gain > 0 else "**the other way**"
    return f"{column} {gain:+.1f} ± {limit:.1f} ({side})"


def _pruning_line(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """How mIoU and time change from the smallest k to the largest. One model throughout: no training noise."""
    if any("milliseconds" not in data for data in rows):
        return "Not all rows have a figure."
    first, last = rows[0], rows[-1]
    texts = []
    for column in columns:
        values = [data["miou"][column] for data in rows]
        ratio = last["milliseconds"][column] / first["milliseconds"][column]
        texts.append(f"{column} mIoU within {max(values) - min(values):.1f}, time × {ratio:.2f}")
    return (
        f"Paper, from k = {first['labels'][0]} to {last['labels'][0]}: mIoU within 0.1, time × 2.01 (A-150). "
        f"Here: {'; '.join(texts)}."
    )
