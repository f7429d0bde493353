"""Notes that are told once, and once to each of several people."""

import logging
import threading

import pytest

from fgaseg.notes import note_once, told_anew

log = logging.getLogger("fgaseg.somewhere")


def test_a_note_is_told_once(caplog):
    for _ in range(3):
        note_once("kind", "a note")
    assert caplog.messages == ["a note"]


def test_everyone_is_told_anew():
    note_once("kind", "a note")
    for _ in range(2):
        with told_anew() as told:
            note_once("kind", "a note")
            note_once("kind", "a note")
            log.warning("a %s", "warning")
        assert told == ["a note", "a warning"]
    with told_anew() as told:
        pass
    log.warning("later")
    assert told == [] and logging.getLogger("fgaseg").handlers == []


def test_what_was_told_inside_is_still_told_outside(caplog):
    with told_anew():
        note_once("kind", "a note")
    note_once("kind", "a note")
    assert caplog.messages == ["a note", "a note"]


def test_an_error_leaves_nothing_behind(caplog):
    with pytest.raises(ZeroDivisionError), told_anew():
        1 / 0  # noqa: B018
    assert logging.getLogger("fgaseg").handlers == []


def test_other_threads_are_others():
    def speak():
        note_once("kind", "of another thread")
        log.warning("of another thread")

    with told_anew() as told:
        other = threading.Thread(target=speak)
        other.start()
        other.join()
        note_once("kind", "of this thread")
    assert told == ["of this thread"]
