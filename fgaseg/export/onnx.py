"""Exported programs as ONNX graphs, with the names of their axes and what a runner needs to know."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from ..errors import ExportError
from .graphs import Part, Port
from .tracing import last_line

SCOPES = "pkg.torch.onnx.name_scopes"  # the modules that a node is in, as the exporter names them
LARGEST = 1_900_000_000  # bytes of weights in one file: a protocol buffer ends at 2 GiB


def write_onnx(
    part: Part, program: ExportedProgram, path: Path, opset: int | None, metadata: Mapping[str, str]
) -> dict[str, Any]:
    """Write a part, with its weights in `<path>.data` if they are too many for one file.

    opset     version of the operators; None: the exporter's own choice
    metadata  of the graph, where onnxruntime and other programs read it

    Returns "opset" and "operators", the number of nodes of each type. Raises ExportError with the exporter's words.
    """
    import torch

    try:
        with silence():
            found = torch.onnx.export(program, (), dynamo=True, opset_version=opset, verbose=False)
    except ImportError as error:
        raise ExportError(f"--to onnx needs onnx and onnxscript ({error}): pip install 'fgaseg[export]'") from None
    except Exception as error:  # its exceptions have no common type
        raise ExportError(f"{part.name}: torch.onnx.export: {last_line(error)}") from error
    assert found is not None
    model = found.model
    _name(model.graph.inputs, part.inputs)
    _name(model.graph.outputs, part.outputs)
    model.metadata_props.update(metadata)
    for node in model.graph.all_nodes():  # stack traces would publish the paths of this machine
        for key in set(node.metadata_props) - {SCOPES}:
            del node.metadata_props[key]
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    with silence():
        found.save(str(path), external_data=weights > LARGEST)
    written = model.opset_imports[""]
    if opset is not None and written != opset:
        raise ExportError(f"opset {opset}: torch.onnx.export writes {written} instead; give a newer one")
    types = Counter(node.op_type for node in model.graph.all_nodes())
    return {"opset": written, "operators": dict(sorted(types.items()))}


def _name(values: Any, ports: tuple[Port, ...]) -> None:
    """Give inputs or outputs the names of the ports, and of their axes."""
    import onnx_ir

    for value, port in zip(values, ports, strict=True):
        value.name, value.shape = port.name, onnx_ir.Shape(port.shape)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without the exporter's remarks on every node."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
