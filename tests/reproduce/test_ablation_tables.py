"""The rows of the paper's tables: what each changes, and which of them share a training."""

import itertools
import json
from pathlib import Path

import pytest
import yaml
from paths import ROOT

from fgaseg import FGASeg
from fgaseg.reproduce.ablations.jobs import DEFAULT_ROW, NOISE_SEEDS, base_config, plan_jobs, row_config
from fgaseg.reproduce.ablations.tables import DEFAULT, TABLES, select_tables
from fgaseg.reproduce.demo import demo_config

BASE = demo_config(DEFAULT)
ROWS = {
    f"{name} {part.headings[0]} {' '.join(row.labels)}": row
    for name, table in TABLES.items()
    for part in table.parts
    for row in part.rows
}


def flat(data, prefix=""):
    items = (flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in data.items())
    return dict(itertools.chain.from_iterable(item.items() for item in items))


def values(row):
    return flat(row_config(BASE, row).dump())


def changed(row):
    """The keys in which a row's configuration differs from the default row's, with the row's values."""
    usual = values(DEFAULT_ROW)
    return {key: value for key, value in values(row).items() if value != usual[key]}


def column(name, number, key):
    return [values(row)[key] for row in TABLES[name].parts[number].rows]


def test_default_is_the_papers_default_row():
    model = row_config(BASE, DEFAULT_ROW).model
    assert (model.kernel_size, model.gamma_trainable, model.p2t_layers) == (3, True, 1)
    assert (model.t2p, model.lcs, model.kernel_norm, model.fusion, model.fast) == (True, True, "taps", "cat", False)
    assert model.encoder.finetune == "attention" and not changed(DEFAULT_ROW)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_changes_what_it_sets_and_nothing_else(row):
    given = {key: yaml.safe_load(value) for key, value in (switch.split("=") for switch in row.switches)}
    own = values(row)
    assert {key: own[key] for key in given} == given
    assert changed(row) == {key: value for key, value in given.items() if values(DEFAULT_ROW)[key] != value}


def test_the_tables_hold_the_papers_values():
    parts = [column("II", 0, f"model.{key}") for key in ("p2t_layers", "t2p", "lcs")]
    assert set(zip(*parts, strict=True)) == set(itertools.product((0, 1), (False, True), (False, True)))
    assert column("III", 0, "model.p2t_layers") == [0, 1]
    assert column("III", 1, "model.p2t_layers") == [0, 1, 2, 4, 6]
    gammas = zip(column("III", 2, "model.gamma_trainable"), column("III", 2, "model.gamma"), strict=True)
    assert list(gammas) == [(True, 0.1), (False, 0.1), (False, 0.5), (False, 1.0)]
    assert 0.02 in column("III", 3, "model.loss.lambda_align")
    assert column("IV", 0, "model.kernel_size") == [1, 3, 5, 7, 9, 11, 13, 15]
    assert set(column("IV", 0, "model.t2p_kernel_size")) == {3}
    assert column("IV", 1, "model.kernel_norm") == ["none", "taps", "channels"]
    decoders = zip(column("V", 0, "model.fast"), column("V", 0, "model.fusion"), strict=True)
    assert set(decoders) == set(itertools.product((True, False), ("cat", "add")))
    assert [row.top_k for row in TABLES["VI"].parts[0].rows] == [1, 4, 8, 16, 32]
    assert column("VII", 0, "model.encoder.finetune") == ["prompt", "attention", "full"]
    assert row_config(BASE, TABLES["VII"].parts[0].rows[0]).model.encoder.prompt_tokens == 16


def test_no_two_rows_of_a_part_are_one_configuration_and_claims_name_rows():
    for part in (part for table in TABLES.values() for part in table.parts):
        keys = [(json.dumps(changed(row), sort_keys=True), row.top_k) for row in part.rows]
        assert len(set(keys)) == len(keys)
        for claim in part.claims:
            assert {claim.better, claim.worse} <= {row.labels for row in part.rows}


def test_switches_reach_the_network():
    def head(name):
        return FGASeg(row_config(BASE, ROWS[name]).model).head

    none = head("II P2Tformer   ")
    assert not len(none.p2t.layers) and none.t2p is None and none.lcs is None
    assert len(head("III layers N 4").p2t.layers) == 4
    assert "gamma" not in dict(head("III γ fixed 0.5").p2t.named_parameters())
    assert head("IV kernel size 9").lcs.kernel_size == 9
    assert len(head("V decoder Fast+Add").aux_heads) == 1


# --- which rows are one training


def test_a_configuration_of_several_tables_is_trained_once(plan):
    jobs = plan([])
    folders = {job.folder for job in jobs.values()}
    assert len(folders) == 38 and len({job.file for job in jobs.values()}) == 38 + 5  # five values of top-k
    default = jobs[DEFAULT_ROW, 0].folder
    shared = ("II P2Tformer ✓ ✓ ✓", "III P2Tformer yes", "III layers N 1", "III γ trainable", "III λ_align 0.2",
              "IV kernel size 3", "IV kernel norm taps", "V decoder NoFast+Cat", "VII strategy attention",
              "LCS local cost taps zeros")  # fmt: skip
    assert {name for name, row in ROWS.items() if jobs[row, 0].folder == default} == set(shared)
    assert jobs[ROWS["VI top-k 4"], 0].folder == jobs[ROWS["V decoder Fast+Cat"], 0].folder
    assert [job.config.train.seed for job in itertools.islice(jobs.values(), 5)] == list(NOISE_SEEDS)


def test_the_folder_depends_on_what_decides_the_result_and_on_nothing_else(plan):
    def default(**changes):
        return plan(["VII"], **changes)[DEFAULT_ROW, 0].folder

    assert default() == default(overrides=["train.log_every=7", "data.workers=2"])
    others = [default(steps=6), default(overrides=["train.batch=4"]), default(overrides=["data.val_count=7"])]
    assert len({default(), *others}) == 4


def test_encoders_are_identified_by_content_not_by_path(tmp_path, plan):
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for file, content in zip(files, (b"one", b"one", b"two"), strict=True):
        file.write_bytes(content)
    a, b, c = (plan(["VII"], overrides=[f"model.encoder.pretrained={file}"])[DEFAULT_ROW, 0].folder for file in files)
    assert a == b != c


@pytest.mark.parametrize("name", ["scenes", "scenes_II"])
def test_results_of_earlier_versions_are_found_again(name):
    """The folders named in the published results are those that the same command would look into today."""
    published = json.loads((ROOT / "benchmarks" / "results" / f"ablation_{name}.json").read_text())
    seeds = published["seeds"]
    base, encoders = base_config("scenes", published["steps"], Path("out"), [])
    jobs = plan_jobs(select_tables(list(published["tables"])), base, encoders, seeds, Path("out"))
    for key, parts in published["tables"].items():
        for part, rows in zip(TABLES[key].parts, parts, strict=True):
            today = {row.labels: jobs[row, seeds[0]].folder.name for row in part.rows}
            assert rows and all(today[tuple(row["labels"])] == row["folder"] for row in rows)


def test_a_configuration_with_openais_encoders_can_be_planned():
    base, encoders = base_config(str(ROOT / "configs" / "vitb16.yaml"), 10, Path("out"), ["data.images=photos"])
    jobs = plan_jobs(select_tables(["VII"]), base, encoders, (0,), Path("out"))
    assert encoders is None and len({job.folder for job in jobs.values()}) == 5 + 2  # five seeds, two other rows
