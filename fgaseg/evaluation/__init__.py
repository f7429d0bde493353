"""Scores of a model on a labelled data set, and their provenance."""

from .evaluator import EvalOptions, LabelledImages, Segmenter, evaluate, open_validation_set
from .provenance import state_hash, weights_hash
from .results import EvalResult, evaluate_with_provenance, record_hash
from .scores import FIGURES, Scores
from .table_one import COLUMNS, cautions, table_one
from .templates import prompt_templates

__all__ = [
    "COLUMNS",
    "FIGURES",
    "EvalOptions",
    "EvalResult",
    "LabelledImages",
    "Scores",
    "Segmenter",
    "cautions",
    "evaluate",
    "evaluate_with_provenance",
    "open_validation_set",
    "prompt_templates",
    "record_hash",
    "state_hash",
    "table_one",
    "weights_hash",
]
