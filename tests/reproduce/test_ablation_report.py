"""The tables that are printed: claims judged against the noise between seeds."""

import json

import pytest
import scipy.stats

from fgaseg.reproduce.ablations import markdown
from fgaseg.reproduce.ablations.report import T95, repeated_runs, seed_noise
from fgaseg.reproduce.ablations.tables import TABLES


def table_v(miou, noise=None, seeds=(0,)):
    """Results of Table V; mIoU of each row, in percent, None for a row without a result."""
    rows = [
        {"labels": [label], "folder": label, "runs": [], **({"miou": {"val": value}} if value is not None else {})}
        for label, value in miou.items()
    ]
    spread = {"deviation": noise / 5, "degrees_of_freedom": 2, "counts": noise} if noise else None
    return {"command": "fgaseg ablate V", "machine": "abacus", "steps": 9, "seeds": list(seeds), "columns": ["val"],
            "default_row": {"0": {"val": 40.0}}, "noise": {"val": spread}, "tables": {"V": [rows]}}  # fmt: skip


@pytest.mark.parametrize(
    "other, noise, seeds, verdict",
    [
        (37.0, 2.0, (0,), "val +3.0 ± 2.0 (as in the paper)"),
        (43.0, 2.0, (0,), "val -3.0 ± 2.0 (**the other way**)"),
        (38.5, 2.0, (0,), "val +1.5 ± 2.0 (within the noise)"),
        (38.5, 2.0, (0, 1, 2, 3), "val +1.5 ± 1.0 (as in the paper)"),  # the mean of four runs varies half as much
        (37.0, None, (0,), "val +3.0 (noise unknown)"),
        (None, 2.0, (0,), "not both rows have a figure"),
    ],
)
def test_a_claim_of_the_paper_is_judged_against_the_noise(other, noise, seeds, verdict):
    miou = {"Fast+Cat": 40.0, "Fast+Add": 40.0, "NoFast+Cat": 40.0, "NoFast+Add": other}
    text = markdown(table_v(miou, noise, seeds))
    assert f"- Paper: decoder NoFast+Cat above decoder NoFast+Add (31.4 against 30.9). Here: {verdict}." in text
    assert "| decoder | val | paper: A-150 |\n| :-- | --: | --: |\n| Fast+Cat | 40.0 | 31.6 |" in text
    assert f"| NoFast+Add | {'–' if other is None else other} | 30.9 |" in text


def test_the_effect_of_a_switch_is_the_mean_over_all_settings_of_the_others():
    gains = {"P2Tformer": 1.0, "T2Ploss": -0.2, "Local cost": -4.0}
    table = TABLES["II"].parts[0]
    rows = []
    for row in table.rows:
        miou = 50.0 + sum(gain for gain, label in zip(gains.values(), row.labels, strict=True) if label)
        rows.append({"labels": list(row.labels), "folder": "", "runs": [], "miou": {"val": miou}})
    results = table_v({}, 2.0, (0, 1, 2, 3)) | {"tables": {"II": [rows]}}
    text = markdown(results)
    # a mean over four rows of four runs, less another: a quarter of what two single runs must differ by
    assert "- Effect of P2Tformer, mean over all settings of the others: val +1.0 ± 0.5 (as in the paper)." in text
    assert "- Effect of T2Ploss, mean over all settings of the others: val -0.2 ± 0.5 (within the noise)." in text
    assert "- Effect of Local cost, mean over all settings of the others: val -4.0 ± 0.5 (**the other way**)." in text
    del rows[3]["miou"]
    assert "Effects: not all rows have a figure." in markdown(results)
    decoders = dict.fromkeys(("Fast+Cat", "Fast+Add", "NoFast+Cat", "NoFast+Add"), 40.0)
    assert "Effect" not in markdown(table_v(decoders, 2.0))


def test_noise_is_the_pooled_deviation_between_seeds():
    assert seed_noise([[40.0], [50.0]]) is None
    one = seed_noise([[40.0, 42.0, 44.0]])
    assert one["deviation"] == pytest.approx(2.0) and one["degrees_of_freedom"] == 2
    assert one["counts"] == pytest.approx(2.0 * 2**0.5 * scipy.stats.t.ppf(0.975, 2), rel=1e-3)
    two = seed_noise([[40.0, 42.0, 44.0], [10.0, 16.0, 13.0], [99.0]])
    assert two["deviation"] == pytest.approx(((4 * 2 + 9 * 2) / 4) ** 0.5) and two["degrees_of_freedom"] == 4
    assert pytest.approx({n: scipy.stats.t.ppf(0.975, n) for n in T95}, abs=0.006) == T95


def test_runs_that_differ_only_in_the_seed_are_one_group(plan):
    jobs = plan(["VII"], seeds=(0, 1))
    for number, job in enumerate({job.file: job for job in jobs.values()}.values()):
        job.folder.mkdir()
        job.file.write_text(json.dumps({"scores": {"seen": {"miou_gt": 0.1 + 0.01 * number}}}))
    assert sorted(map(len, repeated_runs(jobs.values()))) == [2, 2, 5]  # prompt, full, and the default row's five seeds
