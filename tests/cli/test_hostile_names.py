"""Names of files, classes and tensors are others': none of them moves the cursor, paints or computes."""

import ast
import csv
import json
import os
import shutil

import pytest
from paths import ROOT
from rich.table import Table

from fgaseg.cli.data_set_files import data_set_texts
from fgaseg.cli.entry import main
from fgaseg.cli.printing import say
from fgaseg.cli.tables import VisibleConsole, console, scores_table
from fgaseg.errors import DataError, FGASegError, VocabularyError
from fgaseg.evaluation import Scores
from fgaseg.evaluation.scores import ClassScore
from fgaseg.progress import track
from fgaseg.visible import visible
from fgaseg.vocabulary import check_names

PAINT = "\x1b[2J\x1b[31m\x07\x9b5m\u202e"
MARKUP = "[bold red]cat[/] [link=http://x]y[/link] :smile:"


def is_plain(text):
    return all(line.isprintable() for line in text.split("\n"))


def test_what_is_hidden_is_shown_and_languages_are_left_alone():
    assert visible("a\x1b[31m\tb\nc\x9b\u202e\udcff") == r"a\x1b[31m\tb\nc\x9b\u202e\udcff"
    assert visible("a\nb\r", lines=True) == "a\nb\\r"
    plain = "стул, 椅子, كرسي, नमस्ते, می\u200cخواهم, 👩\u200d🚒, naïve, a\\x1b"
    assert visible(plain) == plain
    assert visible(visible(PAINT)) == visible(PAINT)


def test_lines_and_tables_are_plain(capsys):
    say(f"one {PAINT}", "a\nb")
    say(PAINT, error=True)
    row = ClassScore(PAINT + MARKUP, 1, 2, 3)
    console(200).print(scores_table(Scores(1, [row]), PAINT + MARKUP))
    table = Table(MARKUP, PAINT, title=MARKUP)
    table.add_row(PAINT, MARKUP)
    console(200).print(table, PAINT, MARKUP)
    out, err = capsys.readouterr()
    assert is_plain(out) and is_plain(err) and out.startswith("one \\x1b[2J") and "a\\nb\n" in out
    assert out.count("[bold red]cat[/] [link=http://x]y[/link] :smile:") >= 4


def test_on_a_terminal_only_our_own_colours_are_escapes(monkeypatch):
    from io import StringIO

    terminal = VisibleConsole(file=StringIO(), force_terminal=True, color_system="standard", width=200, markup=False)
    table = Table("head")
    table.add_row(PAINT, style="red")
    terminal.print(table)
    text = terminal.file.getvalue()
    assert "\x1b[2J" not in text and "\\x1b[2J" in text and "\x1b[31m" in text  # the last is ours


def test_messages_logs_and_progress(capsys, caplog):
    assert is_plain(str(FGASegError(f"{PAINT}: two\nlines"))) and "\n" in str(FGASegError("two\nlines"))
    import logging
    import warnings

    from fgaseg.cli.entry import _messages_to_stderr

    with _messages_to_stderr():
        logging.getLogger("fgaseg.data").warning("%s is odd", PAINT)
        warnings.warn(PAINT, stacklevel=1)
    list(track([1, 2], PAINT + MARKUP, 2))
    err = capsys.readouterr().err
    assert is_plain(err) and err.count("\\x1b[2J") >= 2


