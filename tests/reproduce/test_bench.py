"""`fgaseg bench` as a user runs it, on the smallest shape; and what it draws."""

import csv
import json

import pytest
from PIL import Image

from fgaseg.cli import main
from fgaseg.reproduce.benchmarks import clock, plot

ROW = {"op": "lcs_conv", "pass": "forward", "device": "a machine", "dtype": "float32", "torch": "2", "ms_p50": "1.5"}


def test_bench_measures_and_writes(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # under it, pytest-benchmark measures nothing
    assert main(["bench", "cosine_cost_volume", "--shapes", "S8", "--json", "--out", str(tmp_path / "out")]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert rows == list(csv.DictReader((tmp_path / "out.csv").open(newline="")))
    assert {row["provider"] for row in rows} >= {"reference", "torch.compile"}
    for row in rows:
        assert not row["disagreement"] and float(row["error"]) < 1e-5 and float(row["ms_p50"]) > 0
        assert row["device"] and row["torch"] and row["commit"] and float(row["copy_percent"]) > 0


def test_an_unknown_op_is_refused(tmp_path, capsys):
    assert main(["bench", "lcs", "--out", str(tmp_path / "out")]) != 0
    assert "no benchmark 'lcs'; there are class_attention, cosine_cost_volume" in capsys.readouterr().err


def test_a_row_that_disagrees_has_no_time():
    assert clock({"ms_p50": "", "device_ms": ""}) is None and clock({"ms_p50": "2", "device_ms": "0.5"}) == 0.5


@pytest.mark.parametrize("shapes, drawn", [(["T=1", "T=20", "K=3"], True), (["S1", "T=20 shift=6"], False)])
def test_the_plot_shows_the_sweeps(tmp_path, shapes, drawn):
    pytest.importorskip("matplotlib")
    plot([{**ROW, "shape": shape, "provider": "cpp"} for shape in shapes], tmp_path / "out.png")
    assert (tmp_path / "out.png").exists() == drawn
    if drawn:
        assert min(Image.open(tmp_path / "out.png").size) > 300
