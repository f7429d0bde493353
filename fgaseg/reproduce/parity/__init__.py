"""Comparison of our model with recorded tensors of the released code: every stage, loss and gradient.

The recordings (*.npz) and the rule by which their weights and inputs were made (fill.py, state_dict_keys_*.txt) are not
part of fgaseg.
"""

from .cases import run_parity
from .results import GRADIENT_LIMIT, MEDIAN_LIMIT, STAGE_LIMIT, CaseResult, StageResult, verdict

__all__ = ["GRADIENT_LIMIT", "MEDIAN_LIMIT", "STAGE_LIMIT", "CaseResult", "StageResult", "run_parity", "verdict"]
