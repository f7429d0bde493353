"""From a photo to labels: prediction, results and pictures."""

from .coco import CocoWriter
from .doubts import note_doubts
from .label_images import write_index_png
from .pictures import comparison, confusion_picture, contact_sheet, heat, legend, overlay, palette, panel
from .polygons import write_polygons
from .prediction import (
    LONGEST,
    LONGEST_ASPECT,
    STRIDE,
    WINDOW,
    WINDOWS_SIZE,
    Segmenter,
    decide,
    evaluation_mode,
    label_names,
    predict,
    pseudo_masks,
    released_views,
    sliding_scores,
    view_logits,
)
from .rasters import RasterLabels, segment_raster
from .results import PseudoMasks, Result, draw_pseudo_masks
from .scores import Probabilities, ScoreRule
from .video import VideoSummary, segment_video

__all__ = [
    "LONGEST",
    "LONGEST_ASPECT",
    "STRIDE",
    "WINDOW",
    "WINDOWS_SIZE",
    "CocoWriter",
    "Probabilities",
    "PseudoMasks",
    "RasterLabels",
    "Result",
    "ScoreRule",
    "Segmenter",
    "VideoSummary",
    "comparison",
    "confusion_picture",
    "contact_sheet",
    "decide",
    "draw_pseudo_masks",
    "evaluation_mode",
    "heat",
    "label_names",
    "legend",
    "note_doubts",
    "overlay",
    "palette",
    "panel",
    "predict",
    "pseudo_masks",
    "released_views",
    "segment_raster",
    "segment_video",
    "sliding_scores",
    "view_logits",
    "write_index_png",
    "write_polygons",
]
