"""Files of the Hugging Face Hub: fetched into its cache, resumed after a break, checked; each failure is one line."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import filelock
from huggingface_hub import (
    HfApi,
    constants,
    errors,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers

from ..errors import CheckpointError

LIBRARY = "fgaseg"  # in the request headers, and the name of our folder in the assets cache
PAUSES = (1.0, 3.0)  # seconds before asking again, when the hub does not answer or is overloaded
OVERLOADED = (408, 429, 500, 502, 503, 504)  # statuses that another try may cure
LOGIN = "`hf auth login`, or HF_TOKEN"
SHA256 = re.compile("[0-9a-f]{64}")  # the etag of a file in large-file storage; others are of git

log = logging.getLogger(__name__)


class _MissingFile(CheckpointError):
    """Raised when a repository has no such file, or offline, when the cache does not hold it."""


@dataclass(frozen=True)
class _Wanted:
    """A file of a repository (without a name: its list of files)."""

    repo: str
    filename: str
    repo_type: str
    revision: str | None

    def __str__(self) -> str:
        name = f"{self.repo}/{self.filename}" if self.filename else self.repo
        return f"{name}@{self.revision}" if self.revision else name

    @property
    def page(self) -> str:
        """The repository's address."""
        return f"{constants.ENDPOINT}/{constants.REPO_TYPES_URL_PREFIXES.get(self.repo_type, '')}{self.repo}"

    def cached(self, revision: str | None) -> Path | None:
        found = try_to_load_from_cache(self.repo, self.filename, revision=revision, repo_type=self.repo_type)
        return Path(found) if isinstance(found, str) else None


def fetch_file(repo: str, filename: str, *, repo_type: str = "model", revision: str | None = None) -> Path:
    """The path of a repository's file in the hub's cache, fetched if it is not there or has changed.

    repo       "owner/name"
    repo_type  "model", "space" or "dataset"
    revision   a branch, tag or commit; None: main

    Works as huggingface_hub's own download (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE; without a connection the
    cached file is returned), in the same cache. Beyond that, a download that was cut off or killed is resumed by the
    next call, and the SHA-256 that the hub states for large files is compared. Raises CheckpointError, one line that
    says what to do.
    """
    wanted = _Wanted(repo, filename, repo_type, revision)
    with _explained(wanted):
        cached = wanted.cached(revision)
        if cached is not None and (constants.HF_HUB_OFFLINE or re.fullmatch("[0-9a-f]{40}", revision or "")):
            return cached  # a commit does not change
        if constants.HF_HUB_OFFLINE:
            raise errors.LocalEntryNotFoundError("offline")
        try:
            metadata = _metadata(wanted, PAUSES if cached is None else ())
        except errors.EntryNotFoundError:
            raise
        except Exception as error:
            if cached is None or isinstance(error, errors.RevisionNotFoundError):
                raise
            log.info("%s: the cached file is used; the hub cannot be asked (%s)", wanted, _first_line(error))
            return cached
        if cached is not None and cached == wanted.cached(metadata.commit_hash):
            return cached
        _complete_blob(wanted, metadata)
        # what is left to do is to name the blob in the cache, which is huggingface_hub's own affair
        return Path(hf_hub_download(repo, filename, repo_type=repo_type, revision=revision, library_name=LIBRARY))


@dataclass(frozen=True)
class Fetched:
    """A file that `fetch_to` fetched, or found in the hub's cache."""

    path: Path
    commit: str
    sha256: str


