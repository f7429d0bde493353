"""`fgaseg app`."""

import argparse
import re

from ..errors import UsageError
from .options import DEFAULT_MODEL, MODEL_HELP, add_model_options, add_words, only_overrides
from .printing import say

LOOPBACK = ("127.0.0.1", "localhost", "::1")

HELP = """\
Open a page to try models on, in a browser: drop a photo, type class names, see the labels over the photo with a legend,
and the class and score under the pointer. Needs pip install 'fgaseg[app]'.

  fgaseg app
  fgaseg app --model runs/mine/model --open
  fgaseg app --model runs/mine/model --model cat-seg-b16 --port 8000 inference=windows

Only this machine can use the page, unless --host says otherwise. Photos stay in memory and are forgotten after an hour;
nothing is fetched from or sent to other hosts, apart from the weights of a published model at its first use. Ctrl-C
stops it.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", action="append", default=[],
                        help=f"{MODEL_HELP}; may be repeated, for a choice (default: {DEFAULT_MODEL})")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is all of this machine's")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at; 0: any that is free")
    parser.add_argument(
        "--root-path", default="", metavar="/PATH", help="path under which a proxy in front shows the page"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser of this machine")
    add_model_options(parser)
    add_words(parser, "key=value", "overrides of the configuration of every model, e.g. inference=windows")


def run(options: argparse.Namespace) -> None:
    import webbrowser

    from ..app import Labeller, serve
    from ..model import check_source, usable_device

    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port {options.port}: is not between 0 and 65535")
    if options.root_path and not re.fullmatch(r"(/[\w.~-]+)+", options.root_path):
        raise UsageError(f"--root-path {options.root_path}: give a path such as /labels, without a / at its end")
    sources, overrides = options.model or [DEFAULT_MODEL], only_overrides(options.words)
    for source in sources:
        check_source(source, *overrides)
    usable_device(options.device)
    labeller = Labeller(sources, overrides, options.device, options.precision)

    def ready(address: str) -> None:
        if options.host not in LOOPBACK:
            say(f"note: everyone who can reach this machine at {options.host} can use the page", error=True)
        behind = f", for a proxy that shows it below {options.root_path}" if options.root_path else ""
        say(f"{address}{behind} (Ctrl-C stops it)")
        if options.open:
            webbrowser.open(address)

    serve(labeller, options.host, options.port, options.root_path, ready)
