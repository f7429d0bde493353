"""Makes Triton's interpreter multiply as a GPU does."""

import dataclasses

import numpy as np


def truncate_tf32() -> None:
    """Operands of tl.dot in tf32 lose their last 13 bits: tensor cores do not read them, and Triton does not round.

    The interpreter itself multiplies all of float32, so that its results would be better than any GPU's.
    """
    from triton._C.libtriton import ir
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    create_dot = InterpreterBuilder.create_dot

    def truncated(x: TensorHandle) -> TensorHandle:
        if x.data.dtype != np.float32:
            return x
        bits = np.ascontiguousarray(x.data).view(np.uint32) & np.uint32(0xFFFFE000)
        return dataclasses.replace(x, data=bits.view(np.float32))

    def dot(self, a, b, d, input_precision, *rest):
        if input_precision == ir.INPUT_PRECISION.TF32:
            a, b = truncated(a), truncated(b)
        return create_dot(self, a, b, d, input_precision, *rest)

    InterpreterBuilder.create_dot = dot
