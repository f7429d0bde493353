"""From a photo to labels: prediction, results and pictures."""

from .doubts import note_doubts
from .pictures import comparison, confusion_picture, contact_sheet, heat, legend, overlay, panel
from .prediction import (
    LONGEST,
    LONGEST_ASPECT,
    STRIDE,
    WINDOW,
    WINDOWS_SIZE,
    evaluation_mode,
    predict,
    pseudo_masks,
    released_views,
    sliding_scores,
)
from .results import Result, draw_pseudo_masks

__all__ = [
    "LONGEST",
    "LONGEST_ASPECT",
    "STRIDE",
    "WINDOW",
    "WINDOWS_SIZE",
    "Result",
    "comparison",
    "confusion_picture",
    "contact_sheet",
    "draw_pseudo_masks",
    "evaluation_mode",
    "heat",
    "legend",
    "note_doubts",
    "overlay",
    "panel",
    "predict",
    "pseudo_masks",
    "released_views",
    "sliding_scores",
]
