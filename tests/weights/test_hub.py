"""Fetching from a hub: what is in the cache afterwards, and what every failure says."""

import errno
import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import time
from types import SimpleNamespace

import filelock
import pytest
from huggingface_hub import constants, errors, try_to_load_from_cache

from fgaseg.errors import CheckpointError
from fgaseg.weights import hub as client
from fgaseg.weights.hub import (
    PAUSES,
    current_commit,
    explained_for,
    fetch_file,
    fetch_first,
    fetch_to,
    list_files,
    locked,
    megabytes,
)

LARGE = random.Random(0).randbytes(300_000)
FILES = {"large.pth": LARGE, "small.json": b"{}", "folder/large.bin": LARGE[::-1]}


@pytest.fixture
def repo(hub):
    return hub.add("owner/name", dict(FILES))


@pytest.fixture
def pauses(hub, monkeypatch):
    """The seconds that are waited, which are those of users, without waiting."""
    waited = []
    monkeypatch.setattr(client, "PAUSES", PAUSES)
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=waited.append))
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None, time=time.time))
    return waited


def blobs(hub):
    return sorted(path.name for path in hub.cache.glob("*/blobs/*"))


@pytest.mark.parametrize("kind, key", [("model", "owner/name"), ("space", "spaces/owner/name")])
@pytest.mark.parametrize("filename", FILES)
def test_a_file_comes_once(hub, kind, key, filename):
    hub.add(key, dict(FILES))
    path = fetch_file("owner/name", filename, repo_type=kind)
    assert path.read_bytes() == FILES[filename]
    assert hub.seen["GET"] == (2 if len(FILES[filename]) > 1000 else 1)  # the redirect, and the file
    hub.seen.clear()
    assert fetch_file("owner/name", filename, repo_type=kind) == path
    assert hub.seen == {"HEAD": 1} and not hub.leaks
    # and huggingface_hub's own look-ups find it
    assert try_to_load_from_cache("owner/name", filename, repo_type=kind) == str(path)
    assert not [name for name in blobs(hub) if "incomplete" in name]


def test_a_newer_version_is_fetched_and_revisions_stay(hub, repo):
    first = fetch_file("owner/name", "large.pth")
    old, repo.commit, repo.files["large.pth"] = repo.commit, "c" * 40, LARGE[::-1]
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE[::-1]
    assert try_to_load_from_cache("owner/name", "large.pth", revision="v1") is None
    assert fetch_file("owner/name", "large.pth", revision="v1").read_bytes() == LARGE[::-1]
    assert open(try_to_load_from_cache("owner/name", "large.pth", revision="v1"), "rb").read() == LARGE[::-1]
    assert fetch_file("owner/name", "large.pth", revision=old) == first and first.read_bytes() == LARGE


def test_a_broken_connection_goes_on_where_it_broke(hub, repo):
    hub.trouble.cuts = [100_000, 1, 70_000]
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE
    assert hub.ranges == ["bytes=100000-", "bytes=100000-", "bytes=170000-"] and hub.sent == len(LARGE) + 1


def test_a_server_without_ranges_starts_over(hub, repo):
    hub.trouble.cuts, hub.trouble.no_ranges = [100_000], True
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE


def test_what_is_fetched_is_of_the_commit_that_was_asked_for(hub, repo, monkeypatch):
    """A repository that changes on the way cannot mix two files; and the bar shows the file's own name and size."""
    whole, seen = client.http_get, []
    monkeypatch.setattr(client, "http_get", lambda url, file, **shown: (seen.append(shown), whole(url, file, **shown)))
    fetch_file("owner/name", "folder/large.bin")
    assert [revision for revision, name in hub.asked if name == "folder/large.bin"][:2] == ["main", repo.commit]
    assert seen[0]["displayed_filename"] == "folder/large.bin" and seen[0]["expected_size"] == len(LARGE)
    list_files("owner/name")
    assert hub.agents and all(agent.startswith("fgaseg") for agent in hub.agents)


def test_what_has_come_is_kept_for_the_next_call(hub, repo):
    hub.trouble.cuts = [100_000] + [0] * 50
    with pytest.raises(CheckpointError, match="what has come is kept") as caught:
        fetch_file("owner/name", "large.pth")
    assert "\n" not in str(caught.value)
    hub.trouble.cuts, hub.sent = [], 0
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE
    assert hub.sent == 200_000


