"""CUDA graphs: all that a call launches, recorded once and replayed without the Python code that launched it."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

WARM_UP = 2  # calls before the recording: they compile kernels and fill the workspaces of libraries

Function = Callable[..., tuple[Tensor, ...]]


class Recording(NamedTuple):
    """A call that can be repeated: `replay` computes the outputs from what the inputs hold by then."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    replay: Callable[[], Any]


def record(function: Function, inputs: Sequence[Tensor]) -> Recording:
    """Record a call as a CUDA graph, with memory of its own. Anything in it that waits for the device is an error."""
    with torch.cuda.device(inputs[0].device), torch.inference_mode(False), torch.no_grad():
        own = tuple(x.clone() for x in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function(*own)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function(*own)
    return Recording(own, outputs, graph.replay)


class RecordedCalls:
    """A function of tensors, without gradients, whose calls are recorded once for every kind of input, and replayed.

    function  launches the same work for inputs of the same shapes and dtypes
    weights   what it reads besides its inputs. A recording has their addresses: if one moves, all are dropped
    kept      how many recordings are kept, those that were used last; each holds the memory of a call
    record    makes a recording
    """

    def __init__(
        self,
        function: Function,
        weights: Callable[[], Iterable[Tensor]],
        kept: int,
        record: Callable[[Function, Sequence[Tensor]], Recording] = record,
    ):
        self.function, self.weights, self.kept, self.record = function, weights, kept, record
        self._addresses: tuple[int, ...] = ()
        self._recordings: OrderedDict[tuple[Any, ...], Recording] = OrderedDict()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function's outputs, in memory of their own."""
        addresses = tuple(weight.data_ptr() for weight in self.weights())
        if addresses != self._addresses:
            self._recordings.clear()
            self._addresses = addresses
        key = (_settings(inputs[0].device.type), *((x.shape, x.dtype, x.device) for x in inputs))
        if key not in self._recordings:
            while len(self._recordings) >= self.kept:
                self._recordings.popitem(last=False)
            self._recordings[key] = self.record(self.function, inputs)
        self._recordings.move_to_end(key)
        recording = self._recordings[key]
        for own, given in zip(recording.inputs, inputs, strict=True):
            own.copy_(given)
        recording.replay()
        return tuple(x.clone() for x in recording.outputs)

    def __getstate__(self) -> dict[str, Any]:
        """Without the recordings: a copy of a model has weights of its own."""
        return self.__dict__ | {"_addresses": (), "_recordings": OrderedDict()}


def _settings(device: str) -> tuple[Any, ...]:
    """What decides how PyTorch computes, besides the tensors."""
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    backends = torch.backends
    exact = (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled())
    return autocast, *exact
