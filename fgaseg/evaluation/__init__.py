"""Scores of a model on a labelled data set, and the record of how they were made."""

from .evaluator import evaluate
from .records import COLUMNS, LEGEND, cautions, draw_figures, draw_table_one, score, table_one, templates, weights_hash
from .scores import FIGURES, Scores

__all__ = [
    "COLUMNS",
    "FIGURES",
    "LEGEND",
    "Scores",
    "cautions",
    "draw_figures",
    "draw_table_one",
    "evaluate",
    "score",
    "table_one",
    "templates",
    "weights_hash",
]