def fetch_to(
    folder: Path,
    repo: str,
    filename: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    sha256: str = "",
    announce: Callable[[int | None], object] = lambda size: None,
) -> Fetched:
    """`fetch_file` into a folder of ours, for a file that is not needed for long; one in the hub's cache is used.

    folder    only one process may fetch to it at a time
    sha256    what the file's SHA-256 must begin with; another file is refused, before it is fetched where the hub
              states its sum, and removed
    announce  called with the size in bytes, if it is known, before anything is fetched
    """
    wanted = _Wanted(repo, filename, repo_type, revision)
    with _explained(wanted):
        if (path := wanted.cached(revision)) is not None:
            commit, found = path.parts[path.parts.index("snapshots") + 1], sha256_of(path)
            if not found.startswith(sha256):
                path.resolve().unlink()
            _check_known(wanted, found, sha256)
            return Fetched(path, commit, found)
        if constants.HF_HUB_OFFLINE:
            raise errors.LocalEntryNotFoundError("offline")
        metadata = _metadata(wanted, PAUSES)
        if SHA256.fullmatch(metadata.etag):
            _check_known(wanted, metadata.etag, sha256)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / Path(filename).name
        if path.exists() and sha256_of(path) != metadata.etag:
            path.unlink()  # of another commit
        if not path.exists():
            announce(metadata.size)
            tag = re.sub(r"\W", "", metadata.etag)[:64]  # a file's name is not as long as a server likes
            _download(wanted, metadata, folder / f"{path.name}.{tag}.incomplete", path)
        found = sha256_of(path)
        if not found.startswith(sha256):
            path.unlink()
        _check_known(wanted, found, sha256)
        return Fetched(path, metadata.commit_hash, found)


def _check_known(wanted: _Wanted, found: str, known: str) -> None:
    if not found.startswith(known):
        raise CheckpointError(
            f"{wanted}: its SHA-256 begins with {found[:8]}, and that of the file known here with {known[:8]}: it is "
            "refused; try again, and if its authors have changed it, name a commit that you trust (@<commit>)"
        )


def current_commit(repo: str, filename: str, *, repo_type: str = "model", revision: str | None = None) -> str | None:
    """The commit that a revision is at now; None if the hub cannot be asked."""
    wanted = _Wanted(repo, filename, repo_type, revision)
    with contextlib.suppress(Exception):
        if not constants.HF_HUB_OFFLINE:
            return str(_metadata(wanted, ()).commit_hash)
    return None


def fetch_first(repo: str, filenames: Sequence[str], *, repo_type: str = "model", revision: str | None = None) -> Path:
    """`fetch_file` of the first of these files that the repository has."""
    for filename in filenames:
        with contextlib.suppress(_MissingFile):
            return fetch_file(repo, filename, repo_type=repo_type, revision=revision)
    wanted = _Wanted(repo, " or ".join(filenames), repo_type, revision)
    raise _MissingFile(_missing(wanted))


def list_files(repo: str, *, repo_type: str = "model", revision: str | None = None) -> list[str]:
    """The names of a repository's files. Raises CheckpointError, as `fetch_file`; offline it always does."""
    wanted = _Wanted(repo, "", repo_type, revision)
    with _explained(wanted):
        if constants.HF_HUB_OFFLINE:
            raise errors.LocalEntryNotFoundError("offline")
        return HfApi(library_name=LIBRARY).list_repo_files(repo, repo_type=repo_type, revision=revision)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, work: str) -> Iterator[None]:
    """Hold a lock file; while another process holds it, say that its `work` is waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, mode=0o664)  # a cache may be shared by a group of users
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        log.warning("waiting for another process that is %s", work)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _metadata(wanted: _Wanted, pauses: Sequence[float]) -> Any:
    """What the hub says about a file: commit, etag, size. Asks again after each pause while that may help."""
    url = hf_hub_url(wanted.repo, wanted.filename, repo_type=wanted.repo_type, revision=wanted.revision)
    for pause in (*pauses, None):
        try:
            metadata = get_hf_file_metadata(url, library_name=LIBRARY)
            break
        except Exception as error:
            if pause is None or not _may_pass(error):
                raise
            time.sleep(pause)
    if metadata.commit_hash is None or metadata.etag is None:
        raise errors.FileMetadataError(f"{url} does not say its commit")
    return metadata


def _may_pass(error: Exception) -> bool:
    """Whether asking again may help: the hub is overloaded, or the connection broke."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in OVERLOADED
    return _is_transport(error)


