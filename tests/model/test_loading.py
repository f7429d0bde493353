"""`fgaseg.load`: every way to name a model, what is in the cache afterwards, and what mistakes are answered."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from catseg import catseg_file, catseg_model
from huggingface_hub import cached_assets_path, constants
from tiny import NAMES, tiny_model

import fgaseg
from fgaseg.errors import CheckpointError, ConfigError, UsageError
from fgaseg.model import cache_place, converted_folder, read_record
from fgaseg.weights import MODELS

SPACE = "spaces/hamacojr/CAT-Seg-weights"


@pytest.fixture(scope="module")
def catseg():
    """A made-up published model, and its file."""
    model = catseg_model()
    return model, catseg_file(model)


@pytest.fixture
def published(hub, catseg, monkeypatch):
    """The Space of CAT-Seg with made-up files."""
    data = catseg[1]
    repo = hub.add(SPACE, {"README.md": b"---\nsdk: gradio\n---\n", "model_base.pth": data})
    monkeypatch.setitem(MODELS, "cat-seg-b16", replace(MODELS["cat-seg-b16"], sha256=sha256(data).hexdigest()[:8]))
    return repo


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_name_is_fetched_converted_and_then_needs_no_network(hub, published, catseg, monkeypatch, caplog):
    model = fgaseg.load("cat-seg-b16")
    same(model, catseg[0])
    assert not model.training and model.config.inference == "windows"
    (said,) = [record.message for record in caplog.records if "licence" in record.message]
    assert "spaces/hamacojr/CAT-Seg-weights/model_base.pth, 15 MB" in said and "none stated for the weights" in said
    folder = cache_place(MODELS["cat-seg-b16"])
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors",
                                                              "source.json"]  # fmt: skip
    record = read_record(folder)
    assert record["sha256"] == sha256(catseg[1]).hexdigest() and record["size"] == len(catseg[1])
    assert 'fgaseg.load("cat-seg-b16")' in (folder / "README.md").read_text()
    assert record["commit"] == published.commit and record["repo_type"] == "space"
    # nothing else is left: no original, no part, no temporary folder
    assert [path.name for path in folder.parent.iterdir() if path != folder] == [".main.lock"]
    assert not list(hub.cache.glob("spaces--*"))
    hub.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    same(fgaseg.load("cat-seg-b16"), catseg[0])
    same(fgaseg.FGASeg.from_pretrained(folder), catseg[0])


def test_the_place_is_the_hubs_own_for_assets(hub):
    model = MODELS["cat-seg-b16"]
    theirs = cached_assets_path("fgaseg", "spaces--hamacojr--CAT-Seg-weights", "model_base.pth", assets_dir=hub.assets)
    assert cache_place(model).parent == theirs and cache_place(model, "refs/pr/1").name == "refs-pr-1"


@pytest.mark.parametrize(
    "source",
    ["CAT-Seg-B16", "cat_seg_b16", " Cat Seg B16 ", f"{SPACE}/model_base.pth",
     "hamacojr/cat-seg-weights/model_base.pth",
     "https://huggingface.co/spaces/hamacojr/CAT-Seg-weights/blob/main/model_base.pth",
     "https://huggingface.co/spaces/hamacojr/CAT-Seg-weights/resolve/main/model_base.pth?download=true",
     "huggingface.co/spaces/hamacojr/CAT-Seg-weights/resolve/main/model_base.pth",
     "hf://spaces/hamacojr/CAT-Seg-weights/model_base.pth", "cat-seg-b16@main", f"cat-seg-b16@{'a' * 40}"],
)  # fmt: skip
def test_other_spellings_of_a_name(published, catseg, source):
    same(fgaseg.load(source), catseg[0])


MISTAKES = {
    "cat-seg-b6": r"'cat-seg-b6': no model has this name, and nothing here does; did you mean cat-seg-b16",
    "catseg": "did you mean cat-seg",
    "sam3": r"known names are cat-seg-b16, cat-seg-l14, pi-seg-v1, pi-seg-v2, declip-eva-b16, clip-b16, clip-l14",
    "hamacojr/CAT-Seg": "is CAT-Seg of 2023, with a second image backbone .* use its successor, cat-seg-b16 or cat-seg",
    "hamacojr/CAT-Seg/model_final_base.pth": "CAT-Seg of 2023",
    "https://huggingface.co/hamacojr/CAT-Seg/blob/main/model_final_large.pth": "CAT-Seg of 2023",
    "hamacojr/CAT-Seg-weights": "holds several models; give cat-seg-b16 or cat-seg-l14",
    "spaces/hamacojr/CAT-Seg-weights/model_huge.pth": "model_huge.pth: no such file there; .*/tree/main lists",
    "hamacojr/CAT-Seg-weights/model_giant.pth": "model_giant.pth: no such file there; .*/spaces/hamacojr/CAT-Seg-w",
    "openai/clip": r"openai/clip: not an fgaseg model .its model_type is 'clip'.; .*`fgaseg models` lists",
    "someone/else": r"someone/else/config.json: no such file there; .*/someone/else/tree/main lists",
    "no/body": "no/body/config.json: there is no model of this name at http.*, or it is private",
    "datasets/someone/else": "is a data set, not a model",
    "https://example.com/model.pth": "not an address of the Hugging Face Hub; fetch the file and give its path",
    "./nowhere": "./nowhere: no such file or folder",
    "/nowhere/at/all": "/nowhere/at/all: no such file or folder",
    "~/nowhere.pth": "~/nowhere.pth: no such file or folder",
    "model_final.pth": r"model_final.pth: no such file or folder",
    "runs/mine/model": "runs/mine/model: no such file or folder",
    "owner/name/notes.txt": "no such file or folder",
    "here/modle": "here/modle: no such file or folder; here holds README.md, config.json, model.safetensors",
    "cat-seg-b16@": "a branch, tag or commit is missing after the @",
    "cat-seg-b16@v9": "model_base.pth@v9: there is no such revision",
    "": "no model has this name",
    "~nobody/model": "~nobody/model: no such file or folder",
    "clip-b16@main": "clip-b16: its weights come by a tag of open_clip, without revisions",
    "photos": r"photos/config.json: is missing: give the folder of a saved model",
    "checkpoints": r"checkpoints: has no config.json: give the folder of .* such as checkpoints/x.pth",
    "recipe.yaml": "recipe.yaml: is no model; give the folder of a saved model",
}


@pytest.mark.parametrize("source", MISTAKES)
def test_a_mistake_is_one_line_that_helps(hub, published, tmp_path, monkeypatch, source):
    hub.add("openai/clip", {"config.json": b'{"model_type": "clip"}', "model.safetensors": bytes(2000)})
    hub.add("someone/else", {"pytorch_model.bin": bytes(2000)})
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("here")
    for folder in ("photos", "checkpoints"):
        (tmp_path / folder).mkdir()
    (tmp_path / "checkpoints" / "x.pth").touch()
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(CheckpointError, match=MISTAKES[source]) as caught:
        fgaseg.load(source)
    assert "\n" not in str(caught.value)


def test_what_is_on_the_disk_comes_first(hub, catseg, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    model, data = catseg
    mine = tiny_model()
    mine.save_pretrained("cat-seg-b16")
    same(fgaseg.load("cat-seg-b16"), mine)
    assert "the one in this folder is used" in caplog.text
    mine.save_pretrained("run/model")
    for source in ("run", "run/model", tmp_path / "run/model", "run/model/model.safetensors", "run/model/config.json"):
        same(fgaseg.load(source), mine)
    (tmp_path / "model_base.pth").write_bytes(data)
    same(fgaseg.load("model_base.pth"), model)
    assert fgaseg.load("model_base.pth", "inference=whole").config.inference == "whole"
    monkeypatch.setenv("HOME", str(tmp_path))
    same(fgaseg.load("~/run"), mine)
    with pytest.raises(CheckpointError, match="leave revision out"):
        fgaseg.load("run", revision="main")
    assert hub.seen.total() == 0


def test_a_saved_model_on_the_hub(hub, tmp_path):
    mine = tiny_model()
    mine.save_pretrained(tmp_path / "m")
    files = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    repo = hub.add("me/mine", files)
    for source in ("me/mine", "me/mine@v1", f"{hub.url}/me/mine", f"{hub.url}/me/mine/tree/main",
                   f"me/mine@{repo.commit}", "https://huggingface.co/me/mine/blob/main/model.safetensors"):  # fmt: skip
        same(fgaseg.load(source), mine)
    same(fgaseg.load("me/mine", revision="v1"), mine)
    with pytest.raises(CheckpointError, match="names the revision v1, and revision='v2' another"):
        fgaseg.load("me/mine@v1", revision="v2")
    with pytest.raises(CheckpointError, match="me/mine/config.json@v9: there is no such revision"):
        fgaseg.load("me/mine@v9")
    hub.close()
    same(fgaseg.load("me/mine"), mine)


def test_from_pretrained_points_to_load():
    with pytest.raises(CheckpointError, match="'cat-seg-b16' is a name for fgaseg.load"):
        fgaseg.FGASeg.from_pretrained("cat-seg-b16")


def test_overrides_and_device(published):
    model = fgaseg.load("cat-seg-b16", "template=a {}", device="cpu", inference="whole")
    assert (model.config.template, model.config.inference, model.device.type) == ("a {}", "whole", "cpu")
    with pytest.raises(ConfigError, match="inference"):
        fgaseg.load("cat-seg-b16", inferense="whole")
    with pytest.raises(UsageError, match="device gpu: cannot be used here"):
        fgaseg.load("nothing", device="gpu")


def test_a_file_that_is_not_the_known_one_is_refused_before_it_is_fetched(hub, published):
    published.files["model_base.pth"] += b"changed by its authors"
    with pytest.raises(CheckpointError, match="its SHA-256 begins with .* refused; .*name a commit that you trust"):
        fgaseg.load("cat-seg-b16")
    assert hub.sent == 0 and not cache_place(MODELS["cat-seg-b16"]).exists()


def test_a_file_that_arrives_damaged_is_removed(hub, published, catseg):
    hub.trouble.changed = True
    with pytest.raises(CheckpointError, match="it was deleted: try again"):
        fgaseg.load("cat-seg-b16")
    assert not [path for path in hub.assets.glob("**/*") if path.is_file() and path.name != ".main.lock"]
    hub.trouble.changed = False
    same(fgaseg.load("cat-seg-b16"), catseg[0])


def test_converted_files_that_were_damaged_are_made_again(hub, published, catseg, caplog):
    folder = converted_folder(MODELS["cat-seg-b16"])
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-10, 2)
        file.write(b"damaged")
    same(fgaseg.load("cat-seg-b16"), catseg[0])
    assert "not as they were written" in caplog.text
    (folder / "config.json").unlink()
    same(fgaseg.load("cat-seg-b16"), catseg[0])


def test_a_branch_is_followed_and_a_commit_kept(hub, published):
    first = fgaseg.load("cat-seg-b16@v1")
    fgaseg.load(f"cat-seg-b16@{published.commit}")
    other = catseg_model(seed=1)
    old, published.commit, published.files["model_base.pth"] = published.commit, "c" * 40, catseg_file(other)
    same(fgaseg.load("cat-seg-b16@v1"), other)
    hub.close()
    same(fgaseg.load("cat-seg-b16@v1"), other)
    same(fgaseg.load(f"cat-seg-b16@{old}"), first)


def test_a_file_that_the_user_fetched_before_is_used_and_left_alone(hub, published, catseg):
    from huggingface_hub import hf_hub_download

    path = hf_hub_download("hamacojr/CAT-Seg-weights", "model_base.pth", repo_type="space", cache_dir=hub.cache,
                           endpoint=hub.url)  # fmt: skip
    sent = hub.sent
    same(fgaseg.load("cat-seg-b16"), catseg[0])
    assert hub.sent == sent and open(path, "rb").read() == catseg[1]


def test_the_only_checkpoint_of_a_repository(hub, catseg):
    model, data = catseg
    repo = hub.add("kkk2026/Pi-Seg_for_OVRSISBenchV2", {"README.md": b"#", "anything.pth": data})
    for source in ("pi-seg-v2", "kkk2026/Pi-Seg_for_OVRSISBenchV2", "kkk2026/Pi-Seg_for_OVRSISBenchV2/anything.pth"):
        same(fgaseg.load(source), model)
    repo.files["vitl.pth"] = data
    with pytest.raises(CheckpointError, match="several checkpoints; give one, such as kkk2026/.*/anything.pth .also"):
        fgaseg.load("pi-seg-v2@v1")
    same(fgaseg.load("kkk2026/Pi-Seg_for_OVRSISBenchV2/vitl.pth@v1"), model)
    hub.add("kkk2026/Pi-Seg_for_OVRSISBenchV1", {"README.md": b"#"})
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        fgaseg.load("pi-seg-v1")
    hub.add("spaces/any/body", {"deep/folder/x.pth": data})
    same(fgaseg.load("spaces/any/body"), model)
    same(fgaseg.load("spaces/any/body/deep/folder/x.pth"), model)


def test_a_full_disk_keeps_what_was_fetched(hub, published, catseg, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fgaseg.model.published.save_model", full)
        with pytest.raises(CheckpointError, match="could not be written: No space left on device; make room, or set"):
            fgaseg.load("cat-seg-b16")
    assert not list(hub.assets.glob("**/.*.tmp"))
    sent = hub.sent
    same(fgaseg.load("cat-seg-b16"), catseg[0])
    assert hub.sent == sent == len(catseg[1])


LOAD = """
import sys, time
from dataclasses import replace
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 200_000
import fgaseg
from fgaseg.model import saving
from fgaseg.weights import MODELS
MODELS["cat-seg-b16"] = replace(MODELS["cat-seg-b16"], sha256="")
def slow(write):
    return lambda *arguments: (time.sleep(0.2), write(*arguments))
