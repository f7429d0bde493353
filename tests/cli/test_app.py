"""`fgaseg app`: what it says before the page is there. The page itself: tests/app."""

import socket
import sys

import pytest

from fgaseg.cli import main


@pytest.fixture
def served(monkeypatch):
    """The page is built, but nothing waits for requests."""
    pytest.importorskip("gradio")
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)


def test_says_where_the_page_is(served, model, capsys):
    assert main(["app", "--model", model, "--port", "0", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("http://127.0.0.1:") and captured.err == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_warns_when_others_can_use_it(served, model, capsys, host):
    if host == "::" and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    assert main(["app", "--model", model, "--host", host, "--port", "0"]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_opens_a_browser_only_when_told_to(served, model, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    main(["app", "--model", model, "--port", "0"])
    assert opened == []
    main(["app", "--model", model, "--port", "0", "--open"])
    assert opened == [capsys.readouterr().out.splitlines()[-1].split()[0]]


def test_says_for_which_proxy(served, model, capsys):
    assert main(["app", "--model", model, "--port", "0", "--root-path", "/labels"]) == 0
    assert "for a proxy that shows it below /labels" in capsys.readouterr().out


def test_names_the_extra_that_is_missing(model, monkeypatch, capsys):
    for package in ("gradio", "fastapi", "starlette", "uvicorn"):  # a plain installation has none of them
        monkeypatch.setitem(sys.modules, package, None)
    assert main(["app", "--model", model]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'fgaseg[app]'" in line


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--model", "no/such/folder/at all"], "no such file or folder"),
        (["--model", "cat-seg-b61"], "no model has this name"),
        (["--model", "."], "config.json: is missing"),
        (["--port", "70000"], "--port 70000"),
        (["--port", "-1"], "--port -1"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: is no address"),
        (["--host", "localhost:8000"], "the port goes to --port"),
        (["--host", ""], "--host : is no address (it is empty)"),
        (["--host", "." + 70 * "x"], "is no address"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 7860: cannot be used"),
        (["--root-path", "labels"], "--root-path labels: give a path such as /labels"),
        (["--device", "cuda:77"], "device cuda:77"),
        (["photo.jpg"], "'photo.jpg' is not a key=value override"),
        (["infrence=windows"], "inference"),
    ],
)
def test_mistakes_are_told_in_one_line(served, model, words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [] if "--model" in words else ["--model", model]
    assert main(["app", *given, *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fgaseg app: ") and expected in line


def test_a_port_that_is_taken(served, model, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["app", "--model", model, "--port", str(port)]) == 1
    assert f"--port {port}: cannot be used (Address already in use)" in capsys.readouterr().err
