"""`fgaseg demo | train | eval | segment | info`: thin commands over the library."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = "FGAseg: open-vocabulary semantic segmentation. Give it photos and any list of class names."

DEMO = """\
Train a small FGAseg from scratch on procedurally drawn scenes, score it on colour-shape pairs it has never seen, and
write a picture with photos, labels and pseudo-masks. Needs no download and about three minutes on two CPU cores.

  fgaseg demo                       the demo; results in runs/demo
  fgaseg demo --seed 1 --json       another seed, figures as JSON
  fgaseg demo --ablate              the same model with P2Tformer, T2Ploss and LCS switched off in turn (Table II)
"""

TRAIN = """\
Train FGAseg. A data set is a folder of photos, a folder of label PNGs and a names file (one name a line).

  fgaseg train configs/vitb16.yaml data.images=photos data.labels=labels data.names=names.txt train.out=runs/mine
  torchrun --nproc-per-node 8 -m fgaseg train configs/vitb16.yaml ...      many GPUs; the batch is shared among them

Every key of the YAML file can be overridden as section.key=value. Interrupted (Ctrl-C, SIGTERM, a crash), the same
command goes on from the last checkpoint and ends in the same weights. The model is left in <train.out>/model.
"""

EVAL = """\
Score a model on labelled photos: both definitions of mIoU, per class.

  fgaseg eval runs/mine/model --images photos --labels labels --names names.txt
  fgaseg eval runs/mine/model --config runs/mine/config.yaml --csv per_class.csv --json
