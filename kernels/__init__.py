"""The ops of FGAseg: one folder per op, each with a PyTorch reference that needs nothing built.

``explain(op_name, *args)`` says which backends can run a call and why the others cannot.
"""

from ._dispatch import explain
from .attention import attention
from .class_attention import class_attention, class_lookup, class_summary
from .cosine_cost_volume import cosine_cost_volume
from .group_norm_relu import group_norm_relu
from .kernel_softmax import kernel_softmax
from .labels import decode_runs, encode_runs, remap_labels
from .lcs_conv import lcs_conv
from .lcs_conv_from_text import lcs_conv_from_text
from .linear import Norm, linear, mlp
from .linear_int8 import Int8Weight, linear_int8, mlp_int8
from .map_conv import embed_maps, score_maps
from .topk_classes import Selection, gather_classes, scatter_classes, topk_classes
from .up_stage import UpWeights, up_stage
from .upsample_argmax import upsample_argmax, upsample_argmax_windows
from .window_attention import window_attention

__all__ = [
    "Int8Weight",
    "Norm",
    "Selection",
    "UpWeights",
    "attention",
    "class_attention",
    "class_lookup",
    "class_summary",
    "cosine_cost_volume",
    "decode_runs",
    "embed_maps",
    "encode_runs",
    "explain",
    "gather_classes",
    "group_norm_relu",
    "kernel_softmax",
    "lcs_conv",
    "lcs_conv_from_text",
    "linear",
    "linear_int8",
    "mlp",
    "mlp_int8",
    "remap_labels",
    "scatter_classes",
    "score_maps",
    "topk_classes",
    "up_stage",
    "upsample_argmax",
    "upsample_argmax_windows",
    "window_attention",
]