def _is_transport(error: Exception) -> bool:
    """An error of the connection. Its class depends on the HTTP library, which huggingface_hub has changed twice."""
    return type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore", "requests", "urllib3")) or (
        isinstance(error, ConnectionError | TimeoutError)
    )


def _complete_blob(wanted: _Wanted, metadata: Any) -> None:
    """Fetch a file into the hub's cache under its etag, going on from what an earlier process left.

    huggingface_hub itself starts from the beginning in every process since version 1. The names are those that it used
    before: <etag>.incomplete beside the blob, and its lock, so that both wait for each other.
    """
    folder = repo_folder_name(repo_id=wanted.repo, repo_type=wanted.repo_type)
    blob = Path(constants.HF_HUB_CACHE, folder, "blobs", metadata.etag)
    if not re.fullmatch(r"[\w.-]+", metadata.etag):
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    with locked(Path(constants.HF_HUB_CACHE, ".locks", folder, f"{metadata.etag}.lock"), f"fetching {wanted}"):
        if not blob.exists():
            log.info("fetching %s%s", wanted, f" ({megabytes(metadata.size)})" if metadata.size else "")
            _download(wanted, metadata, blob.with_name(f"{blob.name}.incomplete"), blob)


def _download(wanted: _Wanted, metadata: Any, incomplete: Path, path: Path) -> None:
    """Fetch what `incomplete` lacks, check it, and rename it to `path`."""
    with incomplete.open("ab") as file:
        _receive(wanted, metadata, file)
        file.flush()
        os.fsync(file.fileno())
    if SHA256.fullmatch(metadata.etag) and (found := sha256_of(incomplete)) != metadata.etag:
        incomplete.unlink()
        raise CheckpointError(
            f"{wanted}: what was received has the SHA-256 {found[:8]}…, and the hub states {metadata.etag[:8]}…; "
            "it was deleted: try again, and if that does not help, look for a proxy or mirror (HF_ENDPOINT) that "
            "changes files"
        )
    os.replace(incomplete, path)


def _receive(wanted: _Wanted, metadata: Any, file: Any) -> None:
    """Append to `file` what it lacks. A broken connection is resumed as long as something comes through."""
    if metadata.size is not None:
        if file.tell() > metadata.size:
            file.truncate(0)
        missing, free = metadata.size - file.tell(), shutil.disk_usage(Path(file.name).parent).free
        if missing > free:
            raise OSError(errno.ENOSPC, f"{megabytes(missing)} are needed and {megabytes(free)} are free", file.name)
        if not missing:
            return
    # the commit's own address, so that a file that changes meanwhile is not mixed with this one; redirected addresses
    # expire, and the HTTP library keeps the token to itself when it follows to another host
    url = hf_hub_url(wanted.repo, wanted.filename, repo_type=wanted.repo_type, revision=metadata.commit_hash)
    headers = {**build_hf_headers(library_name=LIBRARY), "Accept-Encoding": "identity"}
    pauses = list(PAUSES[:1])  # http_get has tried again itself
    while True:
        start = file.seek(0, os.SEEK_END)
        try:
            return http_get(url, file, resume_size=start, headers=headers, expected_size=metadata.size,
                            displayed_filename=wanted.filename)  # fmt: skip
        except Exception as error:
            if not _may_pass(error):
                raise
            if file.tell() > start:
                pauses = list(PAUSES[:1])
            if not pauses:
                raise
            time.sleep(pauses.pop(0))