def test_leftovers_as_long_as_the_file_and_longer(hub, repo):
    """Killed before the file had its name: nothing is left to fetch. Longer than the file: all is fetched again."""
    blob = hub.cache / "models--owner--name" / "blobs" / hashlib.sha256(LARGE).hexdigest()
    blob.parent.mkdir(parents=True)
    for leftover, sent in ((LARGE, 0), (b"\0" * (len(LARGE) + 1), len(LARGE))):
        blob.unlink(missing_ok=True)
        blob.with_name(f"{blob.name}.incomplete").write_bytes(leftover)
        hub.sent = 0
        assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE and hub.sent == sent
        for link in hub.cache.glob("*/snapshots/*/large.pth"):
            link.unlink()


def test_leftovers_that_are_not_of_the_file_are_found_out(hub, repo):
    hub.trouble.cuts = [100_000] + [0] * 50
    with pytest.raises(CheckpointError):
        fetch_file("owner/name", "large.pth")
    (incomplete,) = hub.cache.glob("*/blobs/*.incomplete")
    hub.trouble.cuts = []
    incomplete.write_bytes(b"x" * 1000)
    with pytest.raises(CheckpointError, match="it was deleted: try again"):
        fetch_file("owner/name", "large.pth")
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE


def test_a_file_that_was_changed_on_the_way_is_refused(hub, repo):
    hub.trouble.changed = True
    with pytest.raises(CheckpointError, match="and the hub states .* it was deleted: try again") as caught:
        fetch_file("owner/name", "large.pth")
    assert "\n" not in str(caught.value) and blobs(hub) == []
    hub.trouble.changed = False
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE


FAILURES = {
    "no such repository": ("owner/nothing", "x", "no model of this name at .* check the name; if it is private, log"),
    "not a name": ("a/b/c", "x", "not the name of a repository .owner/name"),
    "no such file": ("owner/name", "none.pth", "no such file there; .*/owner/name/tree/main lists"),
    "no such revision": (
        "owner/name",
        "large.pth",
        "/large.pth@v9: there is no such revision; give a branch",
    ),
    "gated": (
        "owner/gated",
        "x",
        "is gated: accept its terms at http://127.*/owner/gated, then .*hf auth login",
    ),
    "private": ("owner/private", "x", "or it is private: .* log in"),
    "token": ("owner/name", "large.pth", "the token was refused .401.* unset HF_TOKEN"),
    "403": ("owner/name", "large.pth", "access was refused .403: .*use a token that may"),
    "404": ("owner/name", "large.pth", "answers 404 .*check the name, and HF_ENDPOINT"),
    "429": ("owner/name", "large.pth", "too many requests"),
    "500": ("owner/name", "large.pth", "answers 500; what has come is kept: try again later"),
    "503": ("owner/name", "large.pth", "answers 503; what has come is kept: try again later"),
    "no network": ("owner/name", "large.pth", "the connection to http://127.* failed .ConnectError.*try again, or set"),
    "hotel": ("owner/name", "large.pth", "not that of a hub .*check HF_ENDPOINT"),
    "offline": ("owner/name", "large.pth", "HF_HUB_OFFLINE is set, and it is not in the cache .*unset"),
}


def get_into(trouble, hub, monkeypatch):
    hub.add("owner/gated", dict(FILES), gated=True)
    hub.add("owner/private", dict(FILES), private=True)
    if trouble == "token":
        monkeypatch.setenv("HF_TOKEN", "bad")
    if trouble.isdigit():
        hub.trouble.status = int(trouble)
    if trouble == "no network":
        hub.close()
    hub.trouble.no_hub = trouble == "hotel"
    if trouble == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("trouble", FAILURES)
def test_every_failure_is_one_line_that_says_what_to_do(hub, repo, monkeypatch, trouble):
    name, filename, message = FAILURES[trouble]
    get_into(trouble, hub, monkeypatch)
    with pytest.raises(CheckpointError, match=message) as caught:
        fetch_file(name, filename, revision="v9" if trouble == "no such revision" else None)
    assert str(caught.value).startswith(f"{name}/{filename}") and "\n" not in str(caught.value)
    assert blobs(hub) == []


