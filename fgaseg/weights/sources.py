"""What a user may write to name a model that is not on this disk: a known name, a hub id, a file there, an address."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

from ..errors import CheckpointError
from .named_models import NamedModel, find_named, models_of, name_hint, refuse_known

CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
SAVED = ("config.json", "model.safetensors", "README.md")  # what save_pretrained writes
KINDS = {"models": "model", "spaces": "space", "datasets": "dataset"}
HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")


@dataclass(frozen=True)
class HubSource:
    """A model on the hub: a published checkpoint (`named`), or else a repository with save_pretrained's files."""

    repo: str
    revision: str | None = None
    named: NamedModel | None = None


def parse_source(source: str, revision: str | None = None) -> HubSource:
    """What a source means that is no existing path. Nothing is fetched.

    name, name@revision               a name that `fgaseg models` lists
    owner/name, owner/name@revision   a repository of the hub
    owner/name/file.pth               a checkpoint in one; spaces/owner/name/file.pth in a Space
    https://huggingface.co/...        any of these, as the browser shows it

    Raises CheckpointError, which suggests what may have been meant.
    """
    text = source.strip()
    if "://" in text or text.startswith(HUB_HOSTS):
        parts, inside = _parts_of_address(text)
    else:
        text, at, inside = text.partition("@")
        if at and not inside:
            raise CheckpointError(f"{source!r}: a branch, tag or commit is missing after the @")
        if (named := find_named(text)) is not None:
            return HubSource(named.repo, _one_revision(source, inside, revision), named)
        check_no_path(source, text)
        parts = text.split("/")
    revision = _one_revision(source, inside, revision)
    kind = KINDS[parts.pop(0)] if parts[0] in KINDS and len(parts) > 2 else "model"
    if kind == "dataset":
        raise CheckpointError(f"{source!r} is a data set, not a model")
    if len(parts) < 2:
        raise CheckpointError(f"{source!r}: no model has this name, and nothing here does; {name_hint(text)}")
    repo, file = "/".join(parts[:2]), "/".join(parts[2:])
    refuse_known(repo)
    return _published(source, repo, kind, "" if file in SAVED else file, revision)


def _published(source: str, repo: str, kind: str, file: str, revision: str | None) -> HubSource:
    """The checkpoint that a repository and a file in it (or none) mean."""
    known = models_of(repo)
    if file and not file.endswith(CHECKPOINTS):
        raise CheckpointError(f"{source!r}: {file} is no checkpoint ({', '.join(CHECKPOINTS)})")
    if len(fitting := [model for model in known if model.file == file]) == 1 or (len(known) == 1 and not file):
        named = (fitting or known)[0]
        return HubSource(named.repo, revision, named)
    if known and not file:
        raise CheckpointError(f"{source!r} holds several models; give {' or '.join(model.name for model in known)}")
    if known and not known[0].file:
        return HubSource(known[0].repo, revision, replace(known[0], file=file))
    kind = known[0].repo_type if known else kind
    if file or kind == "space":
        name = f"{'' if kind == 'model' else 'spaces/'}{repo}{file and '/'}{file}"
        return HubSource(repo, revision, NamedModel(name, "", repo, kind, file, verified="nothing"))
    return HubSource(repo, revision)


def _parts_of_address(text: str) -> tuple[list[str], str]:
    """An address of the hub as [type/] owner / name [/ file], and the revision in it."""
    address = urlsplit(text if "://" in text else f"https://{text}")
    hosts = (*HUB_HOSTS, urlsplit(constants.ENDPOINT).netloc)
    if address.scheme == "hf":
        parts = [address.netloc, *address.path.split("/")]
    elif address.netloc in hosts:
        parts = address.path.split("/")
    else:
        raise CheckpointError(f"{text}: not an address of the Hugging Face Hub; fetch the file and give its path")
    parts = [unquote(part) for part in parts if part]
    start = 3 if parts and parts[0] in KINDS else 2
    if len(parts) > start + 1 and parts[start] in ("blob", "resolve", "tree", "raw", "commit"):
        return parts[:start] + parts[start + 2 :], parts[start + 1]
    return parts or [""], ""


def _one_revision(source: str, inside: str, given: str | None) -> str | None:
    if inside and given and inside != given:
        raise CheckpointError(f"{source!r} names the revision {inside}, and revision={given!r} another; give one")
    return inside or given or None


def check_no_path(source: str, text: str) -> None:
    """Raise CheckpointError for what must have been meant as a path, which does not exist."""
    parts = text.split("/")
    rest = parts[1:] if parts[0] in KINDS else parts
    is_file = bool(rest) and (rest[-1].endswith(CHECKPOINTS) or rest[-1] in SAVED)
    like_a_path = text.startswith(("/", "~", ".")) or "\\" in text or (len(parts) > 1 and Path(parts[0]).is_dir())
    if like_a_path or is_file != (len(rest) > 2):
        folder = Path(os.path.expanduser(text)).parent
        beside = sorted(path.name for path in folder.iterdir())[:5] if folder.is_dir() else []
        there = f"; {folder} holds {', '.join(beside)}" if beside else ""
        raise CheckpointError(f"{source}: no such file or folder{there}")
