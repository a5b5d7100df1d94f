"""Files of a model or a dataset on the Hugging Face hub -> a local folder, the hub's cache. No torch.

There is no network access unless a hub id asks for it, and none where the cache has the files and the hub cannot be reached.
"""

import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vla_mini.utils.errors import one_line


def download(
    repo_id: str, files: Sequence[str], *, kind: Literal["model", "dataset"], setting: str, revision: str | None = None
) -> Path:
    """The folder that those files of a repository are in which fit the patterns `files`.

    - revision: a branch, a tag or a commit; None: the newest
    - setting: what the user gave `repo_id` as, for messages

    Raises ValueError for what is no hub id (owner/name), for a repository that there is not, and where the hub cannot be
    reached and its cache lacks the files.
    """
    no_folder = f"{setting}={repo_id}: there is no such folder"
    if not is_hub_id(repo_id):
        raise ValueError(f"{no_folder}, and it is not a hub id (owner/name)")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    online = not constants.HF_HUB_OFFLINE and why_unreachable(constants.ENDPOINT) is None
    try:
        options = {"repo_type": kind, "revision": revision, "allow_patterns": list(files)}
        return Path(snapshot_download(repo_id, local_files_only=not online, **options))
    except RepositoryNotFoundError:
        raise ValueError(f"{no_folder}, and the hub has no such {kind}, or it is private") from None
    except RevisionNotFoundError:
        raise ValueError(f"{setting}={repo_id}: the hub has no revision {revision!r} of it") from None
    except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
        reason = f"the hub failed ({one_line(error)[:200]})" if online else "the hub cannot be reached"
        reason += ", and its files are not in the hub's cache"
        raise ValueError(f"{no_folder}, {reason}") from error


def is_hub_id(path: str | Path) -> bool:
    """Whether `path` has the form owner/name and there is no folder `owner` here: a mistyped path is not downloaded."""
    owner, slash, name = str(path).partition("/")
    return bool(slash and name) and "/" not in name and owner[:1].isalnum() and not Path(owner).exists()


def why_unreachable(url: str, *, timeout: float = 5.0) -> str | None:
    """Why a server does not answer one short request; None where it does. (Their own clients retry for half a minute.)"""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError:  # an answer, too
        return None
    except OSError as error:
        return f"{url} does not answer ({error})"
    return None
