"""`fgaseg data`: list, check, prepare."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from ..errors import UsageError
from .options import add_command, add_json, check_out

HELP = """\
List, check and prepare the benchmark sets. Nothing is downloaded, and originals are only read.
The sets are coco-stuff, a150, a847, pc59, pc459, pas20 and pas20b.

  fgaseg data list                              what each set needs, and which archive it comes from
  fgaseg data check --root datasets             what is there, what is missing, what is wrong
  fgaseg data prepare a150 pas20 --root datasets
"""

LIST = "The sets: images, classes, the folders below --root, and the archives that they come from."

CHECK = """\
Count and read photos and labels, originals and prepared ones, and compare with what the protocol expects. Exit status 1
when something is wrong: too few images, files without partner, unreadable files, sizes or label values that do not fit.

  fgaseg data check --root datasets             every set; those of which nothing is there are only listed
  fgaseg data check a150 --root datasets --json
  fgaseg data check a150 --images DIR --labels DIR      labels prepared in another layout (SAN, MAFT, FC-CLIP, mmseg)
  fgaseg data check --images DIR --labels DIR --names names.txt       your own data
"""

PREPARE = """\
Write the label pictures that are scored (and A-847's photos, shorter side 512) beside the originals, in the layout of
detectron2: what its scripts already wrote is accepted as it is. Stopped, the same command goes on where it was. A file
that cannot be converted is named, the others go on, and the exit status is 1.

  fgaseg data prepare --root datasets           every set whose labels are there
  fgaseg data prepare a150 pas20 --root datasets
  fgaseg data prepare a150 --root /read-only/datasets --out mine      then use --root mine; originals are linked into it
  fgaseg data prepare a150 --images DIR --labels DIR --out mine       originals in another layout
"""


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="list | check | prepare")
    listing, check, prepare = (
        add_command(actions, name, text) for name, text in (("list", LIST), ("check", CHECK), ("prepare", PREPARE))
    )
    for action, function in ((listing, run_list), (check, run_check), (prepare, run_prepare)):
        action.set_defaults(action=function)
        add_json(action)
    check.add_argument("--quick", action="store_true", help="count only, decode nothing")
    check.add_argument("--names", type=Path, help="your own class names, one a line or a JSON list")
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

    from ..data import list_sets, list_table

    if options.json:
        print(json.dumps(list_sets()))
    else:
        Console().print(list_table())


def run_check(options: argparse.Namespace) -> int:
    from ..data import check, check_folder, default_root, print_checked

    root = options.root or default_root()
    own = {key: getattr(options, key) for key in ("images", "labels", "names", "ignore")}
    _check_data_options(options)
    if options.images:
        if len(options.sets) > 1 or options.quick or options.split == "train":
            raise UsageError("--images and --labels: give one set (or none and --names), no --quick, no --split train")
        set_name = options.sets[0] if options.sets else None
        rows = [check_folder(**own, set_name=set_name, workers=options.workers, progress=True)]
    elif options.names or options.ignore is not None:
        raise UsageError("--names and --ignore are those of your own data: give --images and --labels too")
    else:
        rows = check(options.sets, root, split=options.split, quick=options.quick, workers=options.workers,
                     progress=True)  # fmt: skip
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print_checked(rows, options.images or root)
    return int(
        any(row.state in ("wrong", "incomplete") or (row.state == "absent" and row.set in options.sets) for row in rows)
    )


def run_prepare(options: argparse.Namespace) -> int:
    from ..data import default_root, prepare, print_prepared

    _check_data_options(options)
    given = {key: getattr(options, key) for key in ("split", "out", "images", "labels", "workers")}
    check_out(options.out)
    root = options.root or default_root()
    try:
        rows = prepare(options.sets, root, **given, progress=True)
    except KeyboardInterrupt:
        print("stopped: run the same command again, and it goes on", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        print_prepared(rows, options.out or root)
    return int(any(row.failed for row in rows))


def _check_data_options(options: argparse.Namespace) -> None:
    if options.workers < 0:
        raise UsageError(f"--workers {options.workers}: give 0 (this process) or more")
    if bool(options.images) != bool(options.labels):
        raise UsageError("--images and --labels go together: give both")
