"""`fgaseg data`: list, check, prepare."""

import argparse
import itertools
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import add_command, add_json, check_out

if TYPE_CHECKING:
    from ..data import CheckReport, PrepareReport

HELP = """\
List, check and prepare the benchmark sets. Nothing is downloaded, and originals are only read.
The sets are coco-stuff, a150, a847, pc59, pc459, pas20 and pas20b.

  fgaseg data list                              what each set needs, and which archive it comes from
  fgaseg data check --root datasets             what is there, what is missing, what is wrong
  fgaseg data prepare a150 pas20 --root datasets
"""

LIST = "The sets: images, classes, the folders below --root, and the archives that they come from."

CHECK = """\
Count and read photos and labels, as published and as prepared, and compare them with what the protocol expects. The
exit status is 1 when something is wrong: too few images, files without a partner, unreadable files, sizes or label
values that do not fit.

  fgaseg data check --root datasets             every set; those of which nothing is there are only listed
  fgaseg data check a150 --root datasets --json
  fgaseg data check a150 --images DIR --labels DIR      labels prepared in another layout (SAN, MAFT, FC-CLIP, mmseg)
  fgaseg data check --images DIR --labels DIR --names names.txt       your own data
"""

PREPARE = """\
Write the label images that are scored (and A-847's photos, shorter side 512) beside the originals, in the layout of
detectron2; what its scripts have written is used as it is. Interrupted, the same command resumes. A file that cannot be
converted is reported, the others are converted, and the exit status is 1.

  fgaseg data prepare --root datasets           every set whose labels are there
  fgaseg data prepare a150 pas20 --root datasets
  fgaseg data prepare a150 --root /read-only/datasets --out mine      then use --root mine; originals are linked into it
  fgaseg data prepare a150 --images DIR --labels DIR --out mine       originals in another layout
"""

SHOWN = 10  # entries of one kind that are printed


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="list | check | prepare")
    listing, check, prepare = (
        add_command(actions, name, text) for name, text in (("list", LIST), ("check", CHECK), ("prepare", PREPARE))
    )
    for action, function in ((listing, run_list), (check, run_check), (prepare, run_prepare)):
        action.set_defaults(action=function)
        add_json(action)
    check.add_argument("--quick", action="store_true", help="count only, decode nothing")
    check.add_argument("--names", type=Path, help="your own class names, one per line or a JSON list")
    check.add_argument("--ignore", type=int, help="your own label that is not scored (default: 255)")
    prepare.add_argument("--out", type=Path, help="write there (default: --root), with links to the originals")
    for one in (check, prepare):
        one.add_argument("sets", nargs="*", metavar="SET", help="see fgaseg data list (default: all)")
        one.add_argument("--root", type=Path, default=None, help="default: $DETECTRON2_DATASETS, or ./datasets")
        one.add_argument("--split", choices=("train", "val"), help="default: val, of coco-stuff both")
        one.add_argument("--images", type=Path, help="one set's photos, wherever they are")
        one.add_argument("--labels", type=Path, help="one set's labels, wherever they are")
        one.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")


def run(options: argparse.Namespace) -> int:
    status: int | None = options.action(options)
    return status or 0


