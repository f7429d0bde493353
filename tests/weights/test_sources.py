"""What a user may write to name a model that is not on this disk. Nothing is fetched."""

import re

import pytest
from huggingface_hub import constants

from fgaseg.errors import CheckpointError
from fgaseg.weights import MODELS, NamedModel
from fgaseg.weights.sources import HubSource, parse_source

SPACE, PI = "hamacojr/CAT-Seg-weights", "kkk2026/Pi-Seg_for_OVRSISBenchV2"
HUB = "https://huggingface.co"
# what is written -> repository, revision
SAVED_MODELS = {
    "owner/name": ("owner/name", None),
    " owner/name@v1 ": ("owner/name", "v1"),
    "models/owner/name": ("owner/name", None),
    "models/name": ("models/name", None),
    "owner/name/config.json": ("owner/name", None),
    f"{HUB}/owner/name": ("owner/name", None),
    f"{HUB}/owner/name/": ("owner/name", None),
    f"{HUB}/owner/name/tree/v1": ("owner/name", "v1"),
    f"{HUB}/owner/name/commit/{'a' * 40}": ("owner/name", "a" * 40),
    f"{HUB}/owner/tree": ("owner/tree", None),
    f"{HUB}/models/owner/name/tree/v1": ("owner/name", "v1"),
    f"{HUB}/owner/name/blob/refs%2Fpr%2F1/README.md": ("owner/name", "refs/pr/1"),
    "huggingface.co/owner/name": ("owner/name", None),
    "www.huggingface.co/owner/name/raw/v1/model.safetensors": ("owner/name", "v1"),
    "hf.co/owner/name": ("owner/name", None),
    "hf://owner/name": ("owner/name", None),
    "http://mirror.example:8080/owner/name": ("owner/name", None),
}
# what is written -> kind of repository, repository, file, revision
CHECKPOINT_FILES = {
    "owner/name/x.pth": ("model", "owner/name", "x.pth", None),
    "owner/name/deep/x.safetensors@v1": ("model", "owner/name", "deep/x.safetensors", "v1"),
    "spaces/owner/name": ("space", "owner/name", "", None),
    "spaces/owner/name/deep/x.ckpt": ("space", "owner/name", "deep/x.ckpt", None),
    f"{HUB}/owner/name/resolve/v1/deep/x.bin?download=true": ("model", "owner/name", "deep/x.bin", "v1"),
    f"{HUB}/spaces/owner/name/blob/main/x.pt": ("space", "owner/name", "x.pt", "main"),
    "hf://spaces/owner/name/x.pth": ("space", "owner/name", "x.pth", None),
    f"{SPACE}/model_giant.pth": ("space", SPACE, "model_giant.pth", None),
}
NAMES = {
    "Cat_Seg B16 ": ("cat-seg-b16", None),
    "cat-seg-l14@v1": ("cat-seg-l14", "v1"),
    f"spaces/{SPACE}/model_large.pth": ("cat-seg-l14", None),
    f"{HUB}/spaces/{SPACE.lower()}/blob/v1/model_base.pth": ("cat-seg-b16", "v1"),
    PI: ("pi-seg-v2", None),
    "timm/vit_base_patch16_clip_224.openai": ("clip-b16", None),
}
MISTAKES = {
    "owner/name@": "a branch, tag or commit is missing after the @",
    "datasets/owner/name": "is a data set, not a model",
    f"{HUB}/datasets/owner/name/blob/main/x.pth": "is a data set, not a model",
    "owner": "'owner': no model has this name, and nothing here does; known names are",
    "here": "'here': no model has this name",  # a folder that is there has been taken before
    "models": "'models': no model has this name",
    f"{HUB}/": "no model has this name",
    f"{HUB}/spaces": "no model has this name",
    f"{HUB}/owner/name/tree": "tree is no checkpoint (.pth, .pt, .ckpt, .bin, .safetensors)",
    f"{HUB}/owner/name/discussions/1": "discussions/1 is no checkpoint",
    "https://example.com/owner/name": "not an address of the Hugging Face Hub; fetch the file and give its path",
    "hamacojr/cat-seg": "hamacojr/CAT-Seg is CAT-Seg of 2023",
    SPACE: "holds several models; give cat-seg-b16 or cat-seg-l14",
    "x.pth": "x.pth: no such file or folder; . holds here",
    "owner/x.pth": "owner/x.pth: no such file or folder",
    "owner/config.json": "owner/config.json: no such file or folder",
    "spaces/owner/x.pth": "spaces/owner/x.pth: no such file or folder",
    "owner/name/notes.txt": "owner/name/notes.txt: no such file or folder",
    "./owner/name": "./owner/name: no such file or folder",
    "/nowhere/at/all": "/nowhere/at/all: no such file or folder",
    "~/x.pth": "~/x.pth: no such file or folder; {home} holds here",
    "models\\mine": "models\\mine: no such file or folder; . holds here",
    "here/modle": "here/modle: no such file or folder; here holds a, b, c, d, e",
}


@pytest.fixture(autouse=True)
def mirror(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example:8080")


@pytest.mark.parametrize("source", SAVED_MODELS)
def test_repositories_of_saved_models(source):
    assert parse_source(source) == HubSource(*SAVED_MODELS[source])


@pytest.mark.parametrize("source", CHECKPOINT_FILES)
def test_checkpoints_that_have_no_name_here(source):
    kind, repo, file, revision = CHECKPOINT_FILES[source]
    found = parse_source(source)
    assert (found.repo, found.revision) == (repo, revision)
    assert (found.named.repo_type, found.named.repo, found.named.file) == (kind, repo, file)
    assert found.named.name == found.named.source and found.named.verified == "nothing"
    assert found.named.source == f"{'spaces/' if kind == 'space' else ''}{repo}{file and '/'}{file}"


@pytest.mark.parametrize("source", NAMES)
def test_names_and_their_repositories(source):
    name, revision = NAMES[source]
    assert parse_source(source) == HubSource(MODELS[name].repo, revision, MODELS[name])


def test_a_checkpoint_beside_the_only_one_that_is_known(monkeypatch):
    found = parse_source(f"{PI.lower()}/any.pth")
    assert found.repo == PI and found.named.file == "any.pth" and found.named.name == "pi-seg-v2"
    monkeypatch.setitem(MODELS, "one", NamedModel("one", "", "owner/one", file="x.pth"))
    assert parse_source("owner/one").named is parse_source("owner/one/x.pth").named is MODELS["one"]
    assert parse_source("owner/one/y.pth").named.name == "owner/one/y.pth"


def test_one_revision_is_given():
    for source, given in (("owner/name", "v1"), ("owner/name@v1", "v1"), ("owner/name@v1", None)):
        assert parse_source(source, given) == HubSource("owner/name", "v1")
    assert parse_source("clip-b16", "v1").revision == "v1"
    with pytest.raises(CheckpointError, match="'owner/name@v1' names the revision v1, and revision='v2' another"):
        parse_source("owner/name@v1", "v2")


@pytest.mark.parametrize("source", MISTAKES)
def test_mistakes_are_answered_in_one_line(source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    for name in "gcaebfd":
        (tmp_path / "here" / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    words = MISTAKES[source].format(home=tmp_path)
    whole = "$" if "no such file" in words else ""
    with pytest.raises(CheckpointError, match=re.escape(words) + whole) as caught:
        parse_source(source)
    assert "\n" not in str(caught.value)
