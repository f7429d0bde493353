"""Progress where there is no terminal: lines in the log."""

import logging

import pytest

from fgaseg import progress


@pytest.fixture
def every_item(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0)
    caplog.set_level(logging.INFO, "fgaseg")
    return caplog


def test_items_pass_and_are_counted_from_what_was_done_before(every_item):
    assert list(progress.track("abc", "scoring", 5, done=2)) == ["a", "b", "c"]
    assert every_item.messages == ["scoring: 3 of 5", "scoring: 4 of 5", "scoring: 5 of 5"]


def test_nothing_is_shown_when_it_is_not_wanted(every_item):
    assert list(progress.track("abc", "scoring", 3, shown=False)) == ["a", "b", "c"]
    assert not every_item.messages
