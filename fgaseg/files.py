"""Atomic writing: a file or folder is replaced as a whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_UMASK_LOCK = threading.Lock()


def atomic_write(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call write(file) on a temporary file beside `path`, flush it to disk, then rename it over `path`.

    Whatever happens (full disk, Ctrl-C, power loss), `path` holds either its old content or all of the new. Missing
    parent folders are made. If `write` or the disk fails, the exception passes and the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would hide a shared model from its users
        os.replace(temporary, path)
        _fsync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder beside `path`, for a library that opens its files itself.

    If the block ends without an exception, all files of that folder are moved beside `path`, which comes last: what a
    library writes next to its file, such as `<path>.aux.xml`, is there when the file is. Otherwise nothing is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            _fsync(file)
            os.replace(file, path.with_name(file.name))
        _fsync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_directory(path: str | Path, keep_previous: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` to fill; if the block ends without an exception, it replaces `path`.

    The previous folder is kept as `<path>.old` until the new one is in place, so one complete folder exists at any
    moment: `complete_directory` finds it. If the block raises, the temporary folder is removed and `path` is untouched.

    keep_previous  keep `<path>.old` afterwards, as the last but one version
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = previous_directory(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        for file in temporary.rglob("*"):
            _fsync(file)
        _fsync(temporary)
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(path, previous)
        os.replace(temporary, path)
        _fsync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if previous.exists() and not path.exists():
            os.replace(previous, path)
        raise
    if not keep_previous:
        shutil.rmtree(previous, ignore_errors=True)


def complete_directory(path: str | Path) -> Path | None:
    """The folder that `atomic_directory(path)` completed last, or None.

    It is `<path>.old` if the process was killed between the two renames.
    """
    path = Path(path)
    return next((folder for folder in (path, previous_directory(path)) if folder.is_dir()), None)


def previous_directory(path: Path) -> Path:
    """`<path>.old`, where `atomic_directory(path)` keeps the version before."""
    return path.with_name(path.name + ".old")


def _umask() -> int:
    """It can only be read by setting it; another thread must not read it, or restore it, in between."""
    with _UMASK_LOCK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def _fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, so that a rename inside it survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
