"""`fgaseg eval`."""

import argparse
import atexit
import json
import os
import signal
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .options import add_json, add_model_options, add_words, autocast, check_out, load_model, model_and_overrides

HELP = """\
Score a model: on the sets of the paper, with its Table I and the published numbers above ours, or on any labelled
photos. Both definitions of mIoU, per class, and beside every number the hash of a record of how it was made.

  fgaseg eval --data a150,pc59,pas20 --model runs/mine/model --root datasets --window --out runs/mine/eval
  fgaseg eval --data a150 --model runs/mine/model --images DIR --labels DIR      labels prepared in another layout
  fgaseg eval runs/mine/model --images photos --labels labels --names names.txt
  fgaseg eval runs/mine/model --config runs/mine/config.yaml --csv per_class.csv --json
  torchrun --nproc-per-node 8 -m fgaseg eval --data a150 --model runs/mine/model

Interrupted (Ctrl-C, SIGTERM, a crash), the same command goes on from what --out holds, on any number of processes.
The record holds data, prompts, input sizes, model, weights, precision, kind of device, metrics and versions. Batch,
number of processes and threads, and place of the files cannot change a number and are not hashed.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_words(parser, "MODEL | key=value",
              "the model (or --model); overrides of its configuration, e.g. class_maps_budget=500")  # fmt: skip
    parser.add_argument("--model", help="folder that save_pretrained or train wrote, or a hub id")
    parser.add_argument("--data", metavar="SET[,SET...]", help="sets that `fgaseg data` has prepared: a150, pas20, ...")
    parser.add_argument("--root", type=Path, help="their folder (default: $DETECTRON2_DATASETS, else datasets)")
    views = parser.add_mutually_exclusive_group()
    views.add_argument("--window", action="store_true", help="the released evaluation: four windows and the whole")
    views.add_argument("--whole", action="store_true", help="each photo seen once, aspect kept (default: as saved)")
    parser.add_argument("--top-k", metavar="K", help="classes kept per pixel by a model in fast mode, or all")
    parser.add_argument("--template", help="a prompt with {}; or imagenet (80, averaged) or imagenet_select (7)")
    parser.add_argument("--batch", type=int, default=4, metavar="N",
                            help="pictures held at once: N are read while one is labelled. Each is labelled by itself: "
                            "the numbers are the same for any N, and a stack was not faster on a CPU")  # fmt: skip
    parser.add_argument("--out", type=Path, help="results, and what an interrupted run goes on from "
                            "(with --data: runs/eval unless given)")  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="drop what --out holds of these sets")
    parser.add_argument("--config", help="take the data set from this training configuration")
    for key in ("images", "labels", "names", "list"):
        parser.add_argument(f"--{key}", type=Path, help=f"the data set's {key}")
    parser.add_argument("--count", type=int, help="only the first so many photos")
    parser.add_argument("--csv", type=Path, help="write the per-class rows to this file")
    add_model_options(parser)


def run(options: argparse.Namespace) -> None:
    from ..distributed import rank
    from ..errors import Interrupted
    from ..evaluation import score, templates, weights_hash
    from ..training import Signals

    source, overrides = model_and_overrides(options.model, options.words)
    _check_eval(options)
    _join_processes(options)
    sets = _eval_sets(options)
    check_out(options.out)
    views = {"window": "inference=windows", "whole": "inference=whole"}
    overrides += [switch for view, switch in views.items() if getattr(options, view)]
    overrides += [f"top_k={'null' if options.top_k == 'all' else options.top_k}"] if options.top_k else []
    overrides += [f"template={json.dumps(templates(options.template))}"] if options.template else []
    model = load_model(source, overrides, options.device)
    weights, results = weights_hash(model), {}
    for name, dataset in sets.items():
        with Signals() as signals, autocast(options.precision, options.device):
            results[name] = score(model, dataset, name, count=options.count, batch=options.batch, out=options.out,
                                  restart=options.restart, weights=weights, progress=True,
                                  stop=lambda: signals.number > 0)  # fmt: skip
        stopped_elsewhere = rank() == 0 and results[name] is None  # by a signal to another process
        if number := signals.number or stopped_elsewhere * signal.SIGTERM:
            saved = (
                f"saved in {options.out}: run the same command again{' without --restart' * options.restart} to resume"
                if options.out
                else "lost without --out"
            )
            raise Interrupted(f"stopped while scoring {name}; what was counted is {saved}", number)
    if rank() == 0:
        _print_results(options, source, results)


def _check_eval(options: argparse.Namespace) -> None:
    """One source of data; what is not given gets its default."""
    others = [key for key in ("names", "list", "config") if getattr(options, key)]
    if options.data and others:
        raise UsageError(f"--data names whole sets: leave --{others[0]} out")
    if options.data and bool(options.images) != bool(options.labels):
        raise UsageError("a set of --data in another layout: give both --images and --labels")
    if options.data and options.images and (options.root or "," in options.data):
        raise UsageError("--images and --labels are those of one set: give one with --data, and no --root")
    if options.data and options.out is None:
        options.out = Path("runs/eval")
    missing = [f"--{key}" for key in ("images", "labels", "names") if not getattr(options, key)]
    if missing and not (options.data or options.config or options.root):
        raise UsageError(
            "what to score it on: give --data with names of sets (fgaseg data list), commas between them, or, for your "
            f"own data, {' and '.join(missing)}"
        )
    if options.root and not options.data:
        raise UsageError("--root is the folder of the sets that --data names: give --data, for example --data a150")
    for key in ("count", "batch"):
        if (value := getattr(options, key)) is not None and value < 1:
            raise UsageError(f"--{key} {value}: give 1 or more")
    if options.top_k and options.top_k != "all" and not (options.top_k.isdecimal() and int(options.top_k)):
        raise UsageError(f"--top-k {options.top_k}: give a number of classes, or all")


def _join_processes(options: argparse.Namespace) -> None:
    """Under torchrun, join the others; each has a device of its own."""
    if "LOCAL_RANK" in os.environ:
        from accelerate import PartialState  # type: ignore[import-untyped]

        state = PartialState(cpu=options.device == "cpu")
        options.device = str(state.device)
        atexit.register(state.destroy_process_group)


def _eval_sets(options: argparse.Namespace) -> dict[str, Any]:
    if options.data:
        from ..data import default_root, open_set, set_in_folders

        if options.images:
            return {options.data: set_in_folders(options.data, Path(options.images), Path(options.labels))}
        root = options.root or default_root()
        return {name: open_set(name, root) for name in dict.fromkeys(options.data.split(","))}
    from ..config import load_config
    from ..data import data_sets

    config = load_config(options.config, _data_overrides(options))
    return data_sets(config)[1] if config.data.scenes else _folder(config)


def _data_overrides(options: argparse.Namespace) -> list[str]:
    """The data set's flags as overrides; with any of them, nothing of the configuration's own split is left."""
    given = {"images": options.images, "labels": options.labels, "names": options.names, "val_list": options.list}
    overrides = [f"data.{key}={json.dumps(str(value))}" for key, value in given.items() if value]
    if options.images or options.labels:
        overrides += ["data.scenes=false", "data.val_images=null", "data.val_labels=null", "data.train_list=null"]
        overrides += [] if options.list else ["data.val_list=null"]
    return overrides


def _folder(config: Any) -> dict[str, Any]:
    from ..data import FolderDataset

    return {"val": FolderDataset(config.data, "val")}


def _print_results(options: argparse.Namespace, model: str, results: dict[str, Any]) -> None:
    """Tables for people, or JSON of the same; per-class rows to --csv."""
    from rich.console import Console

    from ..evaluation import COLUMNS, LEGEND, cautions, draw_figures, draw_table_one, table_one

    if options.csv:
        for name, one in results.items():
            one.scores.write_csv(
                options.csv.with_stem(f"{options.csv.stem}_{name}") if len(results) > 1 else options.csv
            )
    notes, published = [], [name for name in results if options.data and name in COLUMNS]
    if published:
        from ..data import SETS

        notes = [line for name in published for line in cautions(name, results[name], SETS[name].splits["val"].count)]
    if options.json:
        records = {name: {"hash": one.hash, "record": one.record, "free": one.free} for name, one in results.items()}
        print(json.dumps({
            "model": model,
            "scores": {name: one.scores.dump() for name, one in results.items()},
            "records": records,
            "table": {"columns": list(COLUMNS.values()), "rows": table_one(results)} if published else None,
            "cautions": notes,
        }))  # fmt: skip
        return
    console = Console()
    for name, one in {} if options.data else results.items():
        console.print(one.scores.table(f"{name}, record {one.hash}"))
    if options.data:
        console.print(draw_figures(results))
    if published:
        console.print(draw_table_one(results))
    if options.data:
        console.print(LEGEND, highlight=False, markup=False, soft_wrap=True)
    for line in notes:
        console.print(f"not comparable: {line}", highlight=False, markup=False, soft_wrap=True)
    if options.out:
        console.print(f"results: {options.out}", highlight=False, markup=False, soft_wrap=True)