def megabytes(size: int) -> str:
    """A number of bytes as text: 1 kB, 819 MB, 2.3 GB."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


@contextlib.contextmanager
def _explained(wanted: _Wanted) -> Iterator[None]:
    """Turn every failure into a CheckpointError that says what to do."""
    try:
        yield
    except CheckpointError:
        raise
    except errors.EntryNotFoundError as error:
        local = isinstance(error, errors.LocalEntryNotFoundError)
        raise _MissingFile(_offline(wanted) if local else _missing(wanted)) from None
    except Exception as error:
        raise CheckpointError(f"{wanted}: {_reason(error, wanted)}") from error


def explained_for(repo: str, revision: str | None = None) -> contextlib.AbstractContextManager[None]:
    """For other calls of the hub: every failure inside the block becomes a CheckpointError that says what to do."""
    return _explained(_Wanted(repo, "", "model", revision))


def _missing(wanted: _Wanted) -> str:
    tree = f"{wanted.page}/tree/{quote(wanted.revision or constants.DEFAULT_REVISION, safe='')}"
    offline = f", or not in the cache {constants.HF_HUB_CACHE} (HF_HUB_OFFLINE is set)"
    return f"{wanted}: no such file there{offline if constants.HF_HUB_OFFLINE else ''}; {tree} lists what there is"


def _offline(wanted: _Wanted) -> str:
    return (
        f"{wanted}: HF_HUB_OFFLINE is set, and it is not in the cache {constants.HF_HUB_CACHE}; unset HF_HUB_OFFLINE "
        "once, or copy the cache from a machine that has it"
    )


def _reason(error: Exception, wanted: _Wanted) -> str:
    """What went wrong and what to do about it, for everything but a missing file."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # so uploads wrap their errors
        error = error.__cause__
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error, wanted)
    if isinstance(error, errors.HFValidationError):
        return f"not the name of a repository (owner/name): {_first_line(error)}"
    if isinstance(error, errors.FileMetadataError):
        return (
            f"the answer is not that of a hub ({_first_line(error)}); check HF_ENDPOINT ({constants.ENDPOINT}), and "
            "proxy settings"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; unset it once"
    if _is_transport(error):
        return (
            f"the connection to {constants.ENDPOINT} failed ({type(error).__name__}: {_first_line(error)}); what has "
            "come is kept: try again, or set HF_ENDPOINT to a mirror"
        )
    if isinstance(error, OSError) and error.errno is not None:
        detail = "; delete something, or set HF_HOME to a folder on another disk; what has come is kept"
        home = f"; set HF_HOME to a folder that you may write to (it is {constants.HF_HOME})"
        return f"{error.strerror} ({error.filename or constants.HF_HUB_CACHE})" + (
            detail if error.errno in (errno.ENOSPC, errno.EDQUOT) else home
        )
    return f"{type(error).__name__}: {_first_line(error)}"


def _refusal(error: errors.HfHubHTTPError, wanted: _Wanted) -> str:
    """An answer of the hub that is an error."""
    status, kind = error.response.status_code, wanted.repo_type
    if isinstance(error, errors.GatedRepoError):
        return f"the {kind} is gated: accept its terms at {wanted.page}, then log in with that account ({LOGIN})"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no {kind} of this name at {constants.ENDPOINT}, or it is private: check the name; if it is "
            f"private, log in ({LOGIN})"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"there is no such revision; give a branch, tag or commit of {wanted.page}"
    if status == 401:
        return f"the token was refused (401): it is wrong or has expired; log in again ({LOGIN}), or unset HF_TOKEN"
    if status == 403:
        return f"access was refused (403: {_first_line(error)}); use a token that may for {wanted.page} ({LOGIN})"
    if status == 429:
        return f"too many requests (429); wait a few minutes, or log in for a higher limit ({LOGIN})"
    if status in OVERLOADED:
        return f"{constants.ENDPOINT} answers {status}; what has come is kept: try again later, or set HF_ENDPOINT"
    return f"{constants.ENDPOINT} answers {status} ({_first_line(error)}); check the name, and HF_ENDPOINT"


def _first_line(error: Exception) -> str:
    message = getattr(error, "server_message", None) or str(error)
    return next((line.strip() for line in message.splitlines() if line.strip()), type(error).__name__)