@pytest.mark.parametrize("trouble", ["token", "403", "500", "no network", "hotel", "offline"])
def test_a_cached_file_is_enough(hub, repo, monkeypatch, trouble):
    path = fetch_file("owner/name", "large.pth")
    get_into(trouble, hub, monkeypatch)
    assert fetch_file("owner/name", "large.pth") == path


def test_a_revision_that_was_removed_is_not_taken_from_the_cache(hub, repo):
    fetch_file("owner/name", "large.pth")
    del repo.files["large.pth"]
    with pytest.raises(CheckpointError, match="no such file"):
        fetch_file("owner/name", "large.pth")


def test_tokens_open_what_they_may_and_are_sent_nowhere_else(hub, monkeypatch):
    hub.tokens["other"] = "other"
    hub.add("owner/gated", dict(FILES), gated=True, readers={"good"})
    hub.add("owner/private", dict(FILES), private=True, readers={"good"})
    monkeypatch.setenv("HF_TOKEN", "other")
    with pytest.raises(CheckpointError, match="accept its terms"):
        fetch_file("owner/gated", "large.pth")
    with pytest.raises(CheckpointError, match="no model of this name"):
        fetch_file("owner/private", "large.pth")
    monkeypatch.setenv("HF_TOKEN", "good")
    for name in ("owner/gated", "owner/private"):
        assert fetch_file(name, "large.pth").read_bytes() == LARGE
    assert not hub.leaks


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_overloaded_hub_is_asked_again(hub, repo, pauses, monkeypatch, status):
    answer = client.get_hf_file_metadata

    def first_refuse(*arguments, **options):  # huggingface_hub itself asks again after some of these
        if not pauses:
            raise errors.HfHubHTTPError("busy", response=SimpleNamespace(status_code=status, headers={}, request=None))
        return answer(*arguments, **options)

    monkeypatch.setattr(client, "get_hf_file_metadata", first_refuse)
    assert fetch_file("owner/name", "small.json").read_bytes() == b"{}" and pauses == [1.0]


@pytest.mark.parametrize("status, waited", [(503, [1.0, 3.0]), (409, []), (501, []), (505, [])])
def test_how_long_and_after_which_answers_it_is_asked_again(hub, repo, pauses, status, waited):
    hub.trouble.status = status
    with pytest.raises(CheckpointError, match=f"answers {status}"):
        fetch_file("owner/name", "large.pth")
    assert pauses == waited
    hub.trouble.status = None
    path = fetch_file("owner/name", "large.pth")
    hub.trouble.status, pauses[:] = status, []
    assert fetch_file("owner/name", "large.pth") == path and not pauses  # what is here is enough


def test_a_connection_that_breaks_again_and_again_is_given_up(hub, repo, pauses):
    for cuts in ([0] * 50, [100_000] + [0] * 50):
        hub.trouble.cuts, pauses[:] = cuts, []
        with pytest.raises(CheckpointError, match="what has come is kept"):
            fetch_file("owner/name", "large.pth")
        assert pauses == [1.0]


@pytest.mark.parametrize("header", ["ETag", "X-Repo-Commit"])
def test_an_answer_without_a_commit_is_not_that_of_a_hub(hub, repo, header):
    hub.trouble.lacks = header
    with pytest.raises(CheckpointError, match="the answer is not that of a hub .*check HF_ENDPOINT"):
        fetch_file("owner/name", "small.json")


def test_the_first_file_that_exists(hub, repo):
    assert fetch_first("owner/name", ["a.safetensors", "large.pth"]).read_bytes() == LARGE
    with pytest.raises(CheckpointError, match="owner/name/a or b: no such file there"):
        fetch_first("owner/name", ["a", "b"])
    with pytest.raises(CheckpointError, match="no model of this name"):
        fetch_first("owner/nothing", ["a", "b"])
    assert list_files("owner/name") == list(FILES)
    with pytest.raises(CheckpointError, match="owner/name@v9: there is no such revision"):
        list_files("owner/name", revision="v9")
    hub.add("spaces/owner/other", {"b": b"in a Space"}, branches={"v2"})
    assert fetch_first("owner/other", ["a", "b"], repo_type="space", revision="v2").read_bytes() == b"in a Space"
    assert list_files("owner/other", repo_type="space", revision="v2") == ["b"]


