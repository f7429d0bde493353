"""Where the time of one view goes: stages, their operations, and what the machine could do."""

from .machine import Rate, copy_rate, peak, product_rate
from .stages import STAGES, by_stage, stage_gflop, stage_peaks, stage_seconds, without_values
from .view import OpTime, StageUse, ViewProfile, profile_view, random_model

__all__ = [
    "STAGES",
    "OpTime",
    "Rate",
    "StageUse",
    "ViewProfile",
    "by_stage",
    "copy_rate",
    "peak",
    "product_rate",
    "profile_view",
    "random_model",
    "stage_gflop",
    "stage_peaks",
    "stage_seconds",
    "without_values",
]
