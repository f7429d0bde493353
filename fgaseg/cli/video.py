"""`fgaseg video`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Interrupted, UsageError
from .options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    add_background_options,
    add_class_options,
    add_json,
    add_model_options,
    add_words,
    background_values,
    check_out,
    class_values,
    load_model,
    split_words,
)
from .printing import say, say_json

if TYPE_CHECKING:
    from ..inference import VideoSummary

HELP = """\
Label the frames of a video with the class names that you give. The labels are drawn over the frames, above a strip with
the names; --masks writes them as index PNGs. Times of frames and sound are kept. Any video that FFmpeg reads can be
given, of any length: PyAV reads and writes them (pip install 'fgaseg[video]').

  fgaseg video clip.mp4 --classes "road, car, sky" --out labelled.mp4
  fgaseg video clip.mp4 --model runs/mine/model --names names.txt --out labelled.webm --smooth 0.2
  fgaseg video clip.mp4 --model runs/mine/model --classes "cat, sofa" --masks masks/ --every 25
  fgaseg video clip.mp4 --model runs/mine/model --classes "cat, sofa" --start 60 --stop 75 --background stuff

Interrupted with Ctrl-C, it keeps what was done: labelled.partial.mp4 and masks.partial/.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    add_words(parser, "VIDEO | key=value", "the video; overrides of the model's configuration, e.g. class_cap=64")
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"{MODEL_HELP} (default: {DEFAULT_MODEL})")
    add_class_options(parser)
    parser.add_argument("--out", type=Path, help="video to write: .mp4, .m4v, .mov, .mkv or .webm (default: "
                        "<video>_labels.mp4, unless --masks is given)")  # fmt: skip
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="a new folder for the labels of every frame that "
                        "went through the model, as index PNGs, and names.txt")  # fmt: skip
    parser.add_argument("--smooth", type=float, default=0.0, metavar="S", help="average over time against flicker: "
                        "after S seconds a frame counts for 1/e, 37 %% (default: 0, each frame by itself)")  # fmt: skip
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th frame goes through the "
                        "model, the others have the labels of the one before (default: 1)")  # fmt: skip
    parser.add_argument("--start", type=float, metavar="S", help="seconds of the video to leave out at its beginning")
    parser.add_argument("--stop", type=float, metavar="S", help="second of the video to end at")
    parser.add_argument("--no-legend", action="store_true", help="no strip with the names: the size stays as it is")
    add_background_options(parser)
    add_model_options(parser)


def run(options: argparse.Namespace) -> int:
    from ..inference import segment_video
    from ..inference.video import check_call
    from ..inference.video_reading import VideoReader
    from ..training import Signals

    words, overrides = split_words(options.words)
    if len(words) != 1:
        raise UsageError(f"give one video; got {', '.join(words) or 'none'}")
    out = options.out
    if out is None and options.masks is None:
        out = Path(f"{Path(words[0]).stem}_labels.mp4")
    for file in (out, options.masks):
        if file is not None:
            check_out(file.parent)
    classes = class_values(options)
    background, threshold = background_values(options)
    times = {"smooth": options.smooth, "every": options.every, "start": options.start, "stop": options.stop}
    check_call(words[0], out, options.masks, **times)
    VideoReader(words[0], options.start, options.stop).close()  # before a model is fetched
    model = load_model(options.model, overrides, options.device, options.precision)
    with Signals() as signals:
        summary = segment_video(
            model,
            words[0],
            classes,
            out,
            masks=options.masks,
            **times,
            background=background,
            threshold=threshold,
            legend=not options.no_legend,
            progress=True,
            cancel=lambda: signals.number > 0,
        )
    if options.json:
        say_json(_row(summary))
    elif summary.complete:
        say(_line(summary))
    if not summary.complete:
        kept = ", ".join(map(str, summary.files)) or "nothing"
        raise Interrupted(f"interrupted after {summary.frames} frames; kept: {kept}", signals.number)
    return 0


def _row(summary: "VideoSummary") -> dict[str, Any]:
    """The summary as JSON has it."""
    row = asdict(summary) | {"files": [str(file) for file in summary.files], "fps": round(summary.fps, 3)}
    return row | {"size": list(summary.size), "classes": row.pop("present"), "names": list(summary.classes)}


def _line(summary: "VideoSummary") -> str:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in summary.present.items())
    labelled = "" if summary.labelled == summary.frames else f" ({summary.labelled} labelled)"
    pace = (
        f"{summary.frames} frames{labelled}, {summary.duration:.1f} s, in {summary.seconds:.1f} s ({summary.fps:.1f}/s)"
    )
    sound = f"; sound {summary.sound}" if summary.sound not in ("copied", "none") else ""
    files = ", ".join(map(str, summary.files))
    return f"{summary.video}: {pace}: {shares} -> {files}{sound}"