def test_photos_with_names_that_paint(model, photo, tmp_path, capsys):
    names = [f"a{PAINT}.png", "b\nfgaseg: all is well.png", "c[red].png", "d\udcff.png"]
    for name in names:
        shutil.copy(photo, os.fsencode(str(tmp_path / name)))
    (tmp_path / f"e{PAINT}.png").write_text("no photo")
    photos = [str(tmp_path / name) for name in (*names, f"e{PAINT}.png")]
    assert main(["segment", *photos, "--model", model, "--classes", "cat, dog", "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert is_plain(out) and is_plain(err) and out.count("\n") == 4
    assert "b\\nfgaseg" in out and "\\udcff" in out and "\\x1b[2J" in err


def test_weights_and_configurations_that_paint(model, photo, tmp_path, capsys):
    folder = tmp_path / f"m{PAINT}"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    for change in ({PAINT: 1}, {"fusion": PAINT}, {"model_type": PAINT}, {"template": PAINT}):
        (folder / "config.json").write_text(json.dumps(config | change))
        assert main(["segment", photo, "--model", str(folder), "--classes", "cat"]) == 1
    out, err = capsys.readouterr()
    assert is_plain(out) and is_plain(err) and "\\x1b[2J" in err


def test_class_names(model, photo, tmp_path, capsys):
    """Line breaks are those of files of lines; other control characters have no place in a name."""
    for names in (["cat\n", "\tdog"], [["cat", "pet\n"], "dog"], {"cat\n": ["cat", "pet"], "dog": "dog"}):
        assert [one.name for one in check_names(names)] == ["cat", "dog"]
    assert check_names(["traffic\n light"])[0].prompts == ("traffic  light",)
    for name in ("cat\x1b[2J", "\x00", "a\u202eb", "a\x9b", "a\ud800"):
        with pytest.raises(VocabularyError, match=r"entry 1, .*holds the control character .*plain text") as caught:
            check_names(["dog", name])
        assert is_plain(str(caught.value))
    assert main(["segment", photo, "--model", model, "--classes", "cat, d\x9b\u202e"]) == 1
    assert "control character" in (err := capsys.readouterr().err) and is_plain(err)
    for suffix, text in {".txt": "dog\ncat\x9b\u202e\n", ".json": json.dumps(["dog", "cat\x9b\u202e"]),
                         ".yaml": 'names: ["dog", "cat\\a"]'}.items():  # fmt: skip
        file = tmp_path / f"names{suffix}"
        file.write_text(text)
        assert main(["segment", photo, "--model", model, "--names", str(file)]) == 1
        assert f"names{suffix}" in (err := capsys.readouterr().err) and "control character" in err and is_plain(err)
        with pytest.raises(DataError):
            from fgaseg.data import read_names

            read_names(file)


def test_spreadsheets_compute_nothing(tmp_path):
    names = ["=1+1", "+x", "-x", "@SUM(A1)", "cat", "=cmd|' /C calc'!A0", "a,b", "x\x1b[2J\ny", "\udcff"]
    rows = [ClassScore(name, 1, 2, 3) for name in names]
    import torch

    scores = Scores(1, rows, None, torch.ones(len(names), len(names), dtype=torch.int64),
                    {"=photo": Scores(1, rows)})  # fmt: skip
    scores.write_csv(tmp_path / "classes.csv")
    scores.write_images_csv(tmp_path / "images.csv")
    scores.write_confusion_csv(tmp_path / "confusion.csv")
    for file in tmp_path.iterdir():
        for row in csv.reader(file.read_text(encoding="utf-8").splitlines()):
            for cell in row:
                assert not cell.startswith(("=", "+", "@")) and not cell.startswith("-x") and is_plain(cell), file
    first = [row[0] for row in csv.reader((tmp_path / "classes.csv").read_text().splitlines())]
    assert first[1:6] == ["'=1+1", "'+x", "'-x", "'@SUM(A1)", "cat"]


def test_readme_of_a_data_set_has_no_html_of_others():
    name = "<img src=x onerror=alert(1)>|& {labels}"
    text = "".join(data_set_texts([name], check_names([[name.replace("|", " ")]]), {"model": name})["README.md"])
    assert "<img" not in text and text.count("&lt;img src=x onerror=alert(1)&gt;\\|&amp; {labels}") == 2


def test_one_place_prints():
    """What a command prints goes through `say`, `say_json` and `console`, which escape."""
    for file in sorted((ROOT / "fgaseg").glob("**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                assert file.name == "printing.py", where
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.attr == "write":
                assert node.value.attr not in ("stdout", "stderr"), where
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console":
                assert file.name in ("progress.py", "reporting.py"), where
