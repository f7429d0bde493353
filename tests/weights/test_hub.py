"""Fetching from a hub: what is in the cache afterwards, and what every failure says."""

import errno
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from huggingface_hub import constants, try_to_load_from_cache

from fgaseg.errors import CheckpointError
from fgaseg.weights import hub as client
from fgaseg.weights.hub import fetch_file, fetch_first, list_files

LARGE = random.Random(0).randbytes(300_000)
FILES = {"large.pth": LARGE, "small.json": b"{}", "folder/large.bin": LARGE[::-1]}


@pytest.fixture
def repo(hub):
    return hub.add("owner/name", dict(FILES))


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
    assert fetch_file("owner/name", "large.pth", revision="v1").read_bytes() == LARGE[::-1]
    assert fetch_file("owner/name", "large.pth", revision=old) == first and first.read_bytes() == LARGE


def test_a_broken_connection_goes_on_where_it_broke(hub, repo):
    hub.trouble.cuts = [100_000, 1, 70_000]
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE
    assert hub.ranges == ["bytes=100000-", "bytes=100000-", "bytes=170000-"] and hub.sent == len(LARGE) + 1


def test_a_server_without_ranges_starts_over(hub, repo):
    hub.trouble.cuts, hub.trouble.no_ranges = [100_000], True
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE


def test_what_has_come_is_kept_for_the_next_call(hub, repo):
    hub.trouble.cuts = [100_000] + [0] * 50
    with pytest.raises(CheckpointError, match="what has come is kept") as caught:
        fetch_file("owner/name", "large.pth")
    assert "\n" not in str(caught.value)
    hub.trouble.cuts, hub.sent = [], 0
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE
    assert hub.sent == 200_000


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


def test_an_overloaded_hub_is_asked_again(hub, repo):
    hub.trouble.status, hub.trouble.times = 503, 1
    assert fetch_file("owner/name", "large.pth").read_bytes() == LARGE


def test_the_first_file_that_exists(hub, repo):
    assert fetch_first("owner/name", ["a.safetensors", "large.pth"]).read_bytes() == LARGE
    with pytest.raises(CheckpointError, match="owner/name/a or b: no such file there"):
        fetch_first("owner/name", ["a", "b"])
    with pytest.raises(CheckpointError, match="no model of this name"):
        fetch_first("owner/nothing", ["a", "b"])
    assert list_files("owner/name") == list(FILES)
    with pytest.raises(CheckpointError, match="owner/name@v9: there is no such revision"):
        list_files("owner/name", revision="v9")


def test_a_full_disk(hub, repo, monkeypatch):
    usage = client.shutil.disk_usage(hub.home.parent)
    monkeypatch.setattr(client.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match="300 kB are needed and 1 kB are free .*; delete something") as caught:
        fetch_file("owner/name", "large.pth")
    assert "\n" not in str(caught.value) and hub.seen["GET"] == 0
    monkeypatch.undo()


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