saving._write, saving.write_weights = slow(saving._write), slow(saving.write_weights)
print("ready", flush=True)
sys.stdin.readline()
print(fgaseg.load("cat-seg-b16").config.inference)
"""


def loading(hub):
    process = subprocess.Popen([sys.executable, "-c", LOAD], env=hub.environment, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_fetch_and_convert_once(hub, published, catseg):
    both = [loading(hub) for _ in range(2)]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    outs = [process.communicate(timeout=120) for process in both]
    assert [out for out, _ in outs] == ["windows\n"] * 2, outs
    assert hub.sent == len(catseg[1])
    assert sum("licence" in err for _, err in outs) == 1


@pytest.mark.slow
def test_killed_at_any_moment_the_model_is_whole_or_absent(hub, published, catseg):
    """Fetching, converting and writing take about as long as one another: kills fall on all of them."""
    moments, place = random.Random(2), cache_place(MODELS["cat-seg-b16"])
    hub.trouble.seconds_a_piece = 0.003

    def run(seconds=None):
        process, began = loading(hub), time.monotonic()
        process.stdin.write("go\n")
        process.stdin.flush()
        if seconds is not None:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=300)
        return time.monotonic() - began

    duration, seen = run(), {"absent": 0, "whole": 0}
    for _ in range(4):
        if place.exists():
            shutil.rmtree(place)  # once more from the beginning
        run(moments.uniform(0, duration))
        if place.exists():
            sums = read_record(place)["converted"]
            assert all(sha256((place / name).read_bytes()).hexdigest() == sum for name, sum in sums.items())
        seen["whole" if place.exists() else "absent"] += 1
    same(fgaseg.load("cat-seg-b16"), catseg[0])
    assert not list(place.parent.glob(".*.tmp")) and not list(place.parent.glob(".*.fetched"))
    assert seen["absent"], f"no kill came before the end: {seen}"


def test_labels_of_a_named_model(published):
    photo = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    result = fgaseg.load("cat-seg-b16", "inference=whole").segment(photo, NAMES)
    assert result.labels.shape == (40, 60) and json.dumps(result.present)
