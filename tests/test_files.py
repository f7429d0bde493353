"""Files and folders appear whole or not at all."""

import errno
import os
import shutil
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fgaseg.files import (
    ANNOTATION_LIMIT,
    atomic_directory,
    atomic_path,
    atomic_write,
    complete_directory,
    folder_lock,
    read_limited,
    real_path,
)
from fgaseg.weights import remove_leftovers


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_replaces_and_is_readable_by_others(tmp_path):
    path = tmp_path / "new" / "file"
    atomic_write(path, lambda file: file.write(b"one"))
    atomic_write(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two" and names(path.parent) == ["file"]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half(file):
        file.write(b"ha")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, half)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_atomic_write_flushes_before_it_renames(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    atomic_write(tmp_path / "file", lambda file: file.write(b"x"))
    assert events == ["fsync", "rename", "fsync"]  # the content, the name, the folder that holds the name


def test_atomic_path_moves_what_was_written_and_the_file_last(tmp_path, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(b.name), replace(a, b)))
    with atomic_path(tmp_path / "new" / "file.tif") as path:
        path.write_text("one")
        path.with_name("file.tif.aux.xml").write_text("names")
        assert path.name == "file.tif" and not (tmp_path / "new" / "file.tif").exists()
    assert (tmp_path / "new" / "file.tif").read_text() == "one"
    assert names(tmp_path / "new") == ["file.tif", "file.tif.aux.xml"] and order == ["file.tif.aux.xml", "file.tif"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_atomic_path_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "file").write_text("old")
    with pytest.raises(type(error)), atomic_path(tmp_path / "file") as path:
        path.write_text("ha")
        raise error
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


def written(writer, path):
    """What `path` holds after one of the three has written "new" to it, or to a file of that name in it."""
    if writer is atomic_write:
        atomic_write(path, lambda file: file.write(b"new"))
        return path.read_text()
    with writer(path) as place:
        place = place / "file" if writer is atomic_directory else place
        place.write_text("new")
    return (path / "file" if writer is atomic_directory else path).read_text()


@pytest.mark.parametrize("writer", [atomic_write, atomic_path, atomic_directory])
def test_what_a_rename_would_take_away_is_refused(tmp_path, writer):
    """A device, which the whole machine uses, a pipe, and a folder in place of a file or the other way round."""
    pipe, folder, file = (tmp_path / name for name in ("pipe", "folder", "file"))
    os.mkfifo(pipe), folder.mkdir(), file.write_text("old")
    other = {atomic_write: {folder: "a folder"}, atomic_directory: {file: "a file"}}.get(writer, {})
    refused = {pipe: "a device or a pipe"} | other
    for path, kind in refused.items():
        with pytest.raises(OSError, match=f"is {kind}, which cannot be replaced") as error:
            written(writer, path)
        assert error.value.filename == str(path)
    assert pipe.is_fifo() and folder.is_dir() and file.read_text() == "old"
    assert names(tmp_path) == ["file", "folder", "pipe"]


@pytest.mark.parametrize("writer", [atomic_write, atomic_path, atomic_directory])
def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path, writer):
    link, target = tmp_path / "link.tif", tmp_path / "elsewhere" / "target"
    link.symlink_to(target)
    for _ in range(2):  # it leads nowhere, and to what was written
        assert written(writer, link) == "new" and link.is_symlink()
    assert names(target.parent) == ["target"] and names(tmp_path) == ["elsewhere", "link.tif"]


def test_atomic_directory_replaces(tmp_path):
    for content in ("one", "two"):
        with atomic_directory(tmp_path / "folder") as folder:
            (folder / content).write_text(content)
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["two"]


def test_atomic_directory_that_fails_leaves_the_old_one(tmp_path):
    with atomic_directory(tmp_path / "folder") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "folder") as folder:
        (folder / "new").write_text("new")
        raise ZeroDivisionError
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["old"]


class Killed(BaseException):
    """Stands for SIGKILL: no clean-up runs after it."""


def test_a_complete_directory_exists_wherever_the_process_is_killed(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    for stop in range(4):  # before the first rename, between the two, after the second, not at all
        for leftover in tmp_path.iterdir():
            shutil.rmtree(leftover)
        with atomic_directory(path) as folder:
            (folder / "content").write_text("old")
        done = []

        def rename(source, target, replace=os.replace, done=done, stop=stop):
            if len(done) == stop:
                raise Killed
            replace(source, target)
            done.append(target)
            if len(done) == stop == 2:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", rename)
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            try:
                with atomic_directory(path) as folder:
                    (folder / "content").write_text("new")
            except Killed:
                pass
        found = complete_directory(path)
        assert found is not None and (found / "content").read_text() == ("old" if stop < 2 else "new"), stop
        remove_leftovers(tmp_path)
        assert complete_directory(path) == found
        with atomic_directory(path) as folder:  # and the next one lands
            (folder / "content").write_text("newest")
        assert names(tmp_path) == ["checkpoint"] and (path / "content").read_text() == "newest"


def test_threads_that_write_leave_the_umask_as_it_is(tmp_path, monkeypatch):
    before, umask = os.umask(0o022), os.umask

    def slow(mask):
        found = umask(mask)
        time.sleep(0.001)  # for another thread
        return found

    monkeypatch.setattr(os, "umask", slow)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: atomic_write(tmp_path / f"{n}", lambda file: file.write(b"x")), range(20)))
        assert umask(0o022) == 0o022
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o644}
    finally:
        umask(before)


