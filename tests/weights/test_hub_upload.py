"""Uploading a folder: what one commit holds, where it goes, and what of the repository stays."""

from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from fgaseg.errors import CheckpointError
from fgaseg.weights import upload_folder

FILES = {"README.md": "---\nlicense: mit\n---\nmine", "config.json": "{}", "tokenizer/words.txt": "words"}


@pytest.fixture
def user(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in does not speak that protocol
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))  # between tries
    return hub


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model" / "tokenizer").mkdir(parents=True)
    for name, text in FILES.items():
        (tmp_path / "model" / name).write_text(text)
    return tmp_path / "model"


def test_every_file_of_the_folder_is_in_one_commit(user, folder):
    address = upload_folder(folder, "someone/mine", message="the first")
    repo = user.repos["someone/mine"]
    assert address == f"{user.url}/someone/mine/commit/{repo.commit}" and not repo.private
    assert repo.files == {name: text.encode() for name, text in FILES.items()}
    assert user.commits == [("main", "the first")]
    assert user.agents and all(agent.startswith("fgaseg") for agent in user.agents)


def test_a_branch_is_made_once_and_no_branch_for_a_pull_request(user, folder):
    repo = user.add("someone/mine", {"README.md": b"caf\xe9"}, readers={"good"})
    cards = []
    for _ in range(2):
        upload_folder(folder, "someone/mine", message="m", revision="new", keeps=lambda card: cards.append(card))
    assert user.commits == [("new", "m")] * 2 and "new" in repo.branches
    assert cards == ["caf\ufffd", FILES["README.md"]] and ("new", "README.md") in user.asked
    address = upload_folder(folder, "someone/mine", message="m", revision="v1", create_pr=True)
    assert address == f"{user.url}/someone/mine/discussions/1" and repo.branches == {"main", "v1", "new"}
    repo.files["config.json"] = b"theirs"
    upload_folder(folder, "someone/mine", message="m", keeps=lambda card: "config.json")
    assert repo.files["config.json"] == b"theirs" and repo.files["tokenizer/words.txt"] == b"words"


def test_who_may_upload_and_for_whom(user, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    upload_folder(folder, "someone/secret", message="m", private=True, token="good")
    assert user.repos["someone/secret"].private and set(user.repos["someone/secret"].files) == set(FILES)
    words = r"^{}: may not be written \({}\): log in with a token that may write to {} .*hf auth login"
    for repo, token, status in (("someone/mine", "bad", 401), ("else/mine", "good", 403)):
        with pytest.raises(CheckpointError, match=words.format(repo, status, repo.partition("/")[0])):
            upload_folder(folder, repo, message="m", token=token)
    user.trouble.status = 402
    with pytest.raises(CheckpointError, match=r"^someone/mine: .* answers 402 \("):
        upload_folder(folder, "someone/mine", message="m", token="good")
