"""Published checkpoints: fetched, converted once into the hub's assets cache, and from then on read from there."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache

from ..errors import CheckpointError
from ..files import atomic_directory, atomic_write, complete_directory
from ..weights import facts_of, read_released
from ..weights.hub import LIBRARY, Fetched, current_commit, fetch_to, list_files, locked, megabytes, sha256_of
from ..weights.named_models import NamedModel
from ..weights.sources import CHECKPOINTS
from .fgaseg import FGASeg
from .fitting import shapes_of
from .saving import save_model

RECORD = "source.json"  # beside the converted weights: where they are from, and the sums of both

log = logging.getLogger(__name__)


def converted_folder(model: NamedModel, revision: str | None = None) -> Path:
    """The folder of a published checkpoint in the form of `save_pretrained`; fetched and converted if it is not there.

    revision  a branch, tag or commit of its repository; None: main, as it was when it was fetched first

    Afterwards neither network nor conversion is needed, except to ask where a given branch is now. Safe with several
    processes at once, and when killed: the folder is whole or absent. Raises CheckpointError.
    """
    place = cache_place(model, revision)
    if (found := _usable(model, place, revision)) is not None:
        return found
    with locked(place.with_name(f".{place.name}.lock"), f"fetching and converting {model.name}"):
        if (found := _usable(model, place, revision)) is not None:
            return found
        for leftover in place.parent.glob(f".{place.name}.*.tmp"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        workplace = place.with_name(f".{place.name}.fetched")
        model = model if model.file else replace(model, file=_only_checkpoint(model, revision))
        fetched = fetch_to(
            workplace,
            model.repo,
            model.file,
            repo_type=model.repo_type,
            revision=revision,
            sha256="" if revision else model.sha256,
            announce=lambda size: log.warning("%s", _announcement(model, size or model.size)),
        )
        try:
            with atomic_directory(place) as folder:
                _convert(model, fetched, folder)
        except OSError as error:
            raise CheckpointError(
                f"{place}: the converted model could not be written: {error.strerror or error}; make room, or set "
                "HF_HOME to a folder on another disk, and try again"
            ) from error
        shutil.rmtree(workplace, ignore_errors=True)
    return place


def cache_place(model: NamedModel, revision: str | None = None) -> Path:
    """Where the converted model is, once it is: below `huggingface_hub.cached_assets_path(library_name="fgaseg")`."""
    repo = f"{model.repo_type}s--{model.repo}".replace("/", "--")
    file = (model.file or "checkpoint").replace("/", "--")
    return Path(
        constants.HF_ASSETS_CACHE, LIBRARY, repo, file, re.sub(r"\W", "-", revision or constants.DEFAULT_REVISION)
    )


def here(model: NamedModel) -> Path | None:
    """Where the weights of a name are on this disk, if they are."""
    if not model.config:
        return complete_directory(cache_place(model))
    found = (try_to_load_from_cache(model.repo, file, repo_type=model.repo_type) for file in model.files)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def read_record(folder: Path) -> dict[str, Any] | None:
    """What was recorded of a converted model; None if there is none."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _usable(model: NamedModel, place: Path, revision: str | None) -> Path | None:
    """The converted model's folder, if it is whole and still what the revision means."""
    folder = complete_directory(place)
    if folder is None:
        return None
    record = read_record(folder) or {}
    sums = record.get("converted", {})
    if not sums or any(not (folder / name).is_file() or sha256_of(folder / name) != sums[name] for name in sums):
        log.warning("%s: the files are not as they were written; %s is fetched again", folder, model.name)
        return None
    if revision is not None and not re.fullmatch("[0-9a-f]{40}", revision):
        now = current_commit(model.repo, record["file"], repo_type=model.repo_type, revision=revision)
        if now not in (None, record["commit"]):
            return None
    return folder


def _only_checkpoint(model: NamedModel, revision: str | None) -> str:
    names = list_files(model.repo, repo_type=model.repo_type, revision=revision)
    found = [name for name in names if name.endswith(CHECKPOINTS)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(f"{model.source}: has no checkpoint ({', '.join(CHECKPOINTS)})")
    raise CheckpointError(
        f"{model.source}: has several checkpoints; give one, such as {model.source}/{found[0]} (also "
        f"{', '.join(found[1:])})"
    )


def _announcement(model: NamedModel, size: int | None) -> str:
    """What is fetched, how large, from where, and under which licence."""
    how_large = f", {megabytes(size)}" if size else ""
    return (
        f"{model.name}: fetching {model.source}{how_large}, from {constants.ENDPOINT}, once; licence: {model.licence}"
    )


def _convert(model: NamedModel, fetched: Fetched, folder: Path) -> None:
    """Write config.json, model.safetensors, README.md and the record."""
    checkpoint = read_released(fetched.path)
    checkpoint.check_shapes(shapes_of(checkpoint.config))
    network = FGASeg(checkpoint.config)
    checkpoint.load_into(network)
    del checkpoint  # memory
    network.facts = facts_of(model, fetched.commit, fetched.sha256)
    save_model(network, folder, load_from=model.name)
    record = {
        "name": model.name,
        "repo": model.repo,
        "repo_type": model.repo_type,
        "file": model.file,
        "commit": fetched.commit,
        "size": fetched.path.stat().st_size,
        "sha256": fetched.sha256,
        "converted": {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file()},
    }
    text = json.dumps(record, indent=2) + "\n"
    atomic_write(folder / RECORD, lambda file: file.write(text.encode()))
