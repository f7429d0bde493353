"""`fgaseg eval`."""

import argparse
import atexit
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import (
    MODEL_HELP,
    add_json,
    add_label_options,
    add_model_options,
    add_view_options,
    add_words,
    check_out,
    check_precision,
    label_values,
    load_model,
    model_and_overrides,
    view_values,
)
from .printing import say_json

if TYPE_CHECKING:
    from rich.table import Table

    from ..evaluation import EvalResult

    Results = dict[str, EvalResult]  # by data set

HELP = """\
Score a model: on the benchmark sets of the paper, with its Table I and the published figures above yours, or on any
labelled images. Prints both definitions of mIoU, figures per class, and the hash of each figure's provenance.

  fgaseg eval --data a150 --model cat-seg-b16                      published weights, by the protocol of their figures
  fgaseg eval --data a150,pc59,pas20 --model runs/mine/model --root datasets --window --out runs/mine/eval
  fgaseg eval --data a150 --model runs/mine/model --images DIR --labels DIR      labels prepared in another layout
  fgaseg eval runs/mine/model --images photos --labels labels --names names.txt
  fgaseg eval runs/mine/model --images photos --labels masks --label-map labelmap.txt --label-suffix _mask
  fgaseg eval runs/mine/model --config runs/mine/config.yaml --csv per_class.csv --json
  torchrun --nproc-per-node 8 -m fgaseg eval --data a150 --model runs/mine/model

Interrupted (Ctrl-C, SIGTERM, a crash), the same command resumes from what --out holds, on any number of processes.
The hashed record holds data, prompts, input sizes, model, weights, precision, kind of device, metrics and versions.
--batch, the number of processes and threads, and the location of the files change no figure and are not hashed.
"""

