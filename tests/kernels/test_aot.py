"""Every GPU kernel compiles for every architecture within its committed budget."""

import json
import os
import subprocess
import sys

import pytest

from fgaseg.kernels import aot


@pytest.fixture(scope="module")
def rows():
    pytest.importorskip("triton")
    # in its own process: under TRITON_INTERPRET=1, which the other tests need, nothing can be compiled
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fgaseg.kernels.aot", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_everything_is_within_its_budget(rows):
    assert not [row for row in rows if row["verdict"] != "ok"]


def test_every_kernel_is_measured(rows):
    """Every row of the budget was measured, so no kernel can drop out of the table unnoticed."""
    measured = {tuple(row[name] for name in aot.KEY) for row in rows}
    expected = {key for key in aot.read_budget() if not (key[1] == "cuda" and aot.why_no_cuda())}
    assert measured == expected
    assert {"_lcs_conv_product", "_cosine_cost_volume"} <= {row["kernel"] for row in rows if row["matrix"]}


ROW = aot.Row("_k", "triton", "bf16", "sm_90", registers=64, shared=1024, spilled=0, matrix=8, wants_matrix=True)
BUDGET = {"registers": "64", "shared": "1024", "spilled": "0", "matrix": "8", "note": ""}


@pytest.mark.parametrize(
    "change, words",
    [
        ({}, "ok"),
        ({"registers": 72}, "registers 72 > 64"),
        ({"spilled": 16}, "spills 16 bytes and no note"),
        ({"shared": 300_000}, "shared memory above the 232448 bytes of sm_90"),
        ({"matrix": 0}, "no tensor-core instructions"),
        ({"configuration": "fp16"}, "no budget"),
    ],
)
def test_judges(change, words):
    key = tuple(getattr(ROW, name) for name in aot.KEY)
    row = aot.Row(**{**{name: getattr(ROW, name) for name in ROW.__dataclass_fields__}, **change})
    assert words in aot.judge(row, {key: BUDGET}).verdict


def test_refuses_to_run_under_the_interpreter(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        aot.main([])
    assert "unset it" in capsys.readouterr().err
