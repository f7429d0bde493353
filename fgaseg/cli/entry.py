"""The commands that `fgaseg --help` lists: thin, over the library."""

import argparse
import atexit
import json
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UsageError

DESCRIPTION = "FGAseg: open-vocabulary semantic segmentation. Give it photos and any list of class names."

DEMO = """\
Train a small FGAseg on procedurally drawn scenes, score it on colour-shape pairs it has never seen, and write a picture
with photos, labels and pseudo-masks. The encoders start from a small file in the package (configs/demo_encoder.yaml
says how it was made), the head from scratch. Needs no download and about three minutes on two CPU cores.

  fgaseg demo                       the demo; results in runs/demo
  fgaseg demo --seed 1 --json       another seed, figures as JSON
  fgaseg ablate II --steps 500      the same model with P2Tformer, T2Ploss and LCS switched off in turn
"""

DATA = """\
List, check and prepare the benchmark sets: coco-stuff, a150, a847, pc59, pc459, pas20, pas20b. Nothing is downloaded,
and originals are only read.

  fgaseg data list                              what each set needs, and which archive it comes from
  fgaseg data check --root datasets             what is there, what is missing, what is wrong
  fgaseg data prepare a150 pas20 --root datasets
"""

DATA_LIST = "The sets: images, classes, the folders below --root, and the archives that they come from."

DATA_CHECK = """\
Count and read photos and labels, originals and prepared ones, and compare with what the protocol expects. Exit status 1
when something is wrong: too few images, files without partner, unreadable files, sizes or label values that do not fit.

  fgaseg data check --root datasets             every set; those of which nothing is there are only listed
  fgaseg data check a150 --root datasets --json
  fgaseg data check a150 --images DIR --labels DIR      labels prepared in another layout (SAN, MAFT, FC-CLIP, mmseg)
  fgaseg data check --images DIR --labels DIR --names names.txt       your own data
"""

DATA_PREPARE = """\
Write the label pictures that are scored (and A-847's photos, shorter side 512) beside the originals, in the layout of
detectron2: what its scripts already wrote is accepted as it is. Stopped, the same command goes on where it was. A file
that cannot be converted is named, the others go on, and the exit status is 1.

  fgaseg data prepare --root datasets           every set whose labels are there
  fgaseg data prepare a150 pas20 --root datasets
  fgaseg data prepare a150 --root /read-only/datasets --out mine      then use --root mine; originals are linked into it
  fgaseg data prepare a150 --images DIR --labels DIR --out mine       originals in another layout
"""

TRAIN = """\
Train FGAseg. A data set is a folder of photos, a folder of label PNGs and a names file (one name a line).

  fgaseg train configs/vitb16.yaml data.images=photos data.labels=labels data.names=names.txt train.out=runs/mine
  torchrun --nproc-per-node 8 -m fgaseg train configs/vitb16.yaml ...      many GPUs; the batch is shared among them

Every key of the YAML file can be overridden as section.key=value. Interrupted (Ctrl-C, SIGTERM, a crash), the same
command goes on from the last checkpoint and ends in the same weights. The model is left in <train.out>/model.
"""

EVAL = """\
Score a model: on the sets of the paper, with its Table I and the published numbers above ours, or on any labelled
photos. Both definitions of mIoU, per class, and beside every number the hash of a record of how it was made.

  fgaseg eval --data a150,pc59,pas20 --weights runs/mine/model --root datasets --window --out runs/mine/eval
  fgaseg eval --data a150 --weights runs/mine/model --images DIR --labels DIR      labels prepared in another layout
  fgaseg eval runs/mine/model --images photos --labels labels --names names.txt
  fgaseg eval runs/mine/model --config runs/mine/config.yaml --csv per_class.csv --json
  torchrun --nproc-per-node 8 -m fgaseg eval --data a150 --weights runs/mine/model

Interrupted (Ctrl-C, SIGTERM, a crash), the same command goes on from what --out holds, on any number of processes.
The record holds data, prompts, input sizes, model, weights, precision, kind of device, metrics and versions. Batch,
number of processes and threads, and place of the files cannot change a number and are not hashed.
"""

