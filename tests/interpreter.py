"""Makes Triton's interpreter multiply as a GPU does, and that of Triton 3.6 run with a newer NumPy."""

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


def index_by_one_element() -> None:
    """NumPy 2.4 refuses int() of an array with a dimension, which Triton's interpreter uses up to version 3.6.

    It is fixed in Triton 3.7: https://github.com/triton-lang/triton/issues/9171
    """
    import triton
    from triton.runtime import interpreter

    if tuple(map(int, triton.__version__.split(".")[:2])) > (3, 6):
        return
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor, scope) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch
