"""Progress where there is no terminal: lines in the log."""

import io
import logging
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from fgaseg import progress


@pytest.fixture
def every_item(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    caplog.set_level(logging.INFO, "fgaseg")
    return caplog


def test_items_pass_and_are_counted_from_what_was_done_before(every_item):
    assert list(progress.track("abc", "scoring", 5, done=2)) == ["a", "b", "c"]
    counts = [message.split(",")[0] for message in every_item.messages]
    assert counts == ["scoring: 3 of 5", "scoring: 4 of 5", "scoring: 5 of 5"]


def test_speed_and_time_left_count_what_this_run_has_done(every_item, monkeypatch):
    clock = iter(range(0, 100, 20))  # an item takes 20 s
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    list(progress.track("abc", "labelling", 1003, done=1000, unit="photos"))
    assert every_item.messages == [
        "labelling: 1001 of 1003, 3 photos/min, 0:00:40 left",
        "labelling: 1002 of 1003, 3 photos/min, 0:00:20 left",
        "labelling: 1003 of 1003, 3 photos/min, 0:00:00 left",
    ]


def test_the_bar_shows_count_and_speed(monkeypatch):
    text = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=text, force_terminal=True, width=100))
    for _ in progress.track("abcd", "labelling [1]", 6, done=2, unit="photos"):
        time.sleep(0.15)  # the bar is drawn ten times a second
    shown = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", text.getvalue())
    assert "labelling [1]" in shown and "2/6" in shown and "5/6" in shown and re.search(r"\d+ photos/s", shown)


def test_nothing_is_shown_when_it_is_not_wanted(every_item):
    assert list(progress.track("abc", "scoring", 3, shown=False)) == ["a", "b", "c"]
    assert not every_item.messages


def test_the_number_of_all_items_need_not_be_known(every_item, monkeypatch):
    clock = iter(range(0, 100, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    list(progress.track("ab", "labelling", None, unit="frames"))
    assert every_item.messages == ["labelling: 1, 3 frames/min", "labelling: 2, 3 frames/min"]
