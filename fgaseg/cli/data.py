"""`fgaseg data`: list, check, prepare."""

import argparse
import itertools
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import add_command, add_json, add_label_options, add_view_options, check_out, label_values, view_values
from .printing import say, say_json

if TYPE_CHECKING:
    from ..config import DataConfig
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
  fgaseg data check --images DIR --labels annotations.json --picture sheet.png
  fgaseg data check --images DIR --label-suffix _mask --label-map labelmap.txt
  fgaseg data check mine.yaml                           the training photos of a configuration

Of your own data the share of each class is shown, and what looks wrong, with its likely cause and the option that
cures it; --picture draws five photos with their labels.
"""

PREPARE = """\
Write the label images that are scored (and A-847's photos, shorter side 512) beside the originals, in the layout of
detectron2; what its scripts have written is used as it is. Interrupted, the same command resumes. A file that cannot be
converted is reported, the others are converted, and the exit status is 1.

  fgaseg data prepare --root datasets           every set whose labels are there
  fgaseg data prepare a150 pas20 --root datasets
  fgaseg data prepare a150 --root /read-only/datasets --out mine      then use --root mine; originals are linked into it
  fgaseg data prepare a150 --images DIR --labels DIR --out mine       originals in another layout
  fgaseg data prepare --images DIR --labels DIR --label-map labelmap.txt --out mine

The last writes your own labels (colours, numbers with gaps, COCO annotations) as PNGs whose values are lines of
mine/names.txt.
"""

SHOWN = 10  # entries of one kind that are printed
PICTURES = 5
CLASSES_SHOWN = 40


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="list | check | prepare")
    listing, check, prepare = (
        add_command(actions, name, text) for name, text in (("list", LIST), ("check", CHECK), ("prepare", PREPARE))
    )
    for action, function in ((listing, run_list), (check, run_check), (prepare, run_prepare)):
        action.set_defaults(action=function)
        add_json(action)
    check.set_defaults(rotate_labels=None)
    check.add_argument("--quick", action="store_true", help="count only, decode nothing")
    add_view_options(check)
    check.add_argument("--picture", type=Path, metavar="FILE", help="draw five of your own photos with their labels")
    prepare.add_argument("--out", type=Path, help="write there (default: --root), with links to the originals")
    for one in (check, prepare):
        more = "; or a configuration with data of your own" if one is check else ""
        one.add_argument("sets", nargs="*", metavar="SET", help=f"see fgaseg data list (default: all){more}")
        one.add_argument("--root", type=Path, default=None, help="default: $DETECTRON2_DATASETS, or ./datasets")
        one.add_argument("--split", choices=("train", "val"), help="default: val, of coco-stuff both")
        one.add_argument("--images", type=Path, help="one set's photos, wherever they are")
        one.add_argument("--labels", type=Path, help="one set's labels, wherever they are; or COCO annotations")
        one.add_argument("--names", type=Path, help="your own class names: text, JSON, YAML, CSV, ...")
        add_label_options(one)
        one.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")


def run(options: argparse.Namespace) -> int:
    status: int | None = options.action(options)
    return status or 0


def run_list(options: argparse.Namespace) -> None:
    from rich.table import Table

    from .tables import console

    rows = _list_rows()
    if options.json:
        say_json(rows)
        return
    table = Table(title="benchmark sets")
    for heading in ("set", "split", "images", "classes", "ignore", "needs, below --root, and where it comes from"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        needs = "\n".join(f"{path}\n    {archive}" for path, archive in row["needs"].items())
        cells = [str(row[key]) for key in ("set", "split", "images", "classes", "ignore")]
        table.add_row(*cells, needs, end_section=True)
    console().print(table)


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
    _read_configuration(options)
    _check_data_options(options)
    if options.images:
        reports = [_check_folders(options)]
    else:
        if options.picture:
            raise UsageError("--picture draws your own data: give --images and --labels too")
        reports = check(
            options.sets, root, split=options.split, quick=options.quick, workers=options.workers, progress=True
        )
    if options.json:
        say_json([asdict(report) for report in reports])
    else:
        _print_check(reports, options.images or root)
        if options.picture:
            say(f"picture: {options.picture}")
    bad = ("wrong", "incomplete")
    return int(any(one.state in bad or (one.state == "absent" and one.set in options.sets) for one in reports))


def _read_configuration(options: argparse.Namespace) -> None:
    """A configuration in place of a set: its data, as if given by the options."""
    if not any(one.lower().endswith((".yaml", ".yml")) for one in options.sets):
        return
    from ..config import load_config

    given = [options.images, options.labels, options.names, *label_values(options), *view_values(options)]
    if len(options.sets) > 1 or any(given):
        raise UsageError(f"{' '.join(options.sets)}: give one configuration, and no sets and options of data with it")
    data = load_config(options.sets[0]).data
    if data.images is None:
        raise UsageError(f"{options.sets[0]}: has no data.images, so there are no photos of your own to check")
    for key in ("images", "labels", "names", "bands", "label_map", "image_suffix", "label_suffix", "rotate_labels"):
        setattr(options, key, getattr(data, key))
    options.sets, options.range, options.ignore = [], data.value_range, list(data.void_values)


def _check_folders(options: argparse.Namespace) -> "CheckReport":
    from ..data import check_folders

    if len(options.sets) > 1 or options.quick or options.split == "train":
        raise UsageError("--images and --labels: give one set (or none and --names), no --quick, no --split train")
    named = options.names or options.label_map or (options.labels and options.labels.suffix.lower() == ".json")
    if not named and not options.sets:
        raise UsageError(
            "--images and --labels need --names FILE or --label-map, or the name of the set whose classes they have"
        )
    report = check_folders(
        options.images,
        options.labels,
        names=options.names,
        set_name=options.sets[0] if options.sets else None,
        workers=options.workers,
        progress=True,
        rotate_labels=options.rotate_labels,
        **label_values(options),
        **view_values(options),
    )
    if options.picture:
        _draw(_own_config(options), options.picture)
    return report


def _own_config(options: argparse.Namespace) -> "DataConfig":
    from ..config import DataConfig

    values = {key: value for key in ("images", "labels", "names") if (value := getattr(options, key)) is not None}
    view = view_values(options) if "bands" in options else {}
    return DataConfig.read(values | label_values(options) | view, "fgaseg data")


def _draw(config: "DataConfig", file: Path) -> None:
    """Five photos of the data set, spread over it, beside their labels."""
    from ..data import FolderDataset
    from ..errors import DataError, ImageError
    from ..files import atomic_write
    from ..inference import contact_sheet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files that are left out are in the report
        dataset = FolderDataset(config, "val")
    samples: list[Any] = []
    reasons: list[str] = []
    step = max(len(dataset) // PICTURES, 1)
    for index in [*range(0, len(dataset), step), *range(len(dataset))]:
        if len(samples) == PICTURES or len(reasons) > SHOWN:
            break
        try:
            samples.append((dataset.pairs[index][0], *dataset.read_pair(index, strict=False)))
        except (DataError, ImageError) as error:
            reasons.append(str(error))
    if not samples:
        raise UsageError(f"--picture {file}: no photo can be drawn: {reasons[0]}")
    picture = contact_sheet(samples, dataset.classes)
    atomic_write(file, lambda handle: picture.save(handle, format="PNG"))


def run_prepare(options: argparse.Namespace) -> int:
    from ..data import default_root, prepare, prepare_folders

    _check_data_options(options)
    check_out(options.out)
    root = options.root or default_root()
    given = {"workers": options.workers, "progress": True}
    try:
        if options.images and not options.sets:
            if options.out is None:
                raise UsageError("your own data is prepared into a folder of its own: give --out")
            reports = [prepare_folders(_own_config(options), options.out, **given)]
        else:
            reports = prepare(options.sets, root, split=options.split, out=options.out, images=options.images,
                              labels=options.labels, **given)  # fmt: skip
    except KeyboardInterrupt:
        say("stopped: run the same command again to resume", error=True)
        return 130
    if options.json:
        say_json([asdict(report) for report in reports])
    else:
        print_prepared(reports, options.out or root)
    return int(any(report.failed for report in reports))


def _check_data_options(options: argparse.Namespace) -> None:
    if options.workers < 0:
        raise UsageError(f"--workers {options.workers}: give 0 (this process) or more")
    if bool(options.images) != bool(options.labels) and not (options.images and options.label_suffix):
        raise UsageError(
            "--images and --labels go together: give both (or --label-suffix, if photos and labels share it)"
        )
    if not options.images and (options.names or label_values(options)):
        raise UsageError("--names, --ignore, --label-map and suffixes are for your own data: give --images too")
    if options.sets and label_values(options) and not options.names:
        raise UsageError(f"{options.sets[0]} has its own: give --label-map, --ignore and suffixes without a set")


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
    from rich.table import Table

    table = Table(title=str(root))
    for heading in ("set", "split", "whole set", "photos", "labels", "pairs", "values", "prepared", "state"):
        table.add_column(heading)
    for report in reports:
        counts = (report.expected, report.photos, report.labels, report.pairs)
        values = "-" if report.values is None else f"{report.values[0]} to {report.values[1]}"
        prepared = f"{report.prepared}, {report.empty} empty" if report.empty else str(report.prepared)
        table.add_row(report.set, report.split, *map(str, counts), values, prepared, report.state)
    _print(table, [f"{one.set} {one.split}: {line}" for one in reports for line in _explanations(one, root)])
    for report in reports:
        if report.shares:
            _print(_shares_table(report), [f"warning: {text}" for text in report.warnings])


def _shares_table(report: "CheckReport") -> Any:
    """The share of the pixels of each class, of void, and of the values without a name."""
    from rich.table import Table

    from ..data import percent

    table = Table(title="share of the pixels", show_header=False)
    rows = sorted(report.shares.items(), key=lambda item: -item[1])
    for name, share in rows[:CLASSES_SHOWN]:
        table.add_row(name, percent(share) if share else "never")
    if len(rows) > CLASSES_SHOWN:
        never = sum(not share for _, share in rows[CLASSES_SHOWN:])
        table.add_row(f"{len(rows) - CLASSES_SHOWN} more", f"{never} of them never (--json has all)")
    table.add_row("void", percent(report.void or 0), style="dim")
    for value, share in itertools.islice(report.unnamed.items(), SHOWN):
        table.add_row(f"{value}: no name", percent(share), style="red")
    return table


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
    """A table and, below it, lines that are not wrapped."""
    from .tables import console

    terminal = console(120)
    terminal.print(table)
    for line in lines:
        terminal.print(line, soft_wrap=True)
