"""The form of the code: who imports whom, how long files and functions are."""

import ast
from pathlib import Path

import pytest
from paths import ROOT

FILES = sorted([*ROOT.glob("fgaseg/**/*.py"), *ROOT.glob("kernels/**/*.py"), ROOT / "setup.py"])
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 500, 60


def names(files: list[Path]) -> list[str]:
    return [str(file.relative_to(ROOT)) for file in files]


@pytest.mark.parametrize("file", FILES, ids=names(FILES))
def test_files_and_functions_are_short(file):
    """Longer ones carry their reason: a comment with the word "long:" in the file's first lines or on the def line."""
    lines = file.read_text().splitlines()
    assert len(lines) <= LINES_OF_A_FILE or any("# long:" in line for line in lines[:10]), f"{len(lines)} lines"
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            reason = "# long:" in "".join(lines[node.lineno - 1 : node.body[0].lineno])
            assert length <= LINES_OF_A_FUNCTION or reason, f"line {node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize("file", (kernels := sorted(ROOT.glob("kernels/**/*.py"))), ids=names(kernels))
def test_kernels_need_nothing_of_the_model(file):
    """`import fgaseg.kernels` works without the packages that the model needs."""
    depth = len(file.relative_to(ROOT / "kernels").parts)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= depth, f"line {node.lineno}: leaves fgaseg.kernels"
            assert not (node.module or "").startswith("fgaseg.") or node.module.startswith("fgaseg.kernels")
