"""`push_to_hub`: what the hub has afterwards, and what every refusal says."""

from types import SimpleNamespace

import pytest
from catseg import catseg_model
from huggingface_hub import constants
from tiny import tiny_model

import fgaseg
from fgaseg.errors import CheckpointError


@pytest.fixture
def user(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in does not speak that protocol
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))  # between tries
    return hub


def test_the_model_is_there_and_loads(user):
    model = tiny_model()
    address = model.push_to_hub("someone/mine", private=True, commit_message="first")
    repo = user.repos["someone/mine"]
    assert address == f"{user.url}/someone/mine/commit/{repo.commit}" and repo.private
    assert sorted(repo.files) == ["README.md", "config.json", "model.safetensors"]
    assert 'fgaseg.load("someone/mine")' in repo.files["README.md"].decode() and not user.leaks
    again = fgaseg.load("someone/mine")
    assert all(value.equal(again.state_dict()[key]) for key, value in model.state_dict().items())
    # a second time into the same repository
    tiny_model(seed=1).push_to_hub("someone/mine")
    again = fgaseg.load("someone/mine")
    assert not all(value.equal(again.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_card_that_was_edited_on_the_hub_stays(user):
    user.add("someone/mine", {"README.md": b"# My own words"}, readers={"good"})
    tiny_model().push_to_hub("someone/mine", token="good")
    files = user.repos["someone/mine"].files
    assert files["README.md"] == b"# My own words" and "model.safetensors" in files


def test_a_branch_and_a_pull_request(user):
    user.add("someone/mine", {}, readers={"good"})
    assert tiny_model().push_to_hub("someone/mine", create_pr=True) == f"{user.url}/someone/mine/discussions/1"
    tiny_model().push_to_hub("someone/mine", revision="new")
    assert 'fgaseg.load("someone/mine@new")' in user.repos["someone/mine"].files["README.md"].decode()


def test_facts_travel(user):
    model = catseg_model()
    model.facts.update(name="catseg", licence="mine alone")
    model.push_to_hub("someone/catseg")
    assert "these weights: mine alone" in user.repos["someone/catseg"].files["README.md"].decode()
    assert fgaseg.load("someone/catseg").facts["name"] == "catseg"


REFUSALS = {
    "nobody": "someone/mine: may not be written .401.: log in with a token that may write to someone .*hf auth login",
    "wrong token": "someone/mine: may not be written .401.",
    "other's": "else/mine: may not be written .403.: log in with a token that may write to else",
    "not a name": "not the name of a repository",
    "503": "answers 503; .*try again later",
    "no network": "the connection to .* failed .ConnectError",
    "offline": "HF_HUB_OFFLINE is set; unset it to upload",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_every_refusal_is_one_line(user, monkeypatch, case):
    if case == "nobody":
        monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", case == "offline")
    if case == "503":
        user.trouble.status = 503
    if case == "no network":
        user.close()
    name = {"other's": "else/mine", "not a name": "a/b/c"}.get(case, "someone/mine")
    with pytest.raises(CheckpointError, match=REFUSALS[case]) as caught:
        tiny_model().push_to_hub(name, token="bad" if case == "wrong token" else None)
    assert "\n" not in str(caught.value)
