"""Reading the recordings of the released code, and building the model and inputs that they were made with."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data import BENCHMARK_SETS
from ...errors import CheckpointError
from ...model import FGASeg

PHOTO = 384  # height and width of the recorded input
VOCABULARIES = {"voc20": "pas20", "ade847": "a847", "coco": "coco-stuff"}  # in file names → in BENCHMARK_SETS
DROPPED = -100.0  # what the released code fills in for classes that its cap leaves out


class Recording:
    """One .npz file. Of each tensor NAME it holds

    NAME          the flattened tensor, sampled with step NAME__stride
    NAME__shape   its full shape
    NAME__stats   mean, standard deviation, minimum, maximum and norm

    and some whole arrays without a stride, such as the classes that survived pruning. NAME#2 is the second call.
    """

    def __init__(self, path: Path):
        self.path = path
        self.arrays = np.load(path)
        self.names = [name for name in self.arrays.files if "__" not in name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def shape(self, name: str) -> list[int]:
        """The full shape of a sampled tensor."""
        return [int(n) for n in self.arrays[f"{name}__shape"]]

    def sampled(self, name: str) -> bool:
        """Whether `name` is a sampled tensor, not a whole array."""
        return f"{name}__stride" in self.arrays

    def error(self, name: str, got: Tensor, skip: int = 0) -> float:
        """Largest difference from a tensor of the recorded shape, as a share of the recording's largest value.

        skip  number of leading elements, flattened, to leave out
        Raises ValueError if the shapes differ.
        """
        if list(got.shape) != self.shape(name):
            raise ValueError(f"{name}: ours is {list(got.shape)}, recorded is {self.shape(name)}")
        stride = int(self.arrays[f"{name}__stride"])
        ours = got.detach().cpu().flatten()[::stride].double()
        theirs = torch.from_numpy(self.arrays[name]).double()
        _, _, low, high, _ = self.arrays[f"{name}__stats"]
        largest = max(abs(low), abs(high), np.finfo(np.float32).tiny)
        if low == DROPPED:  # the fill value was not computed
            largest = theirs[theirs != low].abs().max()
        return float((ours - theirs).abs()[-(-skip // stride) :].max() / largest)

    def levels(self, batch: int, classes: int) -> list[Tensor]:
        """Indices [B, R] of the classes that are computed, in the recorded order: at first, then after each pruning."""
        rows = torch.arange(classes).expand(batch, -1)
        if "padlen_classes" in self:
            rows = torch.from_numpy(self["padlen_classes"]).reshape(batch, -1)
        levels = [rows]
        for call in sorted((n for n in self.names if n.startswith("valid_idx")), key=_call_number):
            levels.append(levels[-1][:, torch.from_numpy(self[call]).flatten()])
        return levels


def _call_number(name: str) -> int:
    """valid_idx_bool → 1, valid_idx#2_bool → 2."""
    return int(name[10]) if name[9] == "#" else 1


@dataclass(frozen=True)
class RecordedCase:
    """What the name of a recording's file says."""

    kind: str  # "common" (image side only), "infer", "sliding" or "train"
    weights: tuple[str, str]  # state_dict_keys_<first>.txt, filled by rule <second>
    vocabulary: str  # a key of VOCABULARIES
    top_k: int | None  # None: as in the released preset

    @classmethod
    def of(cls, path: Path) -> RecordedCase:
        """Parse "infer_L_fast-cat-voc20-ruleB-top1.npz" and the like. Raises CheckpointError."""
        if path.stem.startswith("common_image_side"):
            return cls("common", ("no_fast_cat", path.stem[-1]), "voc20", None)
        kind, _, rest = path.stem.partition("_")
        if kind not in ("infer", "sliding", "train") or rest.count("-") < 1:
            raise CheckpointError(f"{path}: a recording is named like infer_no_fast-cat-voc20-ruleB.npz")
        mode, fusion, *others = rest.split("-")
        rule, top_k, vocabulary = "A", None, "coco"
        for word in others:
            if found := re.fullmatch(r"(?:rule)?([AB])", word):
                rule = found[1]
            elif found := re.fullmatch(r"top(\d+)", word):
                top_k = int(found[1])
            else:
                vocabulary = word
        return cls(kind, (f"{mode}_{fusion}", rule), vocabulary, top_k)


class Recordings:
    """A folder of recordings: *.npz, and fill.py and state_dict_keys_*.txt, which give the weights and the input.

    dtype  of the models that are built
    Raises CheckpointError if there are none.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32):
        self.folder, self.dtype = folder, dtype
        if not (folder / "fill.py").is_file():
            raise CheckpointError(
                f"{folder}: no recordings of the released code here (fill.py, *.npz, state_dict_keys_*.txt). They are "
                "not part of fgaseg: give the folder that holds them with --root"
            )
        specification = importlib.util.spec_from_file_location("fgaseg_recordings_fill", folder / "fill.py")
        assert specification is not None and specification.loader is not None
        self.fill: ModuleType = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(self.fill)
        self.weights = lru_cache(maxsize=1)(self._weights)  # the latest alone: 0.6 GB, or 1.7 GB for ViT-L

    def paths(self) -> list[Path]:
        """The recordings, those with the same weights together."""
        return sorted(self.folder.glob("*.npz"), key=lambda path: (RecordedCase.of(path).weights, path.name))

    def names(self, case: RecordedCase) -> list[str]:
        """The class names of a case."""
        if case.vocabulary not in VOCABULARIES:
            raise CheckpointError(
                f"recorded vocabulary {case.vocabulary!r}: unknown; there are {', '.join(VOCABULARIES)}"
            )
        return list(BENCHMARK_SETS[VOCABULARIES[case.vocabulary]].names)

    def _weights(self, keys: str, rule: str) -> dict[str, Tensor]:
        filled = self.fill.state_dict(self.folder / f"state_dict_keys_{keys}.txt", rule)
        return {key: torch.from_numpy(value) for key, value in filled.items()}

    def model(self, case: RecordedCase) -> FGASeg:
        """Our model with the weights of a case, in evaluation mode."""
        switches = {} if case.top_k is None else {"top_k": case.top_k}
        return FGASeg.from_released(self.weights(*case.weights), **switches).to(self.dtype)

    def pixels(self, model: FGASeg, height: int = PHOTO, width: int = PHOTO) -> Tensor:
        """The recorded input [1, 3, S, S], normalised and squashed to the model's resolution."""
        photo = torch.from_numpy(self.fill.image(height, width)).to(self.dtype)
        photo = (photo / 255 - model.mean[:, None, None]) / model.std[:, None, None]
        side = model.config.image_size
        if (height, width) == (side, side):
            return photo[None]
        return F.interpolate(photo[None], size=(side, side), mode="bilinear", align_corners=False)