def test_where_a_branch_is_now_if_that_can_be_asked(hub, repo, monkeypatch):
    assert current_commit("owner/name", "small.json", revision="v1") == repo.commit
    assert current_commit("owner/name", "small.json", revision="v9") is None
    hub.seen.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert current_commit("owner/name", "small.json") is None and not hub.seen
    with pytest.raises(CheckpointError, match="^owner/name: HF_HUB_OFFLINE is set"):
        list_files("owner/name")
    assert not hub.seen


# ---- into a folder of ours


def test_a_file_is_fetched_into_a_folder(hub, repo, tmp_path, monkeypatch):
    folder, announced = tmp_path / "not" / "there", []
    for _ in range(2):  # a second time it is there
        found = fetch_to(folder, "owner/name", "folder/large.bin", announce=announced.append)
        assert found.path == folder / "large.bin" and found.path.read_bytes() == LARGE[::-1]
        assert (found.commit, found.sha256) == (repo.commit, hashlib.sha256(LARGE[::-1]).hexdigest())
        assert hub.sent == len(LARGE) and announced == [len(LARGE)] and not blobs(hub)
    (folder / "large.bin").write_bytes(b"of another commit")
    assert fetch_to(folder, "owner/name", "folder/large.bin").path.read_bytes() == LARGE[::-1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.seen.clear()
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        fetch_to(folder, "owner/name", "folder/large.bin")
    assert not hub.seen


def test_a_file_in_the_cache_is_taken_into_account(hub, repo, tmp_path):
    known, cached = hashlib.sha256(LARGE).hexdigest(), fetch_file("owner/name", "large.pth")
    sent = hub.sent
    found = fetch_to(tmp_path / "folder", "owner/name", "large.pth", sha256=known[:8])
    assert (found.path, found.commit, found.sha256) == (cached, repo.commit, known) and hub.sent == sent
    cached.resolve().write_bytes(b"changed")
    with pytest.raises(CheckpointError, match=f"begins with .* that of the file known here with {known[:8]}: it is re"):
        fetch_to(tmp_path / "folder", "owner/name", "large.pth", sha256=known[:8])
    again = fetch_to(tmp_path / "folder", "owner/name", "large.pth", sha256=known[:8])  # the changed one is gone
    assert again.path.read_bytes() == LARGE and again.path != cached


@pytest.mark.parametrize("filename, sent", [("large.pth", 0), ("small.json", 2)])
def test_another_file_than_the_known_one_is_refused_and_removed(hub, repo, tmp_path, filename, sent):
    with pytest.raises(
        CheckpointError, match="known here with 00000000: it is refused; .*name a commit that you trust"
    ):
        fetch_to(tmp_path / "folder", "owner/name", filename, sha256="0" * 64)
    assert hub.sent == sent and not list(tmp_path.glob("folder/*"))  # the hub states the sum of large files alone


def test_a_lock_that_another_process_holds_is_waited_for(tmp_path, monkeypatch, caplog):
    path, kept = tmp_path / "not" / "there" / "x.lock", []

    class Busy(filelock.FileLock):
        """Held by another, who lets go once somebody waits for as long as it takes."""

        def acquire(self, timeout=None, **options):
            kept.append(self)
            if timeout is None:
                other.release()
            return super().acquire(timeout=min(timeout or 5, 0.01 if other.is_locked else 5), **options)

    other = filelock.FileLock(tmp_path / "x.lock")
    monkeypatch.setattr(client, "filelock", SimpleNamespace(FileLock=Busy, Timeout=filelock.Timeout))
    with locked(path, "fetching x"):
        assert not caplog.messages and stat.S_IMODE(path.stat().st_mode) == 0o664
    other = filelock.FileLock(path)
    other.acquire()
    with locked(path, "fetching x"):
        assert caplog.messages == ["waiting for another process that is fetching x"]
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(path).acquire(timeout=0)
    filelock.FileLock(path).acquire(timeout=0)


def test_a_full_disk(hub, repo, monkeypatch):
    usage = client.shutil.disk_usage(hub.home.parent)
    monkeypatch.setattr(client.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match="300 kB are needed and 1 kB are free .*; delete something") as caught:
        fetch_file("owner/name", "large.pth")
    assert "\n" not in str(caught.value) and hub.seen["GET"] == 0
    monkeypatch.setattr(client.shutil, "disk_usage", lambda _: usage._replace(free=len(LARGE)))
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE  # just enough
    hub.trouble.cuts = [200_000] + [0] * 50
    with pytest.raises(CheckpointError, match="what has come is kept"):
        fetch_file("owner/name", "folder/large.bin")
    hub.trouble.cuts = []
    monkeypatch.setattr(client.shutil, "disk_usage", lambda _: usage._replace(free=100_000))  # for the rest
    assert fetch_file("owner/name", "folder/large.bin").read_bytes() == LARGE[::-1]


def caused(error, cause):
    error.__cause__ = cause
    return error


OTHERS = [
    (OSError("odd"), "OSError: odd"),
    (OSError(errno.EACCES, "Permission denied", "x"), "Permission denied (x); set HF_HOME to a folder that you may"),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), "Disk quota exceeded (x); delete something, or set HF_HOME"),
    (ValueError("\nfirst \nsecond"), "ValueError: first"),
    (ValueError(), "ValueError: ValueError"),
    (RuntimeError("odd"), "RuntimeError: odd"),
    (
        caused(RuntimeError("upload"), ConnectionError("broken")),
        "the connection to {url} failed (ConnectionError: brok",
    ),
    (caused(ValueError("odd"), ConnectionError("broken")), "ValueError: odd"),
    (TimeoutError("too late"), "the connection to {url} failed (TimeoutError: too late); what has come is kept"),
    (errors.OfflineModeIsEnabled(), "HF_HUB_OFFLINE is set; unset it once"),
]


