"""How far a run is, and its checkpoint <train.out>/checkpoint."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..config import Config
from ..distributed import gather_objects, rank
from ..errors import CheckpointError
from ..model import FGASeg
from ..vocabulary import as_text
from ..weights import load_training, save_training, set_damaged_aside
from .changes import differences
from .optimizer import Optimizer
from .processes import write_on_main
from .sharding import whole_state

log = logging.getLogger(__name__)


@dataclass
class Means:
    """Running means of scalars."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # a step of fp16 may have no gradient_norm

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def values(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


@dataclass
class TrainingState:
    """What a run has done so far, besides the weights and the optimizer's state."""

    step: int = 0
    """Finished steps."""
    seconds: float = 0.0
    """Time spent on training, evaluation and saving, over all interrupted parts of the run."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """{"step", "<set>": {"miou_gt", ...}} of every evaluation."""
    losses: dict[str, float] = field(default_factory=dict)
    """Losses and gradient norm, means over the steps of the last line of the log."""
    means: Means = field(default_factory=Means)
    """The same since that line."""
    skipped: dict[int, str] = field(default_factory=dict)
    """Unreadable photos that others replaced: index in the training set, and why."""
    changes: list[str] = field(default_factory=list)
    """What was changed where the run was resumed with more steps or another learning rate."""


class StateStore:
    """Writes the checkpoints of one run, finds the last one, and refuses that of another run.

    saved         the step of the checkpoint of this run on disk, if there is one
    announcement  what the resumed run does otherwise than the one before, for the user; "" if nothing
    """

    def __init__(self, config: Config, train_set: Any, device: torch.device):
        self.config, self.train_set, self.device = config, train_set, device
        self.folder = config.train.out / "checkpoint"
        self.saved: int | None = None
        self.announcement = ""

    def describe(self) -> str:
        """Which checkpoint there is, for messages."""
        if self.saved is None:
            return "nothing was saved yet"
        return f"the checkpoint of step {self.saved} in {self.folder} is intact"

    def save(self, model: FGASeg, optimizer: Optimizer, state: TrainingState) -> None:
        """Write a checkpoint; the one before is kept as <folder>.old. Raises CheckpointError on every process."""
        weights = whole_state(model.state_dict())
        content = {
            "step": state.step,
            **optimizer.state(),
            "config": self.config.to_json(),
            "samples": len(self.train_set),
            "names": list(map(as_text, self.train_set.names)),
            "history": state.history,
            "losses": state.losses,
            "means": asdict(state.means),
            "seconds": state.seconds,
            "skipped": state.skipped,
            "changes": state.changes,
        }
        if label_map := self._label_map():
            content["label_map"] = label_map
        keep_previous = self.saved is not None  # else it belongs to a run that this one replaces
        write_on_main(lambda: save_training(self.folder, weights, content, keep_previous), self.device)
        self.saved = state.step

    def load(self, model: FGASeg) -> dict[str, Any] | None:
        """Put the weights of the last undamaged checkpoint into the model; the rest is returned, for `restore`.

        None if there is no checkpoint. Raises CheckpointError if all are damaged, or belong to another configuration.
        """

        def repair() -> None:
            if note := set_damaged_aside(self.folder):
                log.warning("%s", note)

        write_on_main(repair, self.device)
        content = load_training(self.folder, model)
        if content is not None:
            self._refuse_other_run(content)
        return content

    def restore(self, content: dict[str, Any], optimizer: Optimizer) -> TrainingState:
        """The state of the run that `load` found, and the optimizer as it was."""
        try:
            optimizer.load_state(content)
        except ValueError as error:
            raise CheckpointError(
                f"{self.folder}: {error}: it was written by another version; start over with --restart"
            ) from None
        self.saved = content["step"]
        kept = {name: content[name] for name in ("step", "seconds", "history", "losses", "skipped")}
        changes = list(content.get("changes", []))  # absent in checkpoints of earlier versions
        if self.announcement:
            changes.append(f"after step {content['step']}: {self.announcement}")
        return TrainingState(**kept, changes=changes, means=Means(**content["means"]))

    def check_shared(self, step: int) -> None:
        """Raise CheckpointError where the processes found different checkpoints, or only some of them found one."""
        found = set(gather_objects(step))
        if len(found) > 1:
            raise CheckpointError(
                f"{self.folder}: the processes found checkpoints of steps {', '.join(map(str, sorted(found)))}; give a "
                "train.out on a disk that all machines share"
            )

    def _label_map(self) -> str | None:
        """What tells label maps apart whose classes are the same, wherever their files are."""
        space = getattr(self.train_set, "label_space", None)
        return None if space is None else space.fingerprint()

    def _refuse_other_run(self, content: dict[str, Any]) -> None:
        changes, self.announcement = differences(json.loads(content["config"]), self.config, content["step"])
        if content["names"] != list(map(as_text, self.train_set.names)) or content["samples"] != len(self.train_set):
            changes.append(
                f"the data set had {content['samples']} items of {len(content['names'])} classes, now "
                f"{len(self.train_set)} of {len(self.train_set.names)}, or other names"
            )
        if content.get("label_map") != self._label_map():
            changes.append("data.label_map or data.ignore gave the values in label images other meanings")
        if changes:
            raise CheckpointError(
                f"{self.folder}: belongs to another configuration ({'; '.join(changes)}). Give another train.out, go "
                "back to that configuration (train.steps and train.lr may change), or start over with --restart (which "
                "replaces it)"
            )
        if self.announcement and rank() == 0:
            log.warning("%s, step %d: %s", self.folder, content["step"], self.announcement)
