"""Uploading a folder to the Hugging Face Hub; each failure is one line that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, errors

from ..errors import CheckpointError
from .hub import LIBRARY, LOGIN, explained_for


def upload_folder(
    folder: Path,
    repo: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str,
    create_pr: bool = False,
    keeps: Callable[[str], str | None] = lambda card: None,
) -> str:
    """Upload every file of a folder as one commit, and return its address (or that of the pull request).

    repo      "owner/name", made if it does not exist
    revision  a branch, made if it does not exist
    keeps     given the repository's README.md, the name of a file that is not to be replaced, or None

    Raises CheckpointError.
    """
    api = HfApi(token=token, library_name=LIBRARY)
    if constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{repo}: HF_HUB_OFFLINE is set; unset it to upload")
    with explained_for(repo, revision):
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            if revision is not None and not create_pr:
                api.create_branch(repo, branch=revision, exist_ok=True)
        except errors.HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                raise CheckpointError(
                    f"{repo}: may not be written ({error.response.status_code}): log in with a token that may write to "
                    f"{repo.partition('/')[0]} ({LOGIN})"
                ) from error
            raise
        kept = keeps(_card(api, repo, revision))
        files = [file for file in folder.rglob("*") if file.is_file()]
        names = [(file.relative_to(folder).as_posix(), file) for file in files]
        # not upload_folder, which may make several commits of them and tries for minutes to reach a hub that is down
        operations = [CommitOperationAdd(name, file) for name, file in names if name != kept]
        done = api.create_commit(repo, operations, commit_message=message, revision=revision, create_pr=create_pr)
        return str(done.pr_url or done.commit_url)


def _card(api: HfApi, repo: str, revision: str | None) -> str:
    """The repository's README.md, or nothing."""
    try:
        with_name = api.hf_hub_download(repo, "README.md", revision=revision)
    except errors.EntryNotFoundError:
        return ""
    return Path(with_name).read_text(errors="replace")
