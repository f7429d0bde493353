"""The page to try a model on, in a browser: `fgaseg app`."""

from .labelling import Labeller
from .server import build_app, serve

__all__ = ["Labeller", "build_app", "serve"]
