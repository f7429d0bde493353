"""The paper's ablations (Tables II to VII), trained on any data set."""

from .report import markdown
from .runner import STEPS, run_ablations

__all__ = ["STEPS", "markdown", "run_ablations"]