ABLATE = """\
Train and score the configurations of the paper's Tables II to VII and print the tables in the paper's form, each with
what the paper says and whether it is so here. A row that several tables share is trained once; one that is finished is
never trained again, and an interrupted one goes on. Several processes may share one --out.

  fgaseg ablate                                  all tables on drawn scenes, 33 trainings of about two minutes
  fgaseg ablate II IV --seed 0,1,2 --steps 500
  fgaseg ablate VII --on configs/vitb16.yaml data.images=photos data.labels=labels data.names=names.txt

A configuration without pretrained encoders (configs/msrc.yaml) trains them first, alone and by its own schedule.
"""

SEGMENT = """\
Label photos with the names you give.

  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa, wooden floor" --out labelled.png
  fgaseg segment photos/*.jpg --model runs/mine/model --names names.txt --out labelled/
  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa" --pseudo-masks
  fgaseg segment photo.jpg --model runs/a/model --compare runs/b/model --classes "cat, sofa"     side by side (Fig. 7)
"""

CONVERT = """\
Turn a checkpoint of the released FGAseg code or of CAT-Seg into a folder that FGASeg.from_pretrained loads, or back.
What its keys tell (decoder mode, encoder, K, depths) is read off; the rest is as in the released preset, and listed.

  fgaseg convert model_final.pth --out models/released
  fgaseg convert model_final.pth --out models/released top_k=8      a switch that the keys do not tell
  fgaseg convert models/released --to-released --out model.pth
"""

PARITY = """\
Compare the released preset with recorded tensors of the released code: every stage, loss and gradient.
An error is the largest difference as a share of the recording's largest value. Exit status 1 if a case fails.

  fgaseg parity --root ../shared/parity                       everything, three minutes and 11 GB (training)
  fgaseg parity fast sliding --root ../shared/parity --json   cases whose names hold one of these words
"""

BENCH = """\
Time every backend of every op of fgaseg.kernels beside plain PyTorch, torch.compile and the straightforward form:
forward and forward+backward, with memory, share of the machine's measured copy and matmul rates, and error against
float64.

  fgaseg bench                         everything (tens of minutes on a CPU), to runs/bench.csv and runs/bench.png
  fgaseg bench lcs_conv --shapes S1,K=11 --json
  fgaseg bench model --out runs/model --classes 20,150         the whole model, stage by stage: its plain form,
                                                               accelerated, in bfloat16, compiled, pruned
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, 1 for a user's mistake (one line on stderr), 128 + signal when interrupted."""
    options = _parse(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say_warning
            return options.run(options) or 0
    except KeyboardInterrupt:
        if options.run is run_data_prepare:
            print("stopped: run the same command again, and it goes on", file=sys.stderr)
        return 130
    except Exception as error:
        from ..errors import Interrupted

        if isinstance(error, Interrupted):
            if _is_main():
                print(error, file=sys.stderr)
            return 128 + error.signal
        if isinstance(error, _expected()):
            print(f"fgaseg {options.command}: {error}", file=sys.stderr)
            return 1
        raise


def _expected() -> tuple[type[Exception], ...]:
    """Errors that explain themselves: a traceback would only hide the message."""
    from ..errors import (
        CheckpointError,
        ConfigError,
        DataError,
        EncoderError,
        ImageError,
        ResultError,
        TrainingError,
        UnfinishedError,
        VocabularyError,
    )

    ours = (
        UsageError,
        CheckpointError,
        ConfigError,
        DataError,
        EncoderError,
        ImageError,
        ResultError,
        TrainingError,
        UnfinishedError,
        VocabularyError,
    )
    return (*ours, OSError, FloatingPointError)


def _say_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None,
                 line: str | None = None) -> None:  # fmt: skip
    if _is_main():
        print(f"note: {message}", file=sys.stderr)


