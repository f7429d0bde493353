"""The network: CLIP's encoders, alignment, supplementation, aggregation and decoder."""

from .class_selection import ClassSelector
from .clip import run_block
from .fgaseg import FGASeg
from .head import Output
from .text_encoder import PROMPTS_PER_BATCH

__all__ = ["PROMPTS_PER_BATCH", "ClassSelector", "FGASeg", "Output", "run_block"]
