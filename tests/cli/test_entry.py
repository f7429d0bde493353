"""The parts around every command: messages, warnings, errors, exit statuses."""

import logging
import signal
import warnings

import pytest

from fgaseg import errors
from fgaseg.cli import info, main


def run_in_place_of_info(monkeypatch, run):
    monkeypatch.setattr(info, "run", run)
    return main(["info"])


def speak(_):
    logging.getLogger("fgaseg.training").info("step 20 of 100")
    logging.getLogger("fgaseg.training").debug("not shown")
    warnings.warn("a doubtful input", stacklevel=1)


def test_the_library_speaks_in_plain_lines_on_stderr(monkeypatch, capsys):
    assert run_in_place_of_info(monkeypatch, speak) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines() == ["step 20 of 100", "note: a doubtful input"]
    logger = logging.getLogger("fgaseg")
    assert logger.level == logging.NOTSET and not logger.handlers  # nothing is left behind for who calls main()


def test_other_ranks_are_silent(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert run_in_place_of_info(monkeypatch, speak) == 0
    assert capsys.readouterr().err == ""


ERRORS = [getattr(errors, name) for name in dir(errors) if name.endswith("Error") and name != "FGASegError"]


@pytest.mark.parametrize("error", [*ERRORS, FileNotFoundError, FloatingPointError])
def test_an_expected_error_is_one_line_and_status_1(error, monkeypatch, capsys):
    def fail(_):
        raise error("what is wrong; what to do")

    assert run_in_place_of_info(monkeypatch, fail) == 1
    assert capsys.readouterr().err == "fgaseg info: what is wrong; what to do\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(_):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run_in_place_of_info(monkeypatch, fail)


@pytest.mark.parametrize(
    "error, status, text",
    [
        (KeyboardInterrupt(), 130, ""),
        (errors.Interrupted("saved; resume with the same command", signal.SIGTERM), 143,
         "saved; resume with the same command\n"),
    ],
)  # fmt: skip
def test_an_interruption_gives_the_status_of_its_signal(error, status, text, monkeypatch, capsys):
    def fail(_):
        raise error

    assert run_in_place_of_info(monkeypatch, fail) == status
    assert capsys.readouterr().err == text