"""

SEGMENT = """\
Label photos with the names you give.

  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa, wooden floor" --out labelled.png
  fgaseg segment photos/*.jpg --model runs/mine/model --names names.txt --out labelled/
  fgaseg segment photo.jpg --model runs/mine/model --classes "cat, sofa" --pseudo-masks
  fgaseg segment photo.jpg --model runs/a/model --compare runs/b/model --classes "cat, sofa"     side by side (Fig. 7)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, 1 for a user's mistake (one line on stderr), 128 + signal when interrupted."""
    options = _parser().parse_args(arguments)
    warnings.showwarning = _say_warning
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from .train import Interrupted

        if isinstance(error, Interrupted):
            print(error, file=sys.stderr)
            return 128 + error.signal
        if isinstance(error, _expected()):
            print(f"fgaseg {options.command}: {error}", file=sys.stderr)
            return 1
        raise


def _expected() -> tuple[type[Exception], ...]:
    """Errors that explain themselves: a traceback would only hide the message."""
    from .checkpoint import CheckpointError
    from .config import ConfigError
    from .data import DataError
    from .encoder import EncoderError
    from .images import ImageError
    from .text import VocabularyError
    from .train import TrainingError

    return (CheckpointError, ConfigError, DataError, EncoderError, ImageError, OSError, TrainingError, VocabularyError,
            FloatingPointError)  # fmt: skip


def _say_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None,
                 line: str | None = None) -> None:  # fmt: skip
    print(f"note: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fgaseg", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo | train | eval | segment | info")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        summary = text.split(".")[0].replace("\n", " ")
        one = commands.add_parser(name, help=summary, description=text,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        one.set_defaults(run=run)
        one.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
        return one

    demo = command("demo", run_demo, DEMO)
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for model, figures and picture")
    demo.add_argument("--seed", type=int, nargs="+", default=[0], help="one run a seed; figures are averaged over them")
    demo.add_argument("--ablate", action="store_true", help="also with P2Tformer, T2Ploss and LCS switched off in turn")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="as for train, e.g. train.steps=100")

    train = command("train", run_train, TRAIN)
    train.add_argument("config", help="YAML file (see configs/)")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.lr=1e-4 model.kernel_size=5")
    train.add_argument("--restart", action="store_true", help="ignore a checkpoint in train.out and start over")

    evaluation = command("eval", run_eval, EVAL)
    evaluation.add_argument("model", help="folder that save_pretrained or train wrote, or a hub id")
    evaluation.add_argument("--config", help="take the data set from this training configuration")
    for key in ("images", "labels", "names", "list"):
        evaluation.add_argument(f"--{key}", type=Path, help=f"the data set's {key}")
    evaluation.add_argument("--count", type=int, help="only the first so many photos")
    evaluation.add_argument("--csv", type=Path, help="write the per-class rows to this file")
    evaluation.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")

    segment = command("segment", run_segment, SEGMENT)
    segment.add_argument("images", nargs="+", help="photos")
    segment.add_argument("--model", required=True, help="folder or hub id")
    names = segment.add_mutually_exclusive_group(required=True)
    names.add_argument("--classes", help="names, separated by commas")
    names.add_argument("--names", type=Path, help="file with one name a line, or a JSON list")
    segment.add_argument("--out", type=Path, help="picture to write; a folder for several photos "
                         "(default: <photo>_labels.png beside nothing else, in the working directory)")  # fmt: skip
    segment.add_argument(
        "--pseudo-masks", action="store_true", help="also draw S_g and S_l of each class found (Fig. 6)"
    )
    segment.add_argument("--compare", action="append", default=[], help="another model to draw beside (Fig. 7)")
    segment.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")

    command("info", run_info, "Versions, what was built, and which backend runs each op and why not the others.")
    return parser


def run_demo(options: argparse.Namespace) -> None:
    from .demo import run

    run(options.out, options.seed, options.ablate, options.overrides, options.json)


def run_train(options: argparse.Namespace) -> None:
    from .config import load_config
    from .distributed import rank
    from .train import train

    summary = train(load_config(options.config, options.overrides), resume=not options.restart)
    if rank() == 0:
        if options.json:
            print(json.dumps(summary.dump()))
        else:
            _print_scores(summary.scores)
            print(f"model: {summary.model}")


def run_eval(options: argparse.Namespace) -> None:
    from .config import load_config
    from .data import FolderDataset
    from .evaluate import evaluate

    overrides = [f"data.{key}={value}" for key, value in (("images", options.images), ("labels", options.labels),
                 ("names", options.names), ("val_list", options.list)) if value]  # fmt: skip
    config = load_config(options.config, overrides)
    dataset = FolderDataset(config.data, "val")
    for reason in dataset.skipped:
        print(f"note: {reason}", file=sys.stderr)
    model = _load(options.model, options.device)
    scores = evaluate(model, dataset, ignore=config.data.ignore, count=options.count, progress=True)
    if options.csv:
        scores.write_csv(options.csv)
    if options.json:
        print(json.dumps({"model": options.model, **scores.dump()}))
    else:
        _print_scores({"": scores})


def run_segment(options: argparse.Namespace) -> None:
    from .data import read_names
    from .pictures import comparison
    from .segment import draw_pseudo_masks, pseudo_masks
    from .text import check_names

    names = read_names(options.names) if options.names else [n.strip() for n in options.classes.split(",")]
    check_names(names)
    models = {source: _load(source, options.device) for source in [options.model, *options.compare]}
    rows = []
    for source in options.images:
        results = {name: model.segment(source, names) for name, model in models.items()}
        first = results[options.model]
        out = _output(options, source)
        row: dict[str, Any] = {"image": source, "size": [first.image.height, first.image.width], "picture": str(out),
                               "classes": first.present}  # fmt: skip
        if options.compare:
            picture = comparison(first.image, [(name, r.labels) for name, r in results.items()], list(names))
        else:
            picture = first.overlay()
        _save_picture(picture, out)
        if options.pseudo_masks:
            model = models[options.model]
            masks = pseudo_masks(model, first.image, model.encode(names))
            row["pseudo_masks"] = str(out.with_name(f"{out.stem}_masks.png"))
            _save_picture(draw_pseudo_masks(first, masks), Path(row["pseudo_masks"]))
        if options.json:
            row["masks"] = first.run_lengths()
        else:
            shares = ", ".join(f"{name} {share:.1%}" for name, share in first.present.items())
            print(f"{source}: {shares} -> {out}")
        rows.append(row)
    if options.json:
        print(json.dumps(rows))


def run_info(options: argparse.Namespace) -> int:
    from .info import main as info

    return info(options.json)


def _load(source: str, device: str | None) -> Any:
    import torch

    from .model import FGASeg

    return FGASeg.from_pretrained(source).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _output(options: argparse.Namespace, source: str) -> Path:
    name = f"{Path(source).stem}_labels.png"
    if options.out is None:
        return Path(name)
    if len(options.images) > 1 or options.out.is_dir() or not options.out.suffix:
        return options.out / name
    return options.out


def _save_picture(picture: Any, path: Path) -> None:
    from .checkpoint import atomic_write

    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
    atomic_write(path, lambda file: picture.save(file, format=kind))


def _print_scores(scores: dict[str, Any]) -> None:
    from rich.console import Console

    for name, one in scores.items():
        Console().print(one.table(name))


if __name__ == "__main__":
    sys.exit(main())