def _is_main() -> bool:
    """Of several processes under torchrun, whether or not they have met."""
    return os.environ.get("RANK", "0") == "0"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options and key=value overrides in any order, which argparse alone does not allow."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    wrong = [word for word in rest if not re.match(r"[\w.]+=", word)]
    if wrong or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(wrong or rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fgaseg", description=DESCRIPTION)
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="demo | data | train | eval | ablate | segment | convert | parity | bench | info",
    )

    def command(name: str, run: Any, text: str, among: Any = commands) -> argparse.ArgumentParser:
        summary = re.split(r"\.\s", text)[0].replace("\n", " ")
        one = among.add_parser(name, help=summary, description=text,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        one.set_defaults(run=run)
        one.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
        return one

    demo = command("demo", run_demo, DEMO)
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for model, figures and picture")
    demo.add_argument("--seed", type=_whole_numbers, default=[0], metavar="N[,N...]",
                      help="one run a seed; figures are averaged over them")  # fmt: skip
    demo.add_argument("--restart", action="store_true", help="ignore earlier runs in --out and start over")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="as for train, e.g. train.steps=100")

    actions = commands.add_parser(
        "data", help=DATA.split(":")[0], description=DATA, formatter_class=argparse.RawDescriptionHelpFormatter
    ).add_subparsers(required=True, metavar="list | check | prepare")
    command("list", run_data_list, DATA_LIST, actions)
    check = command("check", run_data_check, DATA_CHECK, actions)
    check.add_argument("--quick", action="store_true", help="count only, decode nothing")
    check.add_argument("--names", type=Path, help="your own class names, one a line or a JSON list")
    check.add_argument("--ignore", type=int, help="your own label that is not scored (default: 255)")
    prepare = command("prepare", run_data_prepare, DATA_PREPARE, actions)
    prepare.add_argument("--out", type=Path, help="write there (default: --root), with links to the originals")
    for one in (check, prepare):
        one.add_argument("sets", nargs="*", metavar="SET", help="see fgaseg data list (default: all)")
        one.add_argument("--root", type=Path, default=None, help="default: $DETECTRON2_DATASETS, or ./datasets")
        one.add_argument("--split", choices=("train", "val"), help="default: val, of coco-stuff both")
        one.add_argument("--images", type=Path, help="one set's photos, wherever they are")
        one.add_argument("--labels", type=Path, help="one set's labels, wherever they are")
        one.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")

    train = command("train", run_train, TRAIN)
    train.add_argument("config", help="YAML file (see configs/)")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.lr=1e-4 model.kernel_size=5")
    train.add_argument("--restart", action="store_true", help="ignore a checkpoint in train.out and start over")

    evaluation = command("eval", run_eval, EVAL)
    evaluation.add_argument("model", nargs="?", help="folder that save_pretrained or train wrote, or a hub id")
    evaluation.add_argument("--weights", help="the model, if it is not given by its place")
    evaluation.add_argument(
        "--data", metavar="SET[,SET...]", help="sets that `fgaseg data` has prepared: a150, pas20, ..."
    )
    evaluation.add_argument("--root", type=Path, help="their folder (default: $DETECTRON2_DATASETS, else datasets)")
    views = evaluation.add_mutually_exclusive_group()
    views.add_argument("--window", action="store_true", help="the released evaluation: four windows and the whole")
    views.add_argument("--whole", action="store_true", help="each photo seen once, aspect kept (default: as saved)")
    evaluation.add_argument("--top-k", metavar="K", help="classes kept per pixel by a model in fast mode, or all")
    evaluation.add_argument("--template", help="a prompt with {}; or imagenet (80, averaged) or imagenet_select (7)")
    evaluation.add_argument("--batch", type=int, default=4, metavar="N",
                            help="pictures held at once: N are read while one is labelled. Each is labelled by itself: "
                            "the numbers are the same for any N, and a stack was not faster on a CPU")  # fmt: skip
    evaluation.add_argument("--out", type=Path, help="results, and what an interrupted run goes on from "
                            "(with --data: runs/eval unless given)")  # fmt: skip
    evaluation.add_argument("--restart", action="store_true", help="drop what --out holds of these sets")
    evaluation.add_argument("--config", help="take the data set from this training configuration")
    for key in ("images", "labels", "names", "list"):
        evaluation.add_argument(f"--{key}", type=Path, help=f"the data set's {key}")
    evaluation.add_argument("--count", type=int, help="only the first so many photos")
    evaluation.add_argument("--csv", type=Path, help="write the per-class rows to this file")

    ablate = command("ablate", run_ablate, ABLATE)
    ablate.add_argument("words", nargs="*", metavar="TABLE | key=value", help="II to VII (default: all); overrides")
    ablate.add_argument("--on", default="scenes", metavar="scenes | CONFIG.yaml", help="the data set (default: scenes)")
    ablate.add_argument("--steps", type=int, default=250, help="of every row (default: 250)")
    ablate.add_argument("--seed", type=_whole_numbers, default=[0], metavar="N[,N...]", help="one run a seed and row")
    ablate.add_argument(
        "--out", type=Path, default=Path("runs/ablate"), help="folder for rows, results.json, tables.md"
    )
    ablate.set_defaults(overrides=[])

    segment = command("segment", run_segment, SEGMENT)
    segment.add_argument("images", nargs="+", help="photos")
    segment.add_argument("--model", required=True, help="folder or hub id")
    names = segment.add_mutually_exclusive_group(required=True)
    names.add_argument("--classes", help="names, separated by commas")
    names.add_argument("--names", type=Path, help="file with one name a line, or a JSON list")
    segment.add_argument("--out", type=Path, help="picture or folder to write (default: <photo>_labels.png)")
    segment.add_argument(
        "--pseudo-masks", action="store_true", help="also draw S_g and S_l of each class found (Fig. 6)"
    )
    segment.add_argument("--compare", action="append", default=[], help="another model to draw beside (Fig. 7)")
    for one in (evaluation, segment):
        one.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
        one.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32",
                         help="of autocast: lower is faster and changes some labels")  # fmt: skip
        one.add_argument("--set", action="append", default=[], metavar="key=value",
                         help="a switch of the model, e.g. inference=windows or class_maps_budget=500")  # fmt: skip

    convert = command("convert", run_convert, CONVERT)
    convert.add_argument("checkpoint", help=".pth or .safetensors file; with --to-released: a model's folder or hub id")
    convert.add_argument("--out", type=Path, required=True, help="folder to write; with --to-released: .pth file")
    convert.add_argument("--to-released", action="store_true", help="the other way: our model to the released keys")
    convert.add_argument(
        "--allow-foreign", action="store_true", help="leave keys that belong to no FGAseg aside instead of refusing"
    )
    convert.add_argument("overrides", nargs="*", metavar="key=value", help="switches of the model, e.g. top_k=8")

    parity = command("parity", run_parity, PARITY)
    parity.add_argument("cases", nargs="*", metavar="word", help="only cases whose names hold one of these")
    parity.add_argument("--root", type=Path, default=Path("../shared/parity"), help="folder of the recordings")
    parity.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of our model")

    bench = command("bench", run_bench, BENCH)
    bench.add_argument("ops", nargs="*", metavar="op", help="only these (default: all)")
    bench.add_argument("--out", type=Path, default=Path("runs/bench"), help="writes <out>.csv and <out>.png")
    bench.add_argument("--shapes", default="", help="only these, such as S1,S3,K=11 (benchmarks/shapes.py)")
    for key, text in (("classes", "vocabulary sizes"), ("batch", "images at once"), ("forms", "plain,accelerated,..."),
                      ("passes", "inference,text,training")):  # fmt: skip
        bench.add_argument(f"--{key}", metavar="N,..." if key in ("classes", "batch") else "NAME,...",
                           help=f"of bench model: {text}")  # fmt: skip
    bench.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU")

    command("info", run_info, "Versions, what was built, and which backend runs each op and why not the others.")
    return parser


