"""`fgaseg.load`: a model by name, folder, file or hub id."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from ..config import ModelConfig
from ..errors import CheckpointError, UsageError
from ..weights.named_models import NamedModel, find_named
from ..weights.saved_config import is_saved_model, read_config
from ..weights.sources import CHECKPOINTS, parse_source
from .fgaseg import FGASeg, fetch_saved
from .published import converted_folder

log = logging.getLogger(__name__)


def load(
    source: str | Path,
    *words: str,
    device: str | torch.device | None = None,
    revision: str | None = None,
    **values: Any,
) -> FGASeg:
    """A model ready to label photos, in evaluation mode, from wherever it is.

        model = fgaseg.load("cat-seg-b16")
        model = fgaseg.load("runs/mine/model", inference="windows")

    source         a name that `fgaseg models` lists; a folder that `save_pretrained` or a training wrote; a checkpoint
                   of the released FGAseg code or of CAT-Seg's family (.pth, .safetensors); a hub id "owner/name", a
                   checkpoint there ("owner/name/file.pth"), or its address. What exists on this disk comes first
    device         None: cuda where there is one, else the CPU
    revision       a branch, tag or commit on the hub; also "name@revision"
    words, values  override the model's configuration, in the form of `ModelConfig.override`

    The first use of a name fetches its weights, checks them, and converts them once; afterwards no network is needed.
    Raises CheckpointError, which says in one line what to do; EncoderError; ConfigError for overrides; UsageError for
    the device.
    """
    chosen = usable_device(device)
    path = Path(os.path.expanduser(source))
    if str(source).strip() and path.exists():
        return _load_path(path, revision, words, values).to(chosen)
    found = parse_source(str(source), revision)
    if found.named is None:
        return FGASeg.from_pretrained(found.repo, *words, revision=found.revision, **values).to(chosen)
    return _load_published(found.named, found.revision, words, values).to(chosen)


def check_source(source: str | Path, *words: str) -> None:
    """Raise the CheckpointError or ConfigError that `load` would raise at once; nothing is fetched, no weights read.

    Overrides are checked for models in folders: what others need is not known before they are fetched.
    """
    path = Path(os.path.expanduser(source))
    if not (str(source).strip() and path.exists()):
        parse_source(str(source), None)
    elif path.is_dir():
        read_config(_model_folder(path) / "config.json", source)[0].override(*words)


def fetch_named(model: NamedModel) -> None:
    """Fetch and convert the weights of a name, if they are not here. Raises as `load`."""
    if model.config:
        FGASeg(ModelConfig(**model.config))  # the encoder fetches its own
    else:
        converted_folder(model)


def local_weights(source: str | Path) -> Path:
    """The file or folder of the weights of anything that `load` takes, fetched if need be. Raises CheckpointError."""
    path = Path(os.path.expanduser(source))
    if str(source).strip() and path.exists():
        return _model_folder(path) if path.is_dir() else path
    found = parse_source(str(source), None)
    if found.named is None:
        return fetch_saved(found.repo, found.revision)
    if found.named.config:
        raise CheckpointError(f"{source}: is an encoder alone, without a head to start from; use encoder.pretrained")
    return converted_folder(found.named, found.revision)


def usable_device(device: str | torch.device | None) -> str | torch.device:
    """The device, or cuda where there is one. Raises UsageError if it cannot be used here."""
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen).item()  # a device without values, meta, has none
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {chosen}: cannot be used here: {str(error).splitlines()[0]}") from None
    return chosen


def _load_path(path: Path, revision: str | None, words: tuple[str, ...], values: dict[str, Any]) -> FGASeg:
    if revision is not None:
        raise CheckpointError(f"{path}: is on this disk, where there are no revisions; leave revision out")
    if find_named(str(path)) is not None:
        log.warning("%s: the one in this folder is used, not the published model of that name", path)
    if path.is_dir():
        return FGASeg.from_pretrained(_model_folder(path), *words, **values)
    if path.name in ("config.json", "model.safetensors") and is_saved_model(path.parent):
        return FGASeg.from_pretrained(path.parent, *words, **values)
    if path.suffix in (".yaml", ".yml", ".json"):
        raise CheckpointError(f"{path}: is no model; give the folder of a saved model, or a file of weights")
    return FGASeg.from_released(path, *words, **values)


def _model_folder(path: Path) -> Path:
    """The folder itself, or `model` in that of a training. An error that names what a folder without one holds."""
    if (path / "config.json").exists():
        return path
    if is_saved_model(path / "model"):
        return path / "model"
    if found := sorted(file for file in path.iterdir() if file.suffix in CHECKPOINTS):
        raise CheckpointError(
            f"{path}: has no config.json: give the folder of a saved model (of a training, <out>/model), or a "
            f"checkpoint's file, such as {found[0]}"
        )
    return path  # from_pretrained says what it needs


def _load_published(model: NamedModel, revision: str | None, words: tuple[str, ...], values: dict[str, Any]) -> FGASeg:
    if not model.config:
        return FGASeg.from_pretrained(converted_folder(model, revision), *words, **values)
    if revision is not None:
        raise CheckpointError(f"{model.name}: its weights come by a tag of open_clip, without revisions; leave it out")
    network = FGASeg(ModelConfig(**model.config).override(*words, **values)).eval()
    network.facts.update(name=model.name, description=model.description, trained_on=model.trained_on,
                         licence=model.licence, licence_id=model.licence_id, base_model=model.base_model)  # fmt: skip
    return network
