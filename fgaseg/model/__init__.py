"""The network: CLIP's encoders, alignment, supplementation, aggregation and decoder."""

from .clip import run_block
from .fgaseg import FGASeg
from .head import Output
from .text_encoder import PROMPTS_PER_BATCH

__all__ = ["PROMPTS_PER_BATCH", "FGASeg", "Output", "run_block"]
