"""Collectives, and the parts of a model that need them, so that n processes compute what one would.

Losses and gradients are summed over ranks, not averaged: each process divides its loss by a count over the whole batch
(`sum_over_processes`), so the losses of all ranks add up to the loss of the batch, and so do their gradients. In a
single process every function here returns its input.
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
    """The number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The index of this process, 0 to `world_size()` - 1."""
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    """Around a collective call alone, where every RuntimeError means that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(str(error).splitlines()[0]) from error


@contextlib.contextmanager
def detect_lost_processes() -> Iterator[None]:
    """Raise ProcessLostError when a collective of PyTorch's own fails in this block, such as FSDP's; other errors pass.

    FSDP gathers sharded weights in the middle of forward and backward passes, whose own errors are RuntimeErrors too.
    """
    try:
        yield
    except RuntimeError as error:
        from_gloo = any(sign in str(error) for sign in ("gloo/", "closed by peer"))  # gloo raises a bare RuntimeError
        if from_gloo or isinstance(error, getattr(dist, "DistError", ())):
            raise ProcessLostError(str(error).splitlines()[0]) from error
        raise


def sum_over_processes(value: Tensor) -> Tensor:
    """All-reduce: the sum of `value` (the same shape and dtype on every rank), a new tensor without gradient.

    Raises ProcessLostError.
    """
    value = value.detach()
    if world_size() > 1:
        value = value.clone(memory_format=torch.contiguous_format)
        with _collective():
            dist.all_reduce(value)
    return value


def any_process(flag: bool, device: torch.device) -> bool:
    """Logical OR across ranks. `device` must suit the process group. Raises ProcessLostError."""
    return bool(sum_over_processes(torch.tensor(int(flag), device=device)))


def gather_rows(value: Tensor) -> Tensor:
    """All-gather: `value` [n, ...] (the same shape on every rank) of all ranks, concatenated to [world size * n, ...].

    Raises ProcessLostError.
    """
    if world_size() == 1:
        return value
    parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(world_size())]
    with _collective():
        dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def gather_objects(value: T) -> list[T]:
    """All-gather of a small picklable value: those of all ranks, in their order. Raises ProcessLostError."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _collective():
        dist.all_gather_object(values, value)
    return values


class _ShareRows(torch.autograd.Function):
    """See `share_rows`. Adding zeros is exact, and no process needs to know the others' indices."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, indices: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(indices)
        return sum_over_processes(rows.new_zeros(total, rows.shape[1]).index_copy(0, indices, rows))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        return sum_over_processes(grad)[indices], None, None


def share_rows(rows: Tensor, indices: Tensor, total: int) -> Tensor:
    """Assemble a matrix [total, C] whose rows were computed on different ranks; every rank gets all of it.

    rows     [n, C], what this process computed; n may differ between ranks
    indices  [n] int64, where they belong; over all ranks each index below `total` occurs once

    Differentiable: each rank gets the gradient of its own rows, summed over the losses of all ranks, which must run
    the backward pass together. Raises ProcessLostError.
    """
    shared: Tensor = _ShareRows.apply(rows, indices, total)
    return shared


class _Sum(torch.autograd.Function):
    """`sum_over_processes` with its gradient: the loss of every rank depends on the input of every rank."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        return sum_over_processes(value)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return sum_over_processes(grad)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with the statistics of the whole batch, over all ranks.

    torch's SyncBatchNorm refuses CPU tensors, and its backward pass assumes gradients that are averaged, not summed.
    Input and output [B, C, H, W]; statistics in float32 at least. B, H and W may differ between ranks.
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
    """Turn every BatchNorm2d of the model into a GlobalBatchNorm2d, in place.

    Parameters and buffers remain the same objects, so an optimizer that was given them stays valid.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d


def sum_gradients(parameters: Iterable[nn.Parameter], bucket: int = 1 << 24) -> None:
    """Replace the gradient of each parameter by its sum over all ranks.

    Called between the backward pass and clipping, in place of DistributedDataParallel: parameters without a gradient
    (the last visual block's q and k) need no search of the graph and cannot stall it. The price is that communication
    does not overlap with the backward pass. A parameter that has no gradient on any rank keeps none; on some ranks
    only, theirs counts as zero. `bucket` is the number of values sent at a time. Raises ProcessLostError.
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
    """Groups of consecutive tensors of one dtype with at most `size` values in all; a larger tensor is alone."""
    group: list[Tensor] = []
    for tensor in tensors:
        if group and (tensor.dtype != group[0].dtype or sum(t.numel() for t in group) + tensor.numel() > size):
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group
