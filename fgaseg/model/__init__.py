"""The network: CLIP's encoders, alignment, supplementation, aggregation and decoder."""

from .class_selection import ClassSelector
from .encoders import PROMPTS_PER_BATCH, register_encoder, run_block
from .fgaseg import FGASeg
from .fitting import shapes_of
from .head import Output
from .loading import check_source, fetch_named, load, local_weights, usable_device
from .precision_choice import PRECISIONS, set_precision
from .published import cache_place, converted_folder, here, read_record
from .quantization import quantize
from .segmentation_pipeline import SegmentationPipeline, pipeline

__all__ = [
    "PRECISIONS",
    "PROMPTS_PER_BATCH",
    "ClassSelector",
    "FGASeg",
    "Output",
    "SegmentationPipeline",
    "cache_place",
    "check_source",
    "converted_folder",
    "fetch_named",
    "here",
    "load",
    "local_weights",
    "pipeline",
    "quantize",
    "read_record",
    "register_encoder",
    "run_block",
    "set_precision",
    "shapes_of",
    "usable_device",
]