def run_list(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = _list_rows()
    if options.json:
        print(json.dumps(rows))
        return
    table = Table(title="benchmark sets")
    for heading in ("set", "split", "images", "classes", "ignore", "needs, below --root, and where it comes from"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        needs = "\n".join(f"{path}\n    {archive}" for path, archive in row["needs"].items())
        cells = [str(row[key]) for key in ("set", "split", "images", "classes", "ignore")]
        table.add_row(*cells, needs, end_section=True)
    Console().print(table)


def _list_rows() -> list[dict[str, Any]]:
    """Every split of every set, as plain JSON types."""
    from ..data import BENCHMARK_SETS

    return [
        {
            "set": benchmark.name,
            "split": split,
            "title": benchmark.title,
            "images": layout.count,
            "classes": len(benchmark.classes),
            "prompts": len(benchmark.names),
            "ignore": benchmark.ignore,
            "needs": {layout.images: layout.images_from, layout.labels: layout.labels_from},
            "writes": [folder for folder in (layout.prepared_images, layout.prepared) if folder],
        }
        for benchmark in BENCHMARK_SETS.values()
        for split, layout in benchmark.splits.items()
    ]


def run_check(options: argparse.Namespace) -> int:
    from ..data import check, default_root

    root = options.root or default_root()
    _check_data_options(options)
    if options.images:
        reports = [_check_folders(options)]
    elif options.names or options.ignore is not None:
        raise UsageError("--names and --ignore are those of your own data: give --images and --labels too")
    else:
        reports = check(
            options.sets, root, split=options.split, quick=options.quick, workers=options.workers, progress=True
        )
    if options.json:
        print(json.dumps([asdict(report) for report in reports]))
    else:
        _print_check(reports, options.images or root)
    bad = ("wrong", "incomplete")
    return int(any(one.state in bad or (one.state == "absent" and one.set in options.sets) for one in reports))


def _check_folders(options: argparse.Namespace) -> "CheckReport":
    from ..data import check_folders

    if len(options.sets) > 1 or options.quick or options.split == "train":
        raise UsageError("--images and --labels: give one set (or none and --names), no --quick, no --split train")
    if not options.names and not options.sets:
        raise UsageError("--images and --labels need --names FILE, or the name of the set whose classes they have")
    if not options.names and options.ignore is not None:
        raise UsageError(f"--ignore {options.ignore}: {options.sets[0]} has its own: leave it out, or give --names too")
    return check_folders(
        options.images,
        options.labels,
        names=options.names,
        ignore=255 if options.ignore is None else options.ignore,
        set_name=options.sets[0] if options.sets else None,
        workers=options.workers,
        progress=True,
    )


def run_prepare(options: argparse.Namespace) -> int:
    from ..data import default_root, prepare

    _check_data_options(options)
    check_out(options.out)
    root = options.root or default_root()
    try:
        reports = prepare(
            options.sets,
            root,
            split=options.split,
            out=options.out,
            images=options.images,
            labels=options.labels,
            workers=options.workers,
            progress=True,
        )
    except KeyboardInterrupt:
        print("stopped: run the same command again to resume", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps([asdict(report) for report in reports]))
    else:
        print_prepared(reports, options.out or root)
    return int(any(report.failed for report in reports))


def _check_data_options(options: argparse.Namespace) -> None:
    if options.workers < 0:
        raise UsageError(f"--workers {options.workers}: give 0 (this process) or more")
    if bool(options.images) != bool(options.labels):
        raise UsageError("--images and --labels go together: give both")


def print_prepared(reports: list["PrepareReport"], root: Path) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("set", "split", "converted", "already there", "empty", "dropped", "failed"):
        table.add_column(heading)
    for report in reports:
        counts = (report.converted, report.already, report.empty, report.dropped, len(report.failed))
        table.add_row(report.set, report.split, *map(str, counts))
    lines = [f"written below {root}"]
    for report in reports:
        title = f"{report.set} {report.split}"
        shown = itertools.islice(report.failed.items(), SHOWN)
        lines += [f"{title}: {stem} failed: {reason}" for stem, reason in shown]
        if len(report.failed) > SHOWN:
            lines.append(f"{title}: and {len(report.failed) - SHOWN} more (--json has all)")
    _print(table, lines)


def _print_check(reports: list["CheckReport"], root: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(str(root)))
    for heading in ("set", "split", "whole set", "photos", "labels", "pairs", "values", "prepared", "state"):
        table.add_column(heading)
    for report in reports:
        counts = (report.expected, report.photos, report.labels, report.pairs)
        values = "-" if report.values is None else f"{report.values[0]} to {report.values[1]}"
        prepared = f"{report.prepared}, {report.empty} empty" if report.empty else str(report.prepared)
        table.add_row(escape(report.set), report.split, *map(str, counts), values, prepared, report.state)
    _print(table, [f"{one.set} {one.split}: {line}" for one in reports for line in _explanations(one, root)])


def _explanations(report: "CheckReport", root: Path) -> list[str]:
    """What is missing or wrong, and what to do next."""
    from ..data import BENCHMARK_SETS, SplitFiles

    lines = [f"missing: {text}" for text in report.missing]
    for kind, texts in report.problems.items():
        if kind == "count":
            lines += texts
            continue
        shown = [f"    {text}" for text in texts[:SHOWN]]
        more = [f"    and {len(texts) - SHOWN} more (--json has all)"] if len(texts) > SHOWN else []
        lines.append("\n".join([f"{kind}: {len(texts)}", *shown, *more]))
    if report.set in BENCHMARK_SETS and report.labels and report.prepared + report.empty < report.pairs:
        files = SplitFiles(BENCHMARK_SETS[report.set], report.split, root)
        lines.append(f"to prepare: {files.prepare_command()}")
    return lines


def _print(table: Any, lines: list[str]) -> None:
    """A table and, below it, lines that are neither wrapped nor read as markup."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
