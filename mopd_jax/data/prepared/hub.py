"""Source files from the hub, at a commit that the manifest records."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import Any, Protocol

from mopd_jax.data.prepared.rows import DataError, Hub

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Client(Protocol):
    """What is asked of a hub."""

    def resolve(self, repo: str, revision: str) -> str:
        """The commit, 40 hex digits, that a branch, tag or reference stands for."""

    def download(self, repo: str, commit: str, patterns: Sequence[str]) -> str:
        """The folder that has the files of a commit that match."""


class HuggingFace:
    """The Hugging Face hub through its own package, which is imported on use."""

    def __init__(self):
        """Raises DataError if the package is not installed."""
        try:
            import huggingface_hub
        except ImportError as error:
            raise DataError("--source=hub needs huggingface_hub: pip install it") from error
        self._hub = huggingface_hub

    def resolve(self, repo: str, revision: str) -> str:
        """The commit that a revision of a data set stands for."""
        return self._hub.HfApi().dataset_info(repo, revision=revision).sha

    def download(self, repo: str, commit: str, patterns: Sequence[str]) -> str:
        """The folder of that package's own cache that has the files of a commit that match."""
        return self._hub.snapshot_download(
            repo, repo_type="dataset", revision=commit, allow_patterns=list(patterns)
        )


def download(
    name: str, hub: Hub | None, *, revision: str = "", client: Client
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Downloads a data set's files.

    Args:
        revision: a branch, tag or commit; by default the one that the catalogue names.

    Returns:
        Their folder, and what the manifest says of their origin.

    Raises:
        DataError: the data set is on no hub that is known here, or the hub did not answer.
    """
    if hub is None:
        raise DataError(f"{name} is on no hub that is known here; give --source=PATH")
    asked = revision or hub.revision
    try:
        # First the commit, then the files of that commit: a branch may move in between.
        commit = client.resolve(hub.repo, asked)
        if not _COMMIT.fullmatch(str(commit)):
            raise DataError(f"the hub names no commit for {hub.repo} at {asked!r}: {commit!r}")
        folder = pathlib.Path(client.download(hub.repo, commit, hub.files))
    except DataError:
        raise
    except Exception as error:  # The boundary to a network library with many error classes.
        hint = " It is gated: accept its terms there and log in." if hub.gated else ""
        raise DataError(
            f"{hub.repo} at {asked!r} could not be downloaded "
            f"({type(error).__name__}: {error}).{hint}"
        ) from error
    return folder, {"kind": "hub", "repo": hub.repo, "revision": asked, "commit": commit}
