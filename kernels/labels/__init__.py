"""Host-side work on label maps: renumbering and run-length masks."""

from .host import decode_runs, encode_runs, remap_labels

__all__ = ["decode_runs", "encode_runs", "remap_labels"]
