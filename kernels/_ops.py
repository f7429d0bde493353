"""The namespace of the ops in torch.ops.

A package of the ops for others has this module with a namespace of its own (hub/package.py), so that it can be used in
one process with fgaseg and with other versions of itself.
"""

import torch

NAMESPACE = "fgaseg"

ops = getattr(torch.ops, NAMESPACE)


def add_op_namespace_prefix(op_name: str) -> str:
    """The full name of an op, as torch.library takes it."""
    return f"{NAMESPACE}::{op_name}"
