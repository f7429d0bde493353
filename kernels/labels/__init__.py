"""Label maps on the host: renumbering and run-length encoding."""

from .host import decode_runs, encode_runs, remap_labels

__all__ = ["decode_runs", "encode_runs", "remap_labels"]
