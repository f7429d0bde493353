"""Global category supplementation: the cosine of every pixel with every class embedding."""

from .op import cosine_cost_volume

__all__ = ["cosine_cost_volume"]