def run_demo(options: argparse.Namespace) -> None:
    from ..reproduce import run_demo

    run_demo(options.out, options.seed, options.overrides, options.json, options.restart)


def run_data_list(options: argparse.Namespace) -> None:
    from rich.console import Console

    from ..data import list_sets, list_table

    if options.json:
        print(json.dumps(list_sets()))
    else:
        Console().print(list_table())


def run_data_check(options: argparse.Namespace) -> int:
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


def run_data_prepare(options: argparse.Namespace) -> int:
    from ..data import default_root, prepare, print_prepared

    _check_data_options(options)
    given = {key: getattr(options, key) for key in ("split", "out", "images", "labels", "workers")}
    _check_out(options.out)
    root = options.root or default_root()
    rows = prepare(options.sets, root, **given, progress=True)
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


def _check_out(out: Path | None) -> None:
    """Say before hours are spent that nothing can be written to a folder, which need not exist yet."""
    if out is None:
        return
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})" if nearest.is_dir() else f"{nearest} is a file"
        raise UsageError(f"--out {out}: {reason}; give another folder") from None


def run_train(options: argparse.Namespace) -> None:
    from ..config import load_config
    from ..distributed import rank
    from ..training import train

    summary = train(load_config(options.config, options.overrides), resume=not options.restart)
    if rank() == 0:
        if options.json:
            print(json.dumps(summary.dump()))
        else:
            _print_scores(summary.scores)
            print(f"model: {summary.model}")