@pytest.mark.parametrize("error, words", OTHERS, ids=[words for _, words in OTHERS])
def test_other_calls_of_the_hub_fail_in_one_line_too(hub, error, words):
    with pytest.raises(CheckpointError) as caught, explained_for("owner/name", "v1"):
        raise error
    assert str(caught.value).startswith("owner/name@v1: " + words.format(url=hub.url))
    assert "\n" not in str(caught.value)


def test_sizes_are_told_in_the_unit_that_suits_them():
    sizes = {2345: "2 kB", 999_999: "1000 kB", 10**6: "1 MB", 1_500_000: "2 MB", 819_000_000: "819 MB",
             10**9: "1.0 GB", 1_500_000_000: "1.5 GB"}  # fmt: skip
    assert {size: megabytes(size) for size in sizes} == sizes


def test_a_disk_that_fills_up_on_the_way(hub, repo, monkeypatch):
    whole = client.http_get

    def half(url, file, **settings):
        file.write(LARGE[: len(LARGE) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)

    monkeypatch.setattr(client, "http_get", half)
    with pytest.raises(CheckpointError, match="No space left .*; delete something, or set HF_HOME"):
        fetch_file("owner/name", "large.pth")
    monkeypatch.setattr(client, "http_get", whole)
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE and hub.sent == len(LARGE) / 2


def test_a_cache_that_cannot_be_written(hub, repo):
    hub.home.touch()
    with pytest.raises(CheckpointError, match="Not a directory .*set HF_HOME to a folder that you may write to"):
        fetch_file("owner/name", "large.pth")


FETCH = """
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 10_000
from fgaseg.weights import fetch_file
print(fetch_file("owner/name", "large.pth"))
"""


def fetching(hub):
    return subprocess.Popen([sys.executable, "-c", FETCH], env=hub.environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def test_two_processes_fetch_it_once(hub, repo):
    hub.trouble.seconds_a_piece = 0.3
    both = [fetching(hub) for _ in range(2)]
    outs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert outs[0][0] == outs[1][0] and hub.sent == len(LARGE)


@pytest.mark.slow
def test_killed_at_any_moment_the_file_is_whole_or_absent(hub, repo):
    hub.trouble.seconds_a_piece = 0.05
    kills = random.Random(1)
    for _ in range(12):
        process = fetching(hub)
        deadline, before = time.monotonic() + 60, hub.sent
        while hub.sent == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(kills.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = try_to_load_from_cache("owner/name", "large.pth")
        assert found is None or open(found, "rb").read() == LARGE
        if found:
            break
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE
    assert hub.sent < 2 * len(LARGE), "nothing was resumed"
