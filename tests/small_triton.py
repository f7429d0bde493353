"""Triton kernels by which tests see what the interpreter does."""

import triton
import triton.language as tl


@triton.jit
def shift(x, y, BLOCK: tl.constexpr):
    """y[i] = x[i + 1], also for the last element, which has no next one."""
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i + 1))


@triton.jit
def multiply(a, b, y, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, SIZE)
    square = i[:, None] * SIZE + i[None, :]
    tl.store(y + square, tl.dot(tl.load(a + square), tl.load(b + square), input_precision=PRECISION))
