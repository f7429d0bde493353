"""What several commands share: options, key=value overrides, loading the model, and the check of --out."""

import argparse
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from ..vocabulary import ClassPrompts

DEFAULT_MODEL = "cat-seg-b16"
MODEL_HELP = "a name of `fgaseg models`, a folder that train or save_pretrained wrote, a checkpoint file, or a hub id"


def add_command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """A parser for one command. `text` is shown by its --help; its first sentence is listed by the parser above."""
    summary = re.split(r"\.\s", text)[0].replace("\n", " ")
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def add_words(parser: argparse.ArgumentParser, metavar: str, text: str) -> None:
    """Positional words of a command that takes overrides, to be read with `split_words`.

    Options may stand between them: `entry.parse` appends the words that argparse does not assign.
    """
    parser.add_argument("words", nargs="*", metavar=metavar, help=text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Device and precision, for `load_model`."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16", "int8", "auto"),  # PRECISIONS of fgaseg.model, which needs torch
        default="float32",
        help="of weights and products: lower ones change some labels, in half the memory, faster where the processor "
        "has them (fgaseg info); auto measures it, chooses float32 or bfloat16, and says so; int8 is for linear layers "
        "on a CPU (default: float32)",
    )


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """Which bands and values of photos are shown; `view_values` reads them."""
    parser.add_argument("--bands", type=whole_numbers, metavar="R,G,B",
                        help="bands of the photos that are shown, from 1 on (default: the first three)")  # fmt: skip
    parser.add_argument("--range", type=_limits, metavar="LOW,HIGH", help="values that become black and white, 0,4095, "
                        "or percentiles, 2%%,98%%; --range=-5,5 (default: the range of the type)")  # fmt: skip


def view_values(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_view_options` that were given, by the key of `data` that each sets. Raises UsageError."""
    from ..config.view import wrong_bands, wrong_range

    for name, value, check in (("bands", options.bands, wrong_bands), ("range", options.range, wrong_range)):
        if value is not None and (why := check(value)):
            raise UsageError(f"--{name} {why}")
    given = {"bands": options.bands, "value_range": options.range}
    return {key: value for key, value in given.items() if value is not None}


def _limits(text: str) -> list[float | str]:
    """The limits of --range as `data.value_range` takes them; what is no number is left as it is, to be named."""
    found: list[float | str] = []
    for limit in text.split(","):
        try:
            found.append(float(limit))
        except ValueError:
            found.append(limit.strip())
    return found


def add_class_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The classes, typed or in a file; `class_values` reads them."""
    names = parser.add_mutually_exclusive_group(required=required)
    names.add_argument("--classes", help="names with commas between them; | between synonyms of one class")
    names.add_argument("--names", type=Path, help="file of names: text, JSON, YAML, CSV, a label map of a tool, ...")


def class_values(options: argparse.Namespace) -> "tuple[ClassPrompts, ...]":
    """The classes of the options of `add_class_options`. Raises DataError, UsageError and VocabularyError."""
    from ..data import read_classes, read_typed
    from ..vocabulary import check_names

    if options.names:
        return check_names(read_classes(options.names))
    if re.search(r"\.(txt|json|ya?ml|csv|names)$", options.classes.strip().lower()):
        raise UsageError(f"--classes {options.classes}: is a file, and not names: give it as --names")
    return check_names(read_typed(options.classes))


def add_background_options(parser: argparse.ArgumentParser) -> None:
    """What becomes of pixels that are none of the classes; `background_values` reads them."""
    parser.add_argument(
        "--background",
        metavar="NAMES",
        help="names of everything else, commas between them, as one more class: other, 'wall, sky, ground', or stuff "
        "for 39 usual ones; the name of a class makes that one the background",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="pixels whose score, a probability, is below it are the background or, without one, 'nothing'",
    )


def background_values(options: argparse.Namespace) -> tuple[str | None, float | None]:
    """Background and threshold as `FGASeg.encode` and `segment` take them. Raises UsageError."""
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise UsageError(f"--threshold {options.threshold:g}: is a probability: give a value between 0 and 1")
    if options.background is not None and not options.background.strip(" ,|;"):
        raise UsageError("--background: names nothing; give names with commas between them, or stuff")
    return options.background, options.threshold


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """What the files and values of a user's own labels mean; `label_values` reads them."""
    parser.add_argument("--label-map", type=_label_map, metavar="FILE|PRESET|{...}",
                        help="names of the values or colours in your own labels, as data.label_map")  # fmt: skip
    parser.add_argument("--ignore", type=whole_numbers, help="your own values that are not scored, commas between them "
                        "(default: 255)")  # fmt: skip
    parser.add_argument("--image-suffix", metavar="TEXT", help="end of photos' names that labels do not share, "
                        "such as _leftImg8bit")  # fmt: skip
    parser.add_argument("--label-suffix", metavar="TEXT", help="the same of labels, such as _mask")


def label_values(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_label_options` that were given, by the key of `data` that each sets."""
    keys = ("label_map", "ignore", "image_suffix", "label_suffix")
    return {key: value for key in keys if (value := getattr(options, key)) is not None}


def _label_map(text: str) -> Any:
    """A file or a preset, or a mapping in YAML such as {0: background, 255: crack}."""
    if not text.lstrip().startswith("{"):
        return text
    import yaml

    from ..safe_yaml import load_yaml, yaml_problem

    try:
        return load_yaml(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(
            f"{text[:80]!r}: is not a mapping such as {{0: background, 255: crack}} ({yaml_problem(error)})"
        ) from None


def whole_numbers(text: str) -> list[int]:
    """The integers of an option such as --seed 0,1,2, for argparse's `type`."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers, separated by commas") from None


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate plain words from key=value overrides. A word that is the name of an existing file is a plain word."""
    overrides = [word for word in words if re.match(r"[\w.-]+=", word) and not os.path.exists(word)]
    return [word for word in words if word not in overrides], overrides


def only_overrides(words: list[str]) -> list[str]:
    """The overrides of a command that takes no other words. Raises UsageError if there is one."""
    plain, overrides = split_words(words)
    if plain:
        raise UsageError(f"{plain[0]!r} is not a key=value override, and no other words are expected here")
    return overrides


def model_and_overrides(model: str | None, words: list[str]) -> tuple[str, list[str]]:
    """The model, given as --model or as the only plain word, and the overrides."""
    plain, overrides = split_words(words)
    given = [model, *plain] if model else plain
    if len(given) != 1:
        raise UsageError(f"give one model, as the first word or with --model; got {', '.join(given) or 'none'}")
    return given[0], overrides


def load_model(source: str, overrides: list[str], device: str | None, precision: str = "float32") -> Any:
    """`fgaseg.load` onto a device (None: cuda if there is one), with key=value overrides of the configuration."""
    from ..model import load, set_precision

    check_precision(precision)
    model = load(source, *overrides, device=device)
    set_precision(model, precision)
    return model


def check_precision(precision: str) -> None:
    """Raise UsageError for "auto" in one of several processes, which would not all choose alike."""
    from .processes import process

    if precision == "auto" and process()[1] > 1:
        raise UsageError("--precision auto: several processes might choose differently: give float32 or bfloat16")


def check_out(out: Path | None, option: str = "--out", file: bool = False) -> None:
    """Raise UsageError, before hours of work, if nothing can be written to a folder, which need not exist yet.

    file  ``out`` is a file in that folder
    """
    if out is None:
        return
    if file and out.exists() and not out.is_file():
        raise UsageError(f"{option} {out}: is {'a folder' if out.is_dir() else 'a device or a pipe'}; name a file")
    folders = out.absolute().parents if file else (out, *out.absolute().parents)
    nearest = next(folder for folder in folders if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})" if nearest.is_dir() else f"{nearest} is a file"
        raise UsageError(f"{option} {out}: {reason}; give another folder") from None
