"""Programs compiled ahead of time by AOTInductor, which C++ runs with PyTorch's libraries and without Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.export import ExportedProgram

from ..errors import ExportError
from .tracing import last_line

LIMIT = "aoti: compiled for the instructions of this machine's processor; others may not run it"


def write_package(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Compile a program and write it as `path` (.pt2), with its weights.

    metadata  strings that a program in C++ reads from the package

    Of images of one size: compiled for any size, the head took five times the time of PyTorch's own operations;
    compiled for one, half of it. Needs a C++ compiler, and minutes. Raises ExportError with the compiler's words.
    """
    from torch._inductor import aoti_compile_and_package

    # the wrapper only calls the kernels, which are optimised all the same
    options = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.metadata": dict(metadata)}
    try:
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except Exception as error:  # its exceptions have no common type
        raise ExportError(f"{path.name}: AOTInductor cannot compile it: {last_line(error)}") from error
