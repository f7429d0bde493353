"""The model's convolutions with one channel on one side: the embedding of class maps, and their scores."""

from .op import embed_maps, score_maps

__all__ = ["embed_maps", "score_maps"]
