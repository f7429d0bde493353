"""What a piece of work would launch on a GPU, counted without one: fake tensors say that they are on "cuda"."""

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fgaseg import kernels
from fgaseg.kernels import _dispatch
from fgaseg.kernels._triton import recorded
from fgaseg.model.precision import KeptInFloat32

# neither views nor launches
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
# the host waits for a value, or for a size that depends on values
WAIT = {"_local_scalar_dense", "nonzero", "unique_dim", "unique_consecutive", "_unique2", "masked_select", "bincount",
        "equal", "is_nonzero"}  # fmt: skip


# which kernel it is depends on the GPU; each is one launch, and writes the heads of a token side by side
ATTENTION = "scaled_dot_product_attention"


class Launches(TorchDispatchMode):
    """Counts the operations inside the block that launch kernels, and those for which the host waits.

    An operation of PyTorch counts once, whatever its library launches for it; an op of ours as often as it launches.

    by_name  launches, by operation or Triton kernel
    waits    operations that read the device, or copy between host and device
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.waits: list[str] = []

    @property
    def total(self) -> int:
        return self.by_name.total()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, function._opname
        if function.namespace == "fgaseg":
            return self._ours(name, args)
        if function.namespace != "aten":
            return function(*args, **kwargs)
        if name == ATTENTION:
            self.by_name[name] += 1
            batch, heads, length, _ = args[0].shape
            return args[2].new_empty(batch, length, heads, args[2].shape[3]).transpose(1, 2)
        if not name.startswith("upsample_") and function.has_kernel_for_dispatch_key(
            DispatchKey.CompositeImplicitAutograd
        ):
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        on_gpu = any(isinstance(x, Tensor) and x.device.type == "cuda" for x in tree_leaves(args))
        by_mask = name == "index" and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if x is not None)
        if on_gpu and (name in WAIT or by_mask):
            self.waits.append(name)
        result = function(*args, **kwargs)
        devices = {x.device.type for x in tree_leaves((args, result)) if isinstance(x, Tensor)}
        if function.is_view or name in FREE or "cuda" not in devices:
            return result
        self.by_name[name] += 1
        if len(devices) > 1 and name in ("_to_copy", "copy_"):
            self.waits.append(f"{name} between {' and '.join(sorted(devices))}")
        return result

    def _ours(self, name: str, args: tuple) -> Any:
        """The launches that the Triton launcher of an op makes, in PyTorch and of its own kernels."""
        results: list[Any] = []
        launcher = triton_launcher(name.removesuffix("_triton"))
        with self:
            launches = recorded(lambda *args: results.append(launcher(*args)), *args)
        self.by_name.update(one.kernel.fn.__name__ for one in launches)
        return results[0]


def triton_launcher(op: str) -> Callable[..., Any]:
    for path in sorted(Path(kernels.__file__).parent.glob("*/triton.py")):
        module = importlib.import_module(f"fgaseg.kernels.{path.parent.name}.triton")
        if getattr(getattr(module, op, None), "__module__", "") == module.__name__:
            return getattr(module, op)
    raise LookupError(f"no Triton launcher of {op}")


def _of_cudnn(x: Tensor, weight: Tensor, backend: Any) -> torch.memory_format:
    """How the result of a convolution lies on a GPU; where there is none, PyTorch would choose a slow form for it."""
    last = torch.channels_last in (suggest_memory_format(x), suggest_memory_format(weight))
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Inside the block new tensors are fake, and `dispatch` takes those on "cuda" to be on a GPU that it can use."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        patch.setattr(_dispatch, "_why_not_this_gpu", lambda device: "")
        patch.setattr(_dispatch, "_asked", {})
        patch.setattr(_dispatch, "_examined", {})
        patch.setattr(torch._C, "_conv_determine_backend_memory_format", _of_cudnn)
        # also where CUDA's kernels were built; those of the model's ops are as many as Triton's
        patch.setitem(_dispatch.unavailable, "cuda", "Triton's launches are counted")
        yield


def on_pretended_gpu(module: nn.Module, dtype: torch.dtype) -> Any:
    """A module that was made under `pretended_gpu`, moved there and converted, as `.to` would do with real tensors."""
    parts = [part for part in module.modules() if isinstance(part, KeptInFloat32)]
    kept = {id(x) for part in parts for x in (*part.parameters(), *part.buffers())}

    def moved(x: Tensor) -> Tensor:
        wanted = dtype if x.is_floating_point() and id(x) not in kept else x.dtype
        return x.detach().to("cuda", wanted)

    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(moved(weight), requires_grad=False)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = moved(value)
    return module
