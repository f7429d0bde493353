"""Atomic writing: a file or folder is replaced as a whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

_UMASK_LOCK = threading.Lock()
_HELD: set[int] = set()  # the folders that are locked
TEXT_LIMIT = 16 << 20  # bytes of a file of names or of a list of photos: a hundred thousand lines and more
ANNOTATION_LIMIT = 4 << 30  # bytes of annotations of a whole data set in JSON; COCO's and LVIS's have up to 1.2 GB


def read_limited(path: str | Path, limit: int = TEXT_LIMIT) -> bytes:
    """The content of a file. Raises OSError, whose `strerror` says why, also for one of more than `limit` bytes."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "a name cannot hold a null character", str(path))
    with open(path, "rb") as file:
        large = os.fstat(file.fileno()).st_size > limit  # told without reading 4 GiB; a pipe and a device have no size
        content = b"" if large else file.read(limit + 1)
    if large or len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return content


def real_path(path: Path) -> Path:
    """`path.resolve()`, or the path itself where links lead back to it, or where it is none."""
    try:
        return path.resolve()
    except (RuntimeError, ValueError):  # of a loop of links in Python 3.11 and 3.12; of a null character
        return path


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[bool]:
    """Makes the folder, and yields whether it was free and is now held by this process.

    The system releases it when the process ends, however it ends, and processes that are forked meanwhile do not hold
    it. Nothing is written. Where the file system knows no locks every folder is free.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    descriptor, free = os.open(folder, os.O_RDONLY), True
    _HELD.add(descriptor)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
        yield free
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # at once: a process that was just forked has not let go yet
        _HELD.remove(descriptor)
        os.close(descriptor)


def _let_go() -> None:
    """In a forked process, which would hold the folders for as long as it lives."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_let_go)


def atomic_write(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call write(file) on a temporary file beside `path`, flush it to disk, then rename it over `path`.

    Whatever happens (full disk, Ctrl-C, power loss), `path` holds either its old content or all of the new. Missing
    parent folders are made, and a link stays: what it leads to is replaced. If `write` or the disk fails, the exception
    passes and the temporary file is removed. Raises OSError for the path of a folder, a device or a pipe.
    """
    path = _replaceable(Path(path), Path.is_file)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_hidden(path), suffix=".tmp")
    try:
        with _naming(path), os.fdopen(descriptor, "wb") as file:
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
    Links and what cannot be replaced are as in `atomic_write`, but `path` may be an empty folder.
    """
    path, name = _replaceable(Path(path), lambda found: found.is_file() or found.is_dir()), Path(path).name
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=_hidden(path), suffix=".tmp"))
    try:
        with _naming(path):
            yield folder / name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == name):
            _fsync(file)
            os.replace(file, path if file.name == name else path.with_name(file.name))
        _fsync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_directory(path: str | Path, keep_previous: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path` to fill; if the block ends without an exception, it replaces `path`.

    The previous folder is kept as `<path>.old` until the new one is in place, so one complete folder exists at any
    moment: `complete_directory` finds it. If the block raises, the temporary folder is removed and `path` is untouched.

    keep_previous  keep `<path>.old` afterwards, as the last but one version

    Links and what cannot be replaced, here also a file, are as in `atomic_write`.
    """
    path = _replaceable(Path(path), Path.is_dir)
    previous = previous_directory(path)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=_hidden(path), suffix=".tmp"))
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        with _naming(path):
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


def _hidden(path: Path) -> str:
    """How temporary names begin: with the whole name, unless that would be longer than names may be."""
    return f".{path.name if len(os.fsencode(path.name)) <= 240 else path.name[:50]}."


def _replaceable(path: Path, kind: Callable[[Path], bool]) -> Path:
    """Where a path leads, its parents made. A rename over a device would take it from the whole machine."""
    if path.exists() and not kind(path):
        found = "a folder" if path.is_dir() else "a file" if path.is_file() else "a device or a pipe"
        raise OSError(errno.EEXIST, f"is {found}, which cannot be replaced; give another path", str(path))
    path = real_path(path) if path.is_symlink() else path
    _make_parents(path)
    return path


def _make_parents(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next((one for one in path.parents if one.exists()), path)
        reason = f"cannot be written, because {file} is a file; give another path"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(path)) from error


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of a full disk, which do not say what was written, get the name of this file or folder."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


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