def test_a_lock_ends_with_its_holder_and_not_with_its_children(tmp_path):
    reader, writer = os.pipe()
    with folder_lock(tmp_path) as free:
        if (child := os.fork()) == 0:  # a worker that outlives its parent's training
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        with folder_lock(tmp_path) as again:
            assert free and not again
    with folder_lock(tmp_path) as free:
        assert free
    os.write(writer, b"x")
    assert os.waitpid(child, 0)[1] == 0


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_files_are_read_up_to_a_limit(tmp_path):
    assert read_limited(sparse(tmp_path / "three", 3), 3) == bytes(3)
    assert len(read_limited(sparse(tmp_path / "text", 16 * 2**20))) == 16 * 2**20
    large = {"more than 3 bytes": (sparse(tmp_path / "four", 4), 3),
             "more than 16,777,216 bytes": (sparse(tmp_path / "text", 16 * 2**20 + 1),),
             "more than 4,294,967,296 bytes": (sparse(tmp_path / "annotations", 2**32 + 1), ANNOTATION_LIMIT),
             "more than 10 bytes": ("/dev/zero", 10)}  # fmt: skip
    for words, arguments in large.items():
        with pytest.raises(OSError, match=words) as caught:
            read_limited(*arguments)
        assert caught.value.errno == errno.EFBIG and caught.value.filename == str(arguments[0])
    with pytest.raises(OSError, match="a name cannot hold a null character") as caught:
        read_limited("a\0b")
    assert caught.value.errno == errno.EINVAL


def test_paths_that_lead_nowhere_stay_as_they_are(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert real_path(tmp_path / "link") == tmp_path.resolve() / "file"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", tmp_path / "a\0b"):
        assert real_path(path) == path


def test_a_folder_that_is_locked_is_made_and_free_again(tmp_path):
    for _ in range(2):
        with folder_lock(tmp_path / "not" / "there") as free:
            assert free and (tmp_path / "not" / "there").is_dir()


@pytest.mark.parametrize("name, hidden", [("b" * 240, "b" * 240), ("ä" * 120, "ä" * 120), ("b" * 241, "b" * 50),
                                          ("ä" * 121, "ä" * 50), ("b" * 255, "b" * 50)], ids=len)  # fmt: skip
def test_names_as_long_as_names_may_be(tmp_path, name, hidden):
    seen = []
    atomic_write(tmp_path / name, lambda file: (file.write(b"x"), seen.extend(names(tmp_path))))
    assert (tmp_path / name).read_bytes() == b"x" and names(tmp_path) == [name]
    (temporary,) = seen
    assert temporary.startswith(f".{hidden}.") and temporary.endswith(".tmp") and len(temporary) == len(hidden) + 14


def test_a_folder_that_is_written_is_readable_by_others_and_flushed(tmp_path, monkeypatch):
    (tmp_path / "plain").mkdir()
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))),
                                                 fsync(fd)))  # fmt: skip
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    with atomic_directory(tmp_path / "new" / "folder") as folder:
        (folder / "file").write_text("x")
        temporary = folder.name
    assert events == ["file", temporary, "rename", "new"]
    assert (tmp_path / "new" / "folder").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with atomic_directory(tmp_path / "new" / "folder", keep_previous=True) as folder:
        (folder / "other").touch()
    assert names(tmp_path / "new") == ["folder", "folder.old"] and names(tmp_path / "new" / "folder.old") == ["file"]
    events.clear()
    with atomic_path(tmp_path / "new" / "x.tif") as path:
        path.touch()
    assert events == ["x.tif", "rename", "new"]


@pytest.mark.parametrize("write", [atomic_directory, atomic_path], ids=["folder", "path"])
def test_errors_say_what_was_written(tmp_path, write):
    for error, name in ((OSError(28, "full"), str(tmp_path / "x")), (OSError(28, "full", "other"), "other"),
                        (OSError("odd"), None)):  # fmt: skip
        with pytest.raises(OSError) as caught, write(tmp_path / "x"):
            raise error
        assert caught.value.filename == name
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught, write(tmp_path / "file" / "a" / "b"):
        pass
    reason = f"cannot be written, because {tmp_path / 'file'} is a file; give another path"
    assert (caught.value.strerror, caught.value.filename) == (reason, str(tmp_path / "file" / "a" / "b"))