def run_eval(options: argparse.Namespace) -> None:
    from ..distributed import rank
    from ..errors import Interrupted
    from ..evaluation import score, templates, weights_hash
    from ..training import Signals

    _check_eval(options)
    _join_processes(options)
    sets = _eval_sets(options)
    _check_out(options.out)
    views = {"window": "inference=windows", "whole": "inference=whole"}
    options.set += [switch for view, switch in views.items() if getattr(options, view)]
    options.set += [f"top_k={'null' if options.top_k == 'all' else options.top_k}"] if options.top_k else []
    options.set += [f"template={json.dumps(templates(options.template))}"] if options.template else []
    model = _load(options.weights, options)
    weights, results = weights_hash(model), {}
    for name, dataset in sets.items():
        with Signals() as signals, _precision(options):
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
        _print_results(options, results)


def _check_eval(options: argparse.Namespace) -> None:
    """One model and one source of data; what is not given gets its default."""
    if bool(options.model) == bool(options.weights):
        raise UsageError(
            "give the model once: as the first word, or with --weights (and sets with commas: --data a150,pas20)"
        )
    options.weights = options.weights or options.model
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


def _print_results(options: argparse.Namespace, results: dict[str, Any]) -> None:
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
            "model": options.weights,
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


def run_ablate(options: argparse.Namespace) -> None:
    from ..reproduce import run_ablations

    if options.steps < 1:
        raise UsageError(f"--steps {options.steps}: give 1 or more")
    words = [*options.words, *options.overrides]
    tables = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    run_ablations(tables, options.on, options.steps, options.seed, options.out, overrides, options.json)


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


def run_segment(options: argparse.Namespace) -> None:
    from ..data import read_names
    from ..vocabulary import check_names

    outputs = [_output(options, source) for source in options.images]
    for folder in {out.parent for out in outputs}:
        _check_out(folder)
    if twice := {str(out) for out in outputs if outputs.count(out) > 1}:
        raise UsageError(f"several photos would be written to {', '.join(sorted(twice))}: label them in separate runs")
    names = read_names(options.names) if options.names else [n.strip() for n in options.classes.split(",")]
    check_names(names)
    models = {source: _load(source, options) for source in [options.model, *options.compare]}
    for source, out in zip(options.images, outputs, strict=True):
        with _precision(options):
            row = _segment_one(models, source, names, out, options.pseudo_masks)
        if options.json:
            print(json.dumps(row), flush=True)  # a line a photo: what is done stays done if a later photo is corrupt
        else:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in row["classes"].items())
            print(f"{source}: {shares} -> {out}")


