"""Graphs to exported programs of PyTorch's, whose named axes hold for any size."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ..errors import ExportError
from .graphs import Part


def trace(part: Part) -> ExportedProgram:
    """The program of a part. Raises ExportError if PyTorch cannot trace it, or fixes an axis that should be free."""
    module: nn.Module = part.module.eval()
    shapes = tuple({i: Dim.AUTO for i, n in enumerate(port.shape) if isinstance(n, str)} for port in part.inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, part.example, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # its exceptions have no common type
        raise ExportError(f"{part.name}: PyTorch cannot trace it: {last_line(error)}") from error
    _check_free(part, program)
    _drop_unused(program)
    return program


def _drop_unused(program: ExportedProgram) -> None:
    """Without the weights that a part does not read: each would be in the file of every part."""
    specs = program.graph_signature.input_specs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in list(specs):
        node = nodes[spec.arg.name]
        if spec.target is not None and not node.users:
            specs.remove(spec)
            program.graph.erase_node(node)
            program.state_dict.pop(spec.target, None)
            program.constants.pop(spec.target, None)
    program.graph_module.recompile()


def _check_free(part: Part, program: ExportedProgram) -> None:
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for port, name in zip(part.inputs, names, strict=True):
        for axis, size in zip(port.shape, nodes[str(name)].meta["val"].shape, strict=True):
            free = isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None
            if isinstance(axis, str) and not free:
                raise ExportError(f"{part.name}: PyTorch fixed the axis {axis} of {port.name} at {size}")


def last_line(error: Exception) -> str:
    """The line of a tracer's message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("<class ")]  # in the summary of torch.onnx.export
    return f"{type(error).__name__}: {(causes or lines or [''])[0]}"[:300]
