"""The paper's ablations: rows that change what they say, trained once, resumed, and told honestly."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import scipy.stats
import yaml
from tiny import ARCHITECTURE

import fgaseg.reproduce.ablations
from fgaseg import FGASeg
from fgaseg.cli import main
from fgaseg.errors import NotFiniteError, TrainingError
from fgaseg.reproduce.ablations import DEFAULT, NOISE_SEEDS, T95, TABLES, Job, Row, markdown, row_config, run_ablations
from fgaseg.reproduce.demo import demo_config

BASE = demo_config(list(DEFAULT))
ROWS = {
    f"{name} {part.headings[0]} {' '.join(row.labels)}": row
    for name, table in TABLES.items()
    for part in table.parts
    for row in part.rows
}
MODEL = {
    "encoder": {"architecture": ARCHITECTURE, "finetune": "scratch"}, "image_size": 32, "hidden": 32, "heads": 2,
    "aggregation_layers": 1, "window": 4, "guidance_channels": [16, 16], "guidance_hidden": [8, 8],
    "decoder_channels": [16, 16], "p2t_heads": 2,
}  # fmt: skip


@pytest.fixture
def tiny(tmp_path):
    """A configuration that trains its encoders from scratch, in seconds."""
    file = tmp_path / "tiny.yaml"
    data = {"scenes": True, "crop": 32, "val_count": 2}
    recipe = {"steps": 3, "batch": 2, "lr": 1e-3, "classes_per_step": 4, "log_every": 1, "warmup": 2}
    file.write_text(yaml.safe_dump({"model": MODEL, "data": data, "train": recipe}))
    return str(file)


def flat(data, prefix=""):
    items = (flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in data.items())
    return dict(itertools.chain.from_iterable(item.items() for item in items))


def changed(row):
    """What a row's configuration has unlike the default row's."""
    usual, own = (flat(row_config(BASE, one).dump()) for one in (Row(()), row))
    return {key: own[key] for key in own if own[key] != usual[key]}


def test_default_is_the_papers_default_row():
    model = row_config(BASE, Row(())).model
    assert (model.kernel_size, model.gamma_trainable, model.p2t_layers) == (3, True, 1)
    assert (model.t2p, model.lcs, model.kernel_norm, model.fusion, model.fast) == (True, True, "taps", "cat", False)
    assert model.encoder.finetune == "attention" and not changed(Row(()))


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_changes_what_it_sets_and_nothing_else(row):
    given = {key: yaml.safe_load(value) for key, value in (switch.split("=") for switch in row.switches)}
    own = flat(row_config(BASE, row).dump())
    assert {key: own[key] for key in given} == given
    assert changed(row) == {k: v for k, v in given.items() if flat(row_config(BASE, Row(())).dump())[k] != v}


def test_the_tables_hold_the_papers_values():
    def column(name, number, key):
        return [flat(row_config(BASE, row).dump())[key] for row in TABLES[name].parts[number].rows]

    parts = [column("II", 0, f"model.{key}") for key in ("p2t_layers", "t2p", "lcs")]
    assert list(zip(*parts, strict=True)) == [
        (0, False, False), (1, False, False), (1, True, False), (1, False, True), (1, True, True)]  # fmt: skip
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
    prompt = row_config(BASE, TABLES["VII"].parts[0].rows[0])
    assert prompt.model.encoder.prompt_tokens == 16
    for part in (part for table in TABLES.values() for part in table.parts):
        keys = [(json.dumps(changed(row), sort_keys=True), row.top_k) for row in part.rows]
        assert len(set(keys)) == len(keys), "two rows of one part are one configuration"
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


def jobs_of(names, tmp_path, seeds=(0,), steps=5, overrides=()):
    base, start = fgaseg.reproduce.ablations._base("scenes", steps, tmp_path, overrides)
    return fgaseg.reproduce.ablations._jobs(fgaseg.reproduce.ablations._tables(names), base, start, seeds, tmp_path)


def test_a_configuration_of_several_tables_is_trained_once(tmp_path):
    jobs = jobs_of([], tmp_path)
    folders = {job.folder for job in jobs.values()}
    assert len(folders) == 33 and len({job.file for job in jobs.values()}) == 33 + 5  # five top-k
    default = jobs[Row(()), 0].folder
    shared = ("II P2Tformer ✓ ✓ ✓", "III P2Tformer yes", "III layers N 1", "III γ trainable", "III λ_align 0.2",
              "IV kernel size 3", "IV kernel norm taps", "V decoder NoFast+Cat", "VII strategy attention")  # fmt: skip
    assert {name for name, row in ROWS.items() if jobs[row, 0].folder == default} == set(shared)
    assert jobs[ROWS["VI top-k 4"], 0].folder == jobs[ROWS["V decoder Fast+Cat"], 0].folder
    assert [job.config.train.seed for job in itertools.islice(jobs.values(), 5)] == list(NOISE_SEEDS)


def test_a_training_is_another_when_anything_that_decides_its_result_is(tmp_path):
    def default(**changes):
        return jobs_of(["VII"], tmp_path, **changes)[Row(()), 0].folder

    assert default() == default(overrides=["train.log_every=7", "data.workers=2"])
    others = [default(steps=6), default(overrides=["train.batch=4"]), default(overrides=["data.val_count=7"])]
    assert len({default(), *others}) == 4


def test_the_encoders_are_known_by_their_content_not_their_place(tmp_path):
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    for file, content in zip(files, (b"one", b"one", b"two"), strict=True):
        file.write_bytes(content)
    a, b, c = (
        jobs_of(["VII"], tmp_path, overrides=[f"model.encoder.pretrained={file}"])[Row(()), 0].folder for file in files
    )
    assert a == b != c


# --- running


def test_rows_of_a_tiny_model_from_encoders_trained_first(tiny, tmp_path, capsys):
    command = ["ablate", "v", "VI", "--on", tiny, "--out", str(tmp_path / "out"), "--steps", "2", "--json"]
    assert main(command) == 0
    results = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    rows = {line["labels"][0]: line for part in results["tables"]["V"] for line in part}
    assert set(rows) == {"Fast+Cat", "Fast+Add", "NoFast+Cat", "NoFast+Add"}
    assert all(set(line["miou"]) == {"seen", "unseen"} for line in rows.values())
    pruned = results["tables"]["VI"][0]
    assert [line["folder"] for line in pruned] == [rows["Fast+Cat"]["folder"]] * 5
    assert all(line["milliseconds"]["seen"] > 0 for line in pruned)
    assert pruned[2]["miou"] == rows["Fast+Cat"]["miou"]  # k = 8 is how that row was scored
    assert len(results["default_row"]) == 5 and results["noise"]["seen"]["degrees_of_freedom"] == 4
    encoders = tmp_path / "out" / results["encoders"]["folder"]
    assert json.loads((encoders / "summary.json").read_text())["steps"] == results["encoders"]["steps"] == 3
    start = yaml.safe_load((tmp_path / "out" / rows["NoFast+Add"]["folder"] / "config.yaml").read_text())
    assert start["model"]["encoder"]["pretrained"] == str(encoders / "model") and start["train"]["steps"] == 2
    assert not list((tmp_path / "out").rglob("checkpoint"))
    text = (tmp_path / "out" / "tables.md").read_text()
    assert text == markdown(results) and "trained alone for 3 steps" in text and "## Table VI" in text
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("summary.json")}
    assert main(command) == 0  # nothing is trained again
    assert json.loads(capsys.readouterr().out) == results
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("summary.json")}


def test_killed_in_a_row_it_goes_on_there_and_ends_alike(tiny, tmp_path, capsys):
    arguments = ["ablate", "VII", "--on", tiny, "--steps", "8", "train.save_every=2", "data.val_count=1"]
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "fgaseg", *arguments, "--out", str(out)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip

    def in_the_middle_of_a_later_row():
        done = {file.parent for file in out.glob("*/result.json")}
        return len(done) >= 2 and any(folder.parent not in done for folder in out.glob("*/checkpoint"))

    while not in_the_middle_of_a_later_row():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {file: file.stat().st_mtime_ns for file in out.glob("*/result.json")}
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    told = capsys.readouterr()
    assert "resuming" in told.err
    assert all(file.stat().st_mtime_ns == written for file, written in finished.items())
    assert main([*arguments, "--out", str(tmp_path / "whole"), "--json"]) == 0
    assert not list(tmp_path.glob("*/*/checkpoint*"))  # nor the last but one
    whole, killed = json.loads(capsys.readouterr().out), json.loads(told.out)
    assert [line["miou"] for line in killed["tables"]["VII"][0]] == [line["miou"] for line in whole["tables"]["VII"][0]]


def test_a_row_that_another_process_is_at_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(fgaseg.reproduce.ablations, "train", None)  # training here would fail
    monkeypatch.setattr(fgaseg.reproduce.ablations.time, "sleep", lambda _: wait(0.05))
    wait = threading.Event().wait
    job = Job(tmp_path / "row", BASE)

    def other():
        with fgaseg.reproduce.ablations._alone(job.folder) as free:
            assert free
            held.set()
            wait(0.3)
            job.file.write_text('{"scores": {}}')

    held = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    assert [
        one.result for one in fgaseg.reproduce.ablations._finish([job], fgaseg.reproduce.ablations.Console(stderr=True))
    ] == [{"scores": {}}]
    thread.join()


def test_a_row_that_diverges_is_said_to_have_failed_and_the_others_go_on(tiny, tmp_path, monkeypatch, capsys):
    train = fgaseg.reproduce.ablations.train

    def diverging(config):
        if config.model.kernel_norm == "none":
            raise NotFiniteError("step 3: loss or gradient is not finite")
        return train(config)

    monkeypatch.setattr(fgaseg.reproduce.ablations, "train", diverging)
    # one seed, one small table
    monkeypatch.setattr(fgaseg.reproduce.ablations, "NOISE_SEEDS", ())
    monkeypatch.setitem(TABLES, "IV", fgaseg.reproduce.ablations.Table("Table IV", TABLES["IV"].parts[1:]))
    results = run_ablations(["IV"], tiny, 1, out=tmp_path / "out")
    none, taps, channels = results["tables"]["IV"][0]
    assert "not finite" in none["failed"] and taps["miou"] and channels["miou"]
    text = capsys.readouterr().out
    assert "| none | failed | failed | 29.4 |" in text and "not both rows have a figure" in text
    assert "Noise of seen: not known, one seed only" in text


def test_a_row_that_can_be_resumed_has_not_failed(tmp_path, monkeypatch):
    def dying(config):
        raise TrainingError("a loader worker died before step 3")

    monkeypatch.setattr(fgaseg.reproduce.ablations, "train", dying)
    job = Job(tmp_path / "row", BASE)
    with pytest.raises(TrainingError, match="worker died"):
        list(fgaseg.reproduce.ablations._finish([job], fgaseg.reproduce.ablations.Console(stderr=True)))
    assert job.result is None


@pytest.mark.parametrize(
    "arguments, message",
    {
        "unknown table": (["VIII"], "table 'VIII': there is none of that name; give some of II, III, IV, V, VI, VII"),
        "no steps": (["II", "--steps", "0"], "--steps 0"),
        "its own key": (["II", "train.seed=3"], "use --out, --seed and --steps"),
        "misspelt key": (["II", "train.btach=3"], "train.batch"),
        "no file": (["II", "--on", "nowhere.yaml"], "nowhere.yaml"),
    }.values(),
)
def test_a_mistake_is_one_line_and_nothing_is_written(arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["ablate", *arguments, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("fgaseg ablate: ") and "Traceback" not in error
    assert not out.exists()


def test_torchrun_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["ablate", "II", "--out", str(tmp_path)]) == 1
    assert "several processes with one --out" in capsys.readouterr().err


# --- tables


def fabricated(miou, noise=None, seeds=(0,)):
    """Results of Table V; mIoU of each row, in percent."""
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
        (37.0, 2.0, (0,), "val +3.0 (as in the paper)"),
        (43.0, 2.0, (0,), "val -3.0 (**the other way**)"),
        (38.5, 2.0, (0,), "val +1.5 (within the noise)"),
        (38.5, 2.0, (0, 1, 2, 3), "val +1.5 (as in the paper)"),  # the mean of four runs varies half as much
        (37.0, None, (0,), "val +3.0 (noise not known)"),
        (None, 2.0, (0,), "not both rows have a figure"),
    ],
)
def test_a_claim_of_the_paper_is_judged_against_the_noise(other, noise, seeds, verdict):
    miou = {"Fast+Cat": 40.0, "Fast+Add": 40.0, "NoFast+Cat": 40.0, "NoFast+Add": other}
    text = markdown(fabricated(miou, noise, seeds))
    assert f"- Paper: decoder NoFast+Cat above decoder NoFast+Add (31.4 against 30.9). Here: {verdict}." in text
    assert "| decoder | val | paper: A-150 |\n| :-- | --: | --: |\n| Fast+Cat | 40.0 | 31.6 |" in text
    assert f"| NoFast+Add | {'–' if other is None else other} | 30.9 |" in text


def test_noise_is_the_pooled_deviation_between_seeds():
    assert fgaseg.reproduce.ablations._noise([[40.0], [50.0]]) is None
    one = fgaseg.reproduce.ablations._noise([[40.0, 42.0, 44.0]])
    assert one["deviation"] == pytest.approx(2.0) and one["degrees_of_freedom"] == 2
    assert one["counts"] == pytest.approx(2.0 * 2**0.5 * scipy.stats.t.ppf(0.975, 2), rel=1e-3)
    two = fgaseg.reproduce.ablations._noise([[40.0, 42.0, 44.0], [10.0, 16.0, 13.0], [99.0]])
    assert two["deviation"] == pytest.approx(((4 * 2 + 9 * 2) / 4) ** 0.5) and two["degrees_of_freedom"] == 4
    assert pytest.approx([scipy.stats.t.ppf(0.975, n) for n in range(1, 11)], abs=0.006) == T95


def test_runs_that_differ_in_the_seed_alone_are_the_noise(tmp_path):
    jobs = jobs_of(["VII"], tmp_path, seeds=(0, 1))
    for number, job in enumerate({job.file: job for job in jobs.values()}.values()):
        job.folder.mkdir()
        job.file.write_text(json.dumps({"scores": {"seen": {"miou_gt": 0.1 + 0.01 * number}}}))
    groups = fgaseg.reproduce.ablations._repeated(jobs.values())
    assert sorted(map(len, groups)) == [2, 2, 5]  # prompt, full, and the default row, which has more seeds
