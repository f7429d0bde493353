"""What cannot be a graph, and why."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import ExportError
from ..model import FGASeg
from ..model.class_selection import ClassSelector
from ..model.encoders import OpenClipEncoder
from ..model.quantization import is_quantized


def check_exportable(model: FGASeg, parts: Sequence[str]) -> None:
    """Raise ExportError for a model of which the parts cannot be exported, with the reason and what to do."""
    if why := _why_not(model, parts):
        raise ExportError(f"model: {why}")


def _why_not(model: FGASeg, parts: Sequence[str]) -> str:
    """The reason; "": it can."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    encoders = [part for part in parts if part != "head"]
    if is_quantized(model):
        return "is quantized to int8, by operations of fgaseg's own; export it as it was before fgaseg.quantize"
    if any(hasattr(tensor, "full_tensor") for tensor in tensors):
        return "is sharded over processes; save it and export what fgaseg.load reads"
    if any(tensor.is_meta for tensor in tensors):
        return "has no weights (it is on the meta device); load it first"
    if encoders and not isinstance(model.encoder, OpenClipEncoder):
        return (
            f"{model.encoder.name} is an encoder of your own, which fgaseg cannot trace; export the part head alone "
            "and feed it the features and the embeddings of that encoder"
        )
    if type(model.head.selector) is not ClassSelector and (model.config.class_cap or model.config.top_k):
        return "its classes are chosen by a selector of your own (Head.selector), of which there is no graph"
    return ""