def _segment_one(models: dict[str, Any], source: str, names: list[str], out: Path, with_masks: bool) -> dict[str, Any]:
    """Label one photo with the first model (drawn beside the others if there are any) and write the pictures."""
    from ..inference import comparison, draw_pseudo_masks, pseudo_masks

    results = {name: model.segment(source, names) for name, model in models.items()}
    name, first = next(iter(results.items()))
    if len(results) > 1:
        picture = comparison(first.image, [(title, r.labels) for title, r in results.items()], names)
    else:
        picture = first.overlay()
    _save_picture(picture, out)
    row = {
        "image": source,
        "size": [first.image.height, first.image.width],
        "picture": str(out),
        "classes": first.present,
        "masks": first.run_lengths(),
    }
    if with_masks:
        masks = pseudo_masks(models[name], first.image, models[name].encode(names))
        row["pseudo_masks"] = str(out.with_name(f"{out.stem}_masks.png"))
        _save_picture(draw_pseudo_masks(first, masks), Path(row["pseudo_masks"]))
    return row


def run_convert(options: argparse.Namespace) -> None:
    from ..files import atomic_directory
    from ..model import FGASeg
    from ..weights import load, save

    if options.to_released:
        if options.overrides or options.allow_foreign:
            raise UsageError("--to-released takes the model as it is: leave key=value and --allow-foreign out")
        report = save(FGASeg.from_pretrained(options.checkpoint), options.out)
    else:
        _check_replaceable(options.out)
        model, report = load(FGASeg, options.checkpoint, options.overrides, options.allow_foreign)
        with atomic_directory(options.out) as folder:
            model.save_pretrained(folder)
    if options.json:
        print(json.dumps({"checkpoint": options.checkpoint, "out": str(options.out), **asdict(report)}))
    else:
        print("\n".join([*report.lines(), f"written: {options.out}"]))


def _check_replaceable(folder: Path) -> None:
    """Only a model may be replaced: whatever else is in a folder would be lost."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: a file; give a folder to write the model to")
    others = {file.name for file in folder.glob("*")} - {"config.json", "model.safetensors"}
    if others:
        raise UsageError(f"--out {folder}: holds other files ({', '.join(sorted(others)[:3])}); give a new folder")


def run_parity(options: argparse.Namespace) -> int:
    from ..reproduce import run_parity

    return 0 if run_parity(options.root, options.dtype, options.cases, options.json) else 1


def run_bench(options: argparse.Namespace) -> None:
    from ..reproduce import benchmark_model, benchmark_ops

    if options.ops == ["model"]:
        chosen = {key: getattr(options, key) for key in ("classes", "batch", "forms", "passes")}
        benchmark_model(options.out, [f"--{key}={value}" for key, value in chosen.items() if value], options.json)
    else:
        benchmark_ops(options.ops, options.out, options.shapes, options.dtype, options.json)


def run_info(options: argparse.Namespace) -> int:
    from .info import main as info

    return info(options.json)


def _whole_numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _precision(options: argparse.Namespace) -> Any:
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    lower = options.precision != "float32"
    return torch.autocast(device.partition(":")[0], getattr(torch, options.precision) if lower else None, enabled=lower)


def _load(source: str, options: argparse.Namespace) -> Any:
    import torch
    import yaml

    from ..model import FGASeg

    chosen = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {chosen}: cannot be used here: {str(error).splitlines()[0]}") from None
    for switch in options.set:
        if "=" not in switch:
            raise UsageError(f"--set {switch}: write key=value, such as --set inference=windows")
    switches = (switch.split("=", 1) for switch in options.set)
    return FGASeg.from_pretrained(source, **{key: yaml.safe_load(value) for key, value in switches}).to(chosen)


def _output(options: argparse.Namespace, source: str) -> Path:
    name = f"{Path(source).stem}_labels.png"
    if options.out is None:
        return Path(name)
    if len(options.images) > 1 or options.out.is_dir() or not options.out.suffix:
        return options.out / name
    return options.out


def _save_picture(picture: Any, path: Path) -> None:
    from ..files import atomic_write

    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
    atomic_write(path, lambda file: picture.save(file, format=kind))


def _print_scores(scores: dict[str, Any]) -> None:
    from rich.console import Console

    for name, one in scores.items():
        Console().print(one.table(name))


if __name__ == "__main__":
    sys.exit(main())
