"""up_stage: schema, shape rule and backends."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._dispatch import check_same, check_shape, differentiated, dispatch, register, under_autocast
from .._library import define
from ..group_norm_relu import group_norm_relu
from .reference import up_stage_reference


class UpWeights(NamedTuple):
    """The parameters of a stage from C to N channels, with P between them."""

    up_weight: Tensor  # [C, P, 2, 2], of a transposed convolution with stride 2
    up_bias: Tensor  # [P]
    weight1: Tensor  # [N, P, 3, 3]
    norm1_weight: Tensor  # [N]
    norm1_bias: Tensor  # [N]
    weight2: Tensor  # [N, N, 3, 3]
    norm2_weight: Tensor  # [N]
    norm2_bias: Tensor  # [N]

    def expected_shapes(self) -> tuple[list[int], ...]:
        """What the shapes must be for the C, P and N of up_weight and weight1."""
        inputs, middle, outputs = self.up_weight.shape[0], self.up_weight.shape[1], self.weight1.shape[0]
        first, second, norm = [outputs, middle, 3, 3], [outputs, outputs, 3, 3], [outputs]
        return [inputs, middle, 2, 2], [middle], first, norm, norm, second, norm, norm


def _check_shapes(x: Tensor, guidance: Tensor | None, weights: UpWeights, groups: int) -> None:
    op = "up_stage"
    if x.dim() != 4 or any(n < 1 for n in x.shape[1:]):
        raise ValueError(f"{op}: x has shape {list(x.shape)}; expected [R, H, W, C], H, W and C at least 1")
    if weights.up_weight.dim() != 4 or weights.up_weight.shape[0] != x.shape[3] or weights.up_weight.shape[1] < 1:
        wanted = f"[{x.shape[3]}, P, 2, 2], P at least 1"
        raise ValueError(f"{op}: up_weight has shape {list(weights.up_weight.shape)}; expected {wanted}")
    if weights.weight1.dim() != 4 or weights.weight1.shape[0] < 1:
        raise ValueError(f"{op}: weight1 has shape {list(weights.weight1.shape)}; expected [N, P, 3, 3], N at least 1")
    for name, tensor, expected in zip(weights._fields, weights, weights.expected_shapes(), strict=True):
        check_shape(op, name, tensor, expected)
    rows, height, width, outputs = x.shape[0], 2 * x.shape[1], 2 * x.shape[2], weights.weight1.shape[0]
    if guidance is not None:
        if guidance.dim() != 4 or list(guidance.shape[1:]) != [height, width, outputs]:
            wanted = f"[B, {height}, {width}, {outputs}]"
            raise ValueError(f"{op}: guidance has shape {list(guidance.shape)}; expected {wanted}")
        images = guidance.shape[0]
        if rows % images if images else rows:
            raise ValueError(f"{op}: x has {rows} rows for {images} images; expected equally many rows for every image")
    if groups < 1 or outputs % groups:
        raise ValueError(f"{op}: groups is {groups}; expected a divisor of N = {outputs}")


def _check(x: Tensor, guidance: Tensor | None, *others) -> None:
    *weights, groups, _ = others
    _check_same(x, guidance, UpWeights(*weights))
    _check_shapes(x, guidance, UpWeights(*weights), groups)


def _check_same(x: Tensor, guidance: Tensor | None, weights: UpWeights) -> None:
    check_same("up_stage", x=x, **weights._asdict(), **({} if guidance is None else {"guidance": guidance}))


def _fake(x, guidance, up_weight, up_bias, weight1, *_):
    return x.new_empty(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], weight1.shape[0])


define(
    "up_stage",
    "(Tensor x, Tensor? guidance, Tensor up_weight, Tensor up_bias, Tensor weight1, Tensor norm1_weight,"
    " Tensor norm1_bias, Tensor weight2, Tensor norm2_weight, Tensor norm2_bias, int groups, float eps) -> Tensor",
    _check,
    _fake,
    __package__,
)


def _not_double(x: Tensor, *_) -> str:
    return "it computes in float32; float64 is left to PyTorch's own convolutions" if x.dtype == torch.float64 else ""


register(
    "up_stage",
    up_stage_reference,
    native=(torch.bfloat16,),
    cpp=_not_double,
    triton=lambda *_: "there is no Triton kernel: on a GPU PyTorch's own convolutions run",
    cuda=lambda *_: "there is no CUDA kernel: on a GPU PyTorch's own convolutions run",
)


def up_stage(
    x: Tensor, guidance: Tensor | None, weights: UpWeights, groups: int, eps: float = 1e-5, *, backend: str = "auto"
) -> Tensor:
    r"""A stage of the decoder, channels last, without the maps between its operations:

        y1 = conv(up(x), weight1) + guidance[b]        up: transposed convolution 2x2 with stride 2
        y2 = conv(relu(norm1(y1)), weight2)            conv: 3x3, padded with zeros
        y  = relu(norm2(y2))                           norm: GroupNorm

    where b = n // (R // B) is the image of row n.

    x         [R, H, W, C]    float64, float32, float16 or bfloat16, R rows, image after image; any strides
    guidance  [B, 2H, 2W, N]  added to all rows of an image, fastest if N's stride is 1; None: none
    weights   UpWeights, any strides
    groups    of both norms, a divisor of N
    eps       of both norms
    returns   [R, 2H, 2W, N]  dtype of x; sums and norms in float32, in float64 for float64

    The C++ backend multiplies 3x3 kernels by Winograd's F(2x2, 3x3), in 4/9 of the multiplications. It has no gradient:
    where one is asked for PyTorch's own convolutions run with ``group_norm_relu`` between them, as on a GPU and in
    float64, and the gradient can be taken once, from the reference any number of times. Under autocast it runs in
    autocast's dtype. R may be 0. ``backend`` is "auto" or a name that ``explain`` lists. Source: FGAseg's decoder
    (section III-D). Raises ValueError for mismatched shapes or devices, TypeError for mismatched dtypes, RuntimeError
    for a gradient of the C++ backend.
    """
    _check_shapes(x, guidance, weights, groups)
    args = (x, guidance, *weights)
    grad = differentiated(*args)
    by_choice = grad or x.device.type not in ("cpu", "meta") or x.dtype == torch.float64  # not a fallback
    if backend == "auto" and by_choice:
        return up_stage_reference(*args, groups, eps, norm=group_norm_relu)
    if backend == "reference":
        return up_stage_reference(*args, groups, eps)
    if grad:
        raise RuntimeError(f"up_stage: backend='{backend}' has no gradient; use 'auto', 'reference' or torch.no_grad()")
    (x, *rest), no_more_casts = under_autocast(x, *weights, *([] if guidance is None else [guidance]))
    weights, guidance = UpWeights(*rest[: len(weights)]), None if guidance is None else rest[-1]
    with no_more_casts:
        return dispatch("up_stage", backend, x, guidance, *weights, groups, eps)
