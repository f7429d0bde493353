"""Recording our own model: forward hooks on every module whose input or output is a recorded stage."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...model import FGASeg

Take = Callable[[Any, Any], Tensor]  # (inputs, output) of a module → what is kept

# Of tensors per class: the last of the tape's levels that can have been reached when they are computed.
LEVELS = (
    (r"corr_local|embed_.*|fuse|text_guidance|mask_aux0", 0),
    (r"enter\d+|layer.*|fuse1|mask_aux1", 1),
    (r"local_up|stage1|fuse2|mask_aux2", 2),
    (r"stage2|head", 3),
)
# Modules of the head whose outputs are kept under their own names.
HEAD_MODULES = (
    "embed_global", "embed_local", "fuse", "image_guidance", "text_guidance", "early_up", "late_up", "early_guidance",
    "late_guidance",
)  # fmt: skip
DECODER_MODULES = ("fuse1", "fuse2", "local_up", "stage1", "stage2", "head")


class Tape:
    """Inputs and outputs of modules during a pass, by name; the chunks of a pass are concatenated.

    levels  class indices [B, R] of the rows that are computed, in the recorded order: all or those under the cap, then
            after each pruning. Our rows ascend; `rows` puts them into the recorded order.
    """

    def __init__(self, levels: Sequence[Tensor]):
        self.levels = levels
        self.parts: dict[str, list[Tensor]] = defaultdict(list)
        self.handles: list[Any] = []

    def watch(self, module: torch.nn.Module | None, name: str, take: Take) -> None:
        """Keep take(inputs, output) of every call of `module` under `name`; None is a module that the model lacks."""
        if module is not None:
            hook = module.register_forward_hook(
                lambda _, inputs, output: self.parts[name].append(take(inputs, output).detach().clone())
            )
            self.handles.append(hook)

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self.handles:
            handle.remove()

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.parts:
            raise KeyError(name)
        return torch.cat(self.parts[name])

    @property
    def batch(self) -> int:
        return len(self["pixels"])

    def rows(self, name: str) -> Tensor:
        """A tensor per class [R, ...], in the recorded order.

        A module that is called again for each stage that needs its output is on the tape several times. Its first
        calls cover all rows, and only these are read.
        """
        level = next(level for pattern, level in LEVELS if re.fullmatch(pattern, name))
        classes = self.levels[min(level, len(self.levels) - 1)]
        positions = classes.argsort(dim=1).argsort(dim=1) + torch.arange(len(classes))[:, None] * classes.shape[1]
        return self[name][positions.flatten()]

    def maps(self, name: str) -> Tensor:
        """Rows [R, H, W, D] as [R, D, H, W]."""
        return self.rows(name).permute(0, 3, 1, 2)

    def volume(self, name: str) -> Tensor:
        """Rows [R, H, W, D] as [B, D, T, H, W]."""
        return self.rows(name).unflatten(0, (self.batch, -1)).permute(0, 4, 1, 2, 3)


@contextlib.contextmanager
def taped(tape: Tape, model: FGASeg) -> Iterator[None]:
    """What the model computes inside the block is kept on the tape."""
    _watch_encoders(tape, model)
    _watch_head(tape, model.head)
    try:
        yield
    finally:
        tape.close()


def _output(_: Any, output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _input(inputs: Any, _: Any) -> Tensor:
    return inputs[0]


def _watch_encoders(tape: Tape, model: FGASeg) -> None:
    tape.watch(model, "clip_in", _input)
    for i in model.encoder.guidance_blocks or ():  # we do not call a block as a module, but its successor's norm
        tape.watch(model.clip.visual.transformer.resblocks[i + 1].ln_1, f"block{i}", _input)


def _watch_head(tape: Tape, head: Any) -> None:
    decoder = head.decoder
    tape.watch(head, "pixels", lambda inputs, _: inputs[0].embedding)
    tape.watch(head, "corr_global", lambda _, output: output.gcs)
    tape.watch(head, "logits", lambda _, output: output.logits)
    tape.watch(head.p2t, "p2t_out", _output)
    for i, layer in enumerate(head.p2t.layers):
        tape.watch(layer.attention, f"p2t_attn{i}", _output)
    if head.t2p is not None:
        tape.watch(head.t2p, "align_map", _output)
        tape.watch(head.t2p.last, "proj_vis", _output)
    tape.watch(head.lcs, "corr_local", lambda _, output: output.flatten(0, 1))
    for name in HEAD_MODULES:
        tape.watch(getattr(head, name), name, _output)
    for i, layer in enumerate(head.layers):
        tape.watch(layer.block1, f"enter{i}", _input)
        tape.watch(layer.block1, f"layer{i}_swin_block1", _output)
        tape.watch(layer.block2, f"layer{i}_swin", _output)
    tape.watch(decoder.fuse1, f"enter{len(head.layers)}", _input)
    for name in DECODER_MODULES:
        tape.watch(getattr(decoder, name), name, _output)
    for i, auxiliary in enumerate(head.aux_heads):
        tape.watch(auxiliary, f"mask_aux{i}", _output)
