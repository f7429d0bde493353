"""FSDP for the encoders: each process keeps a shard of the towers' blocks, of their gradients and of their Adam state.

The units are the attention and the MLP of every block of both towers (torch's fully_shard): a process holds a unit
whole only while it computes with it (autocast's bf16 copies last until the backward pass, as they do without FSDP).
Norms, embeddings and the head are replicated. Gradients are sums over the processes, as in `fgaseg.distributed`; what
is saved is whole, so that a run resumes with or without FSDP.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import detect_lost_processes, rank, sum_over_processes, world_size
from ..model import FGASeg


def shard_encoders(model: FGASeg) -> None:
    """Shard the blocks, in place. From here on all processes must call `forward`, `encode` and `embed_prompts` equally
    often.

    The parameters of the blocks become DTensors: load weights before, and make the optimizer afterwards.
    """
    # not at the top: some builds of PyTorch have no torch.distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # about Linear's 3-D outputs, which nothing here changes in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(model.mean.device.type, (world_size(),))
    for blocks in model.encoder.towers():
        parts = [part for block in blocks for part in (block.attn, block.mlp)]
        units: list[Any] = [fully_shard(part, mesh=mesh) for part in parts]
        for before, unit in zip([units[0], *units], units, strict=False):
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)  # Gloo has no other
            # The default is the unit that ran before, which after an evaluation differs between processes.
            unit.set_modules_to_backward_prefetch([before])
        for block in blocks:
            for method in ("values", "correlated"):
                register_fsdp_forward_method(block.attn, method)
    # A root without parameters of its own: it starts the units and, unlike them, is not gathered for good.
    fully_shard(model, mesh=mesh, ignored_params=set(unsharded(model.parameters())))
    for method in ("encode", "embed_prompts"):
        register_fsdp_forward_method(model, method)


@contextlib.contextmanager
def whole_encoders(model: FGASeg) -> Iterator[None]:
    """Within the context every process holds all weights, so that it may run the model as often as it likes, without
    gradients."""
    units: list[Any] = [module for module in model.modules() if hasattr(module, "unshard") and module is not model]
    with detect_lost_processes():
        for unit in units:
            unit.set_reshard_after_forward(False)
            unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True)
            unit.reshard()


def _is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor


def unsharded(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The replicated parameters. FSDP sums the gradients of the others in the backward pass."""
    return [parameter for parameter in parameters if not _is_sharded(parameter)]


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict whose sharded tensors are gathered on the CPU of rank 0; they are None on the other ranks."""
    return {key: _whole(value) if _is_sharded(value) else value for key, value in state.items()}


def _whole(value: Any) -> Tensor | None:
    with detect_lost_processes():
        tensor: Tensor = value.full_tensor()
    return tensor.cpu() if rank() == 0 else None


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The optimizer's state by the name of the parameter, gathered as `whole_state` does."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: whole_state(state) for parameter, state in optimizer.state.items()}


def load_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, dict[str, Tensor]]
) -> None:
    """Give the optimizer what `optimizer_state` returned, however it is sharded now.

    Raises ValueError for the state of another model.
    """
    parameters = dict(model.named_parameters())
    if unknown := [name for name in saved if name not in parameters]:
        raise ValueError(f"optimizer state of {unknown[0]!r}, which is no parameter of this model")
    for name, parameter in parameters.items():
        if name in saved:
            optimizer.state[parameter] = {key: _like(parameter, value) for key, value in saved[name].items()}


def _like(parameter: Any, value: Tensor) -> Tensor:
    """A saved tensor on the parameter's device, sharded as the parameter is."""
    value = value.to(parameter.device)
    if _is_sharded(parameter) and value.ndim:  # not Adam's step count
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def split_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Optimizer groups of sharded parameters only or replicated ones only: fused Adam takes no mixture."""
    kinds = [(group, [p for p in group["params"] if _is_sharded(p) is sharded])
             for group in groups for sharded in (False, True)]  # fmt: skip
    return [group | {"params": parameters} for group, parameters in kinds if parameters]


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """torch's clip_grad_norm_ over the whole model; returns the norm before clipping, the same on every process."""
    gradients: list[Any] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    shards = [gradient.to_local() for gradient in gradients if _is_sharded(gradient)]
    replicated = [gradient for gradient in gradients if not _is_sharded(gradient)]
    norm = nn.utils.get_total_norm(replicated)
    if shards:
        norm = (norm.square() + sum_over_processes(nn.utils.get_total_norm(shards).square())).sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([*shards, *replicated], scale)
    return norm
