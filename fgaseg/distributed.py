"""What several training processes must agree on, so that n processes compute what one would.

The convention is a sum: each process divides its loss by a count over the whole batch (`sum_over_processes`), so the
losses of all processes add up to the loss of the batch, and so do their gradients. In one process nothing here acts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import ProcessLostError

T = TypeVar("T")


def world_size() -> int:
    """Number of training processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process among them."""
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo has no kind of its own for it
        raise ProcessLostError(str(error).splitlines()[0]) from error


@contextlib.contextmanager
def noticing_lost_processes() -> Iterator[None]:
    """ProcessLostError for what PyTorch's own collectives raise, which gather sharded weights at any point."""
    try:
        yield
    except RuntimeError as error:
        of_gloo = any(sign in str(error) for sign in ("gloo/", "closed by peer"))  # it has no kind of its own
        if of_gloo or isinstance(error, getattr(dist, "DistError", ())):
            raise ProcessLostError(str(error).splitlines()[0]) from error
        raise


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of `value` (same shape and dtype everywhere) over all processes; a new tensor without gradient.

    Raises ProcessLostError.
    """
    value = value.detach()
    if world_size() > 1:
        value = value.clone(memory_format=torch.contiguous_format)
        with _waiting():
            dist.all_reduce(value)
    return value


def gather_rows(value: Tensor) -> Tensor:
    """`value` [n, ...] of all processes (same shape everywhere), one after the other. Raises ProcessLostError."""
    if world_size() == 1:
        return value
    parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(world_size())]
    with _waiting():
        dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def gather_objects(value: T) -> list[T]:
    """A small value of plain types of every process. Raises ProcessLostError."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _waiting():
        dist.all_gather_object(values, value)
    return values


class _ShareRows(torch.autograd.Function):
    """See `share_rows`. A sum with zeros is exact, and no process needs to know the others' places."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(places)
        return sum_over_processes(rows.new_zeros(total, rows.shape[1]).index_copy(0, places, rows))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return sum_over_processes(grad)[places], None, None


def share_rows(rows: Tensor, places: Tensor, total: int) -> Tensor:
    """[total, C] everywhere, of which this process has computed `rows` [n, C], those at `places` [n] (int64).

    Every place belongs to one process. In the backward pass, which all processes must reach together, each gets the
    gradient of its own rows, summed over the losses of all.
    """
    shared: Tensor = _ShareRows.apply(rows, places, total)
    return shared


class _Sum(torch.autograd.Function):
    """`sum_over_processes` with its gradient: every process's loss depends on every process's input."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        return sum_over_processes(value)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return sum_over_processes(grad)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics are those of the batch over all processes.

    torch's SyncBatchNorm refuses CPU tensors, and its backward assumes gradients that are averaged, not summed.
    Input and output [B, C, H, W]; statistics in float32 at least. B, H and W may differ between processes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        values = x.double() if x.dtype == torch.float64 else x.float()
        count = sum_over_processes(torch.tensor(float(x.numel() // x.shape[1]), dtype=torch.float64, device=x.device))
        count = count.to(values.dtype)
        mean = _Sum.apply(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        y = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)

    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), factor)


def use_global_batch_norm(model: nn.Module) -> None:
    """Turn every BatchNorm2d of the model into a GlobalBatchNorm2d, in place; parameters and buffers stay the objects
    they are, so that an optimizer keeps seeing them."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d


def sum_gradients(parameters: Iterable[nn.Parameter], bucket: int = 1 << 24) -> None:
    """Replace the gradient of each parameter by its sum over all processes.

    Called between backward and clipping, in place of DistributedDataParallel: parameters that get no gradient (the last
    visual block's q and k) need no graph search and cannot make it wait, and the sum is one plain loop to read. The
    price is that communication does not overlap with backward. A parameter without gradient on every process keeps
    none; on some only, it counts as zero there. `bucket` is the number of values sent at a time.
    """
    if world_size() == 1:
        return
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    has_gradient = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
    if parameters:
        has_gradient = sum_over_processes(has_gradient.to(parameters[0].device))
    gradients = []
    for parameter, processes in zip(parameters, has_gradient.tolist(), strict=True):
        if processes:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for group in _buckets(gradients, bucket):
        flat = sum_over_processes(torch.cat([gradient.flatten() for gradient in group]))
        for gradient, values in zip(group, flat.split([gradient.numel() for gradient in group]), strict=True):
            gradient.copy_(values.view(gradient.shape))


def _buckets(tensors: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype with at most `size` values together, or one larger tensor alone."""
    group: list[Tensor] = []
    for tensor in tensors:
        if group and (tensor.dtype != group[0].dtype or sum(t.numel() for t in group) + tensor.numel() > size):
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group
