"""The network: CLIP's encoders, alignment, supplementation, aggregation and decoder."""

from .class_selection import ClassSelector
from .encoders import PROMPTS_PER_BATCH, register_encoder, run_block
from .fgaseg import FGASeg
from .head import Output

__all__ = ["PROMPTS_PER_BATCH", "ClassSelector", "FGASeg", "Output", "register_encoder", "run_block"]