LEGEND = (
    "In %. mIoU: over the classes in the ground truth, as the published figures; union: also over those only\n"
    "predicted, as mmseg and detectron2 0.6 count. record: hash of the provenance, in full with --json and in --out."
)


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_words(parser, "MODEL | key=value",
              "the model (or --model); overrides of its configuration, e.g. class_maps_budget=500")  # fmt: skip
    parser.add_argument("--model", help=MODEL_HELP)
    parser.add_argument("--data", metavar="SET[,SET...]", help="sets that `fgaseg data` has prepared: a150, pas20, ...")
    parser.add_argument("--root", type=Path, help="their folder (default: $DETECTRON2_DATASETS, else datasets)")
    views = parser.add_mutually_exclusive_group()
    views.add_argument("--window", action="store_true", help="the released evaluation: four windows and the whole")
    views.add_argument("--whole", action="store_true", help="each image seen once, aspect kept (default: as saved)")
    parser.add_argument("--top-k", metavar="K", help="classes kept per pixel by a model in fast mode, or all")
    parser.add_argument("--template", help="a prompt with {}; or imagenet (80, averaged) or imagenet_select (7)")
    parser.add_argument("--batch", type=int, default=4, metavar="N",
                        help="images that threads read ahead while one is predicted (default: 4); each is predicted by "
                        "itself, so the figures are the same for any N")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the results, from which an interrupted run resumes "
                        "(default with --data: runs/eval)")  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="drop what --out holds of these sets")
    parser.add_argument("--config", help="take the data set from this training configuration")
    for key in ("images", "labels", "names", "list"):
        parser.add_argument(f"--{key}", type=Path, help=f"the data set's {key}")
    add_label_options(parser)
    parser.add_argument("--count", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--csv", type=Path, help="write the per-class rows to this file")
    add_view_options(parser)
    parser.add_argument("--per-image", type=Path, metavar="FILE.csv", help="write a row per image to this file: "
                        "its mIoU, and the IoU of each class in it")  # fmt: skip
    parser.add_argument("--confusion", type=Path, metavar="FILE", help="write the confusion matrix to this file: in "
                        "pixels to a .csv, as a picture to a .png")  # fmt: skip
    add_model_options(parser)


def run(options: argparse.Namespace) -> None:
    from ..distributed import rank

    source, overrides = model_and_overrides(options.model, options.words)
    _check_data_options(options)
    _check_values(options)
    _join_processes(options)
    sets = _data_sets(options)
    check_out(options.out)
    for key in ("csv", "per_image", "confusion"):
        check_out(getattr(options, key), f"--{key.replace('_', '-')}", file=True)
    check_precision(options.precision)
    model = load_model(source, [*overrides, *_model_overrides(options)], options.device)
    results = _evaluate(model, sets, options)
    if rank() > 0:
        return
    _write_files(options, results)
    if options.json:
        _print_json(options, source, results)
    else:
        _print_tables(options, results)


def _write_files(options: argparse.Namespace, results: "Results") -> None:
    """The files that were asked for; with several data sets each gets its own, with the name of the set."""
    drawn = options.confusion and options.confusion.suffix.lower() == ".png"
    for name, result in results.items():
        scores = result.scores
        confusion = scores.write_confusion_png if drawn else scores.write_confusion_csv
        files = (options.csv, options.per_image, options.confusion)
        for file, write in zip(files, (scores.write_csv, scores.write_images_csv, confusion), strict=True):
            if file is not None:
                write(file.with_stem(f"{file.stem}_{name}") if len(results) > 1 else file)


def _check_data_options(options: argparse.Namespace) -> None:
    """There is one source of data."""
    others = [key for key in ("names", "list", "config", "bands", "range") if getattr(options, key)]
    others += [key.replace("_", "-") for key in label_values(options)]
    if options.data and others:
        raise UsageError(f"--data names whole sets: leave --{others[0]} out")
    if options.data and bool(options.images) != bool(options.labels):
        raise UsageError("a set of --data in another layout: give both --images and --labels")
    if options.data and options.images and (options.root or "," in options.data):
        raise UsageError("--images and --labels are those of one set: give one with --data, and no --root")
    needed = ["images"] if options.label_suffix else ["images", "labels"]
    needed += [] if options.label_map or (options.labels and options.labels.suffix == ".json") else ["names"]
    missing = [f"--{key}" for key in needed if not getattr(options, key)]
    if missing and not (options.data or options.config or options.root):
        raise UsageError(
            "what to score it on: give --data with names of sets (fgaseg data list), commas between them, or, for your "
            f"own data, {' and '.join(missing)}"
        )
    if options.root and not options.data:
        raise UsageError("--root is the folder of the sets that --data names: give --data, for example --data a150")


def _check_values(options: argparse.Namespace) -> None:
    """Values are in range; --out gets its default."""
    for key in ("count", "batch"):
        if (value := getattr(options, key)) is not None and value < 1:
            raise UsageError(f"--{key} {value}: give 1 or more")
    if options.top_k and options.top_k != "all" and not (options.top_k.isdecimal() and int(options.top_k)):
        raise UsageError(f"--top-k {options.top_k}: give a number of classes, or all")
    for option, file, kinds in (
        ("--per-image", options.per_image, (".csv",)),
        ("--confusion", options.confusion, (".csv", ".png")),
    ):
        if file and file.suffix.lower() not in kinds:
            raise UsageError(f"{option} {file}: give a name that ends in {' or '.join(kinds)}")
    if options.data and options.out is None:
        options.out = Path("runs/eval")


def _join_processes(options: argparse.Namespace) -> None:
    """Under torchrun, join the other processes; each has a device of its own."""
    if "LOCAL_RANK" in os.environ:
        from accelerate import PartialState  # type: ignore[import-untyped]

        state = PartialState(cpu=options.device == "cpu")
        options.device = str(state.device)
        atexit.register(state.destroy_process_group)


def _data_sets(options: argparse.Namespace) -> dict[str, Any]:
    from ..config import load_config
    from ..data import data_sets, default_root, open_set, open_set_in_folders
    from ..evaluation import open_validation_set

    if options.data and options.images:
        return {options.data: open_set_in_folders(options.data, options.images, options.labels)}
    if options.data:
        root = options.root or default_root()
        return {name: open_set(name, root) for name in dict.fromkeys(options.data.split(","))}
    config = load_config(options.config, *_data_overrides(options))
    if config.data.scenes:
        return data_sets(config)[1]
    return {config.data.val_set or "val": open_validation_set(config.data)}


def _data_overrides(options: argparse.Namespace) -> list[str]:
    """The data set's flags as overrides; with photos or labels, nothing of the configuration's own split is left."""
    given = {"images": options.images, "labels": options.labels, "names": options.names, "val_list": options.list}
    overrides = [f"data.{key}={json.dumps(str(value))}" for key, value in given.items() if value]
    overrides += [f"data.{key}={json.dumps(value)}" for key, value in view_values(options).items()]
    if options.images or options.labels:
        overrides += ["data.scenes=false", "data.val_images=null", "data.val_labels=null", "data.train_list=null"]
        overrides += ["data.set=null", "data.val_set=null"]
        overrides += [] if options.list else ["data.val_list=null"]
        overrides += [] if options.labels else ["data.labels=null"]  # they lie among the photos, with --label-suffix
    return overrides + [f"data.{key}={json.dumps(value)}" for key, value in label_values(options).items()]


def _model_overrides(options: argparse.Namespace) -> list[str]:
    from ..evaluation import prompt_templates

    overrides = []
    if options.window or options.whole:
        overrides.append(f"inference={'windows' if options.window else 'whole'}")
    if options.top_k:
        overrides.append(f"top_k={'null' if options.top_k == 'all' else options.top_k}")
    if options.template:
        overrides.append(f"template={json.dumps(prompt_templates(options.template))}")
    return overrides


def _evaluate(model: Any, sets: dict[str, Any], options: argparse.Namespace) -> "Results":
    """The results by data set; none on processes other than the main one."""
    from ..evaluation import weights_hash
    from ..model import set_precision

    weights = weights_hash(model)  # of what was loaded, whatever it is converted to
    set_precision(model, options.precision)
    results = {name: _evaluate_one(model, dataset, name, weights, options) for name, dataset in sets.items()}
    return {name: result for name, result in results.items() if result is not None}


def _evaluate_one(
    model: Any, dataset: Any, name: str, weights: str, options: argparse.Namespace
) -> "EvalResult | None":
    """Raises Interrupted after a signal, to this process or another one."""
    from ..distributed import rank
    from ..errors import Interrupted
    from ..evaluation import EvalOptions, evaluate_with_provenance
    from ..training import Signals

    with Signals() as signals:
        how = EvalOptions(options.count, progress=True, stop=lambda: signals.number > 0, read_ahead=options.batch)
        result = evaluate_with_provenance(
            model, dataset, name, how, out=options.out, restart=options.restart, weights=weights
        )
    stopped_elsewhere = rank() == 0 and result is None
    if number := signals.number or stopped_elsewhere * signal.SIGTERM:
        again = f"run the same command again{' without --restart' * options.restart} to resume"
        saved = f"saved in {options.out}: {again}" if options.out else "lost without --out"
        raise Interrupted(f"stopped while scoring {name}; what was counted is {saved}", number)
    return result


def _cautions(options: argparse.Namespace, results: "Results") -> list[str]:
    from ..data import BENCHMARK_SETS
    from ..evaluation import cautions

    published = _published(options, results)
    return [
        line for name in published for line in cautions(name, results[name], BENCHMARK_SETS[name].splits["val"].count)
    ]


def _published(options: argparse.Namespace, results: "Results") -> list[str]:
    """The sets that Table I has."""
    from ..evaluation import COLUMNS

    return [name for name in results if options.data and name in COLUMNS]


def _print_json(options: argparse.Namespace, source: str, results: "Results") -> None:
    from ..evaluation import COLUMNS, table_one

    dumps = {name: result.dump() for name, result in results.items()}
    table = {"columns": list(COLUMNS.values()), "rows": table_one(results)} if _published(options, results) else None
    say_json({
        "model": source,
        "scores": {name: dump["scores"] for name, dump in dumps.items()},
        "records": {name: {key: dump[key] for key in ("hash", "record", "free")} for name, dump in dumps.items()},
        "table": table,
        "details": {name: result.scores.details() for name, result in results.items()},
        "cautions": _cautions(options, results),
    })  # fmt: skip


def _print_tables(options: argparse.Namespace, results: "Results") -> None:
    from .tables import console, scores_table

    terminal, lines = console(), []
    if options.data:
        terminal.print(_figures(results))
        if _published(options, results):
            terminal.print(_table_one(results))
        lines.append(LEGEND)
    else:
        for name, result in results.items():
            terminal.print(scores_table(result.scores, f"{name}, record {result.hash}"))
    lines += [f"not comparable: {line}" for line in _cautions(options, results)]
    lines += [f"results: {options.out}"] if options.out else []
    for line in lines:
        terminal.print(line, highlight=False, soft_wrap=True)


def _figures(results: "Results") -> "Table":
    """One row a set: all figures, and how many classes occur."""
    from rich.table import Table

    from ..evaluation import FIGURES
    from .tables import percent

    table = Table("set", "images", "classes", "mIoU", "union", "fwIoU", "mAcc", "pAcc", "record", box=None)
    for name, result in results.items():
        scores = result.scores
        figures = (percent(getattr(scores, figure)) for figure in FIGURES)
        table.add_row(name, str(scores.images), f"{scores.present}/{len(scores.rows)}", *figures, result.hash)
    return table


def _table_one(results: "Results") -> "Table":
    """At most 80 columns wide."""
    from rich.table import Table

    from ..evaluation import COLUMNS, table_one

    table = Table("", *COLUMNS.values(), title="Table I", box=None)
    for name, cells in table_one(results).items():
        if name == "ours":
            table.add_section()
        table.add_row(name, *(cell or "-" for cell in cells))
    return table
