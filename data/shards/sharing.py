"""Upload a folder of shards to the Hub, a shard at a time, so that a transfer that broke off goes on where it was."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx
from tqdm.auto import tqdm

from classquery.data.annotations.schema import abbreviate, parsing, shorten
from classquery.data.shards.card import make_card
from classquery.data.shards.layout import CARD_FILE, INDEX_FILE, index_file


class ShardUploadError(ValueError):
    """Raised when shards cannot be uploaded; the folder is as it was, and what has arrived need not be sent again."""


# The last is what huggingface_hub makes of errors in the upload of a large file.
_HUB_ERRORS = (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, RuntimeError)


def require_shareable(license_id: str | None, api: HfApi | None = None) -> None:
    """Find out before any work that nothing can be uploaded.

    Raises:
        ShardUploadError: If there is no licence, or no token that the Hub takes.
    """
    if not license_id:
        raise ShardUploadError(
            "a data set is uploaded with the licence of its videos: give --license, such as cc-by-4.0, or other"
        )
    if api is None and not get_token():
        raise ShardUploadError("an upload needs a token of the Hub: run `hf auth login`, or set HF_TOKEN")
    try:
        (api or HfApi()).whoami()
    except _HUB_ERRORS as error:
        raise ShardUploadError(f"the Hub does not take the token, or is not there: {_in_one_line(error)}") from error


def push_action_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    license_id: str | None = None,
    private: bool = True,
    revision: str | None = None,
    api: HfApi | None = None,
) -> str:
    """Upload what `python -m classquery.data shard` wrote.

    Each shard is a commit of its own, and the index comes last: before, nobody can take half of it for all. Shards
    that are there already, by their hash, are not sent again.

    Args:
        folder: The shards; they stay as they are.
        repo_id: `USER/NAME`, or a name among those of the user; made if there is no such data set.
        license_id: Licence of the data set, an identifier of the Hub; by default the one that it was written with.
        private: Whether a new data set is private.
        revision: Branch to commit to; made if there is no such branch.
        api: Of the Hub; by default with the token in `HF_TOKEN` or logged in with.

    Returns:
        The address of the data set.

    Raises:
        FileNotFoundError: If the folder lacks the index or a shard.
        ShardUploadError: If there is no licence or token, a file is not what the index says, or the upload fails.
    """
    folder = Path(folder)
    index = _read_index(folder)
    index["license"] = license_id or index["license"]
    require_shareable(index["license"], api)
    api = api or HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="dataset")
        if revision is not None:
            api.create_branch(url.repo_id, branch=revision, exist_ok=True, repo_type="dataset")
        _push_shards(api, url.repo_id, revision, folder, index)
        _push_index(api, url.repo_id, revision, folder, index)
    except _HUB_ERRORS as error:
        raise ShardUploadError(
            f"the upload to {repo_id} failed: {_in_one_line(error.__cause__ or error)}; all is still in {folder}, try "
            "again: what has arrived is not sent again"
        ) from error
    return str(url)


def _read_index(folder: Path) -> dict[str, Any]:
    """Read the index, and make sure that the files are those it speaks of."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {INDEX_FILE} in {folder}: `python -m classquery.data shard` writes it at its end")
    with parsing(path, "it is no index of shards: write them again"):
        index = json.loads(path.read_text(encoding="utf-8"))
        shards = _shards_of(index)
    wrong = [
        shard["file"]
        for shard in shards
        if not (folder / shard["file"]).is_file() or (folder / shard["file"]).stat().st_size != shard["num_bytes"]
    ]
    if wrong:
        raise ShardUploadError(
            f"{len(wrong)} shards in {folder} are missing or cut off: {shorten(wrong)}; write them again"
        )
    return index


def _size_of(shards: list[dict[str, Any]]) -> int:
    return sum(shard["num_bytes"] for shard in shards)


def _shards_of(index: dict[str, Any]) -> list[dict[str, Any]]:
    return [shard for split in index["splits"].values() for shard in split["shards"]]


def _push_shards(api: HfApi, repo_id: str, revision: str | None, folder: Path, index: dict[str, Any]) -> None:
    shards = _shards_of(index)
    files = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type="dataset")
    hashes = {file.path: file.lfs.sha256 for file in files if isinstance(file, RepoFile) and file.lfs}
    present = [shard for shard in shards if hashes.get(shard["file"]) == shard["sha256"]]
    sizes = {"total": _size_of(shards), "initial": _size_of(present)}
    with tqdm(**sizes, unit="B", unit_scale=True, desc="Uploading") as progress:
        for shard in shards:
            if shard not in present:
                operation = CommitOperationAdd(shard["file"], folder / shard["file"])
                message = f"Add {shard['file']}"
                api.create_commit(repo_id, [operation], commit_message=message, revision=revision, repo_type="dataset")
                progress.update(shard["num_bytes"])


def _push_index(api: HfApi, repo_id: str, revision: str | None, folder: Path, index: dict[str, Any]) -> None:
    card = make_card(index, repo_id.rpartition("/")[2], repo_id)
    operations = [
        CommitOperationAdd(CARD_FILE, card.encode()),
        CommitOperationAdd(INDEX_FILE, (json.dumps(index, indent=1) + "\n").encode()),
        *(CommitOperationAdd(index_file(split), folder / index_file(split)) for split in index["splits"]),
    ]
    message = "Add the index of the shards"
    api.create_commit(repo_id, operations, commit_message=message, revision=revision, repo_type="dataset")


def _in_one_line(error: BaseException) -> str:
    return abbreviate(" ".join(str(error).split()))
