"""The torch.library handle of fgaseg's ops and the compiled library, loaded once.

Python owns the schemas, so the ops exist with nothing built; the C++ library only adds their implementations.
"""

import json
from pathlib import Path

import torch

HERE = Path(__file__).parent
LIBRARY = torch.library.Library("fgaseg", "DEF")


def define(schema: str) -> str:
    """Defines an op of the fgaseg namespace; returns its qualified name."""
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    return "fgaseg::" + schema.split("(")[0]


def first_order_only(name: str) -> None:
    """Makes differentiating a backward op an error that says so, instead of a silent zero."""

    def backward(ctx, *grads):
        raise RuntimeError(f"{name} cannot be differentiated again; use backend='reference' for second derivatives")

    torch.library.register_autograd(name, backward)


def build_info() -> dict[str, str]:
    """What setup.py built and what it skipped and why: {"cpp", "host", "cuda", "torch", "python"}."""
    path = HERE / "_build_info.json"
    if not path.exists():
        missing = "not built: fgaseg was not installed here (pip install -e .)"
        return {"cpp": missing, "host": missing, "cuda": missing}
    return json.loads(path.read_text())


def _load() -> str:
    found = sorted(HERE.glob("_C.*so"))
    if not found:
        return f"the C++ library is not there ({build_info()['cpp']})"
    try:
        torch.ops.load_library(found[0])
    except OSError as error:
        return f"{found[0].name} did not load: {error}"
    return ""


why_no_library = _load()
