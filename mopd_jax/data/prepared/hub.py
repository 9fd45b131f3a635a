"""Downloads source files from the hub, at one commit, which the manifest records."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import Any, Protocol

from mopd_jax.data.prepared.rows import DataError, HubSource

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Client(Protocol):
    """The calls to a hub that `download` makes."""

    def resolve(self, repo: str, revision: str) -> str | None:
        """The commit, 40 hex digits, of a branch, tag or reference; None if it is not known."""

    def download(self, repo: str, commit: str, patterns: Sequence[str]) -> str:
        """A folder with those files of a commit that match a pattern."""


class HuggingFace:
    """The Hugging Face hub, through its own package, which is imported here."""

    def __init__(self) -> None:
        """Raises DataError if the package is not installed."""
        try:
            import huggingface_hub
        except ImportError as error:
            raise DataError("--source=hub needs huggingface_hub: pip install it") from error
        self._hub = huggingface_hub

    def resolve(self, repo: str, revision: str) -> str | None:
        """The commit of a revision of a data set."""
        return self._hub.HfApi().dataset_info(repo, revision=revision).sha

    def download(self, repo: str, commit: str, patterns: Sequence[str]) -> str:
        """The commit's folder in that package's cache, once the matching files are in it."""
        return self._hub.snapshot_download(
            repo, repo_type="dataset", revision=commit, allow_patterns=list(patterns)
        )


def download(
    hub: HubSource, *, revision: str = "", client: Client
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Downloads a data set's files.

    Args:
        revision: a branch, tag or commit; by default the catalogue's.

    Returns:
        Their folder, and their origin for the manifest.

    Raises:
        DataError: the hub did not answer, or with no commit.
    """
    revision = revision or hub.revision
    try:
        # First the commit, then the files of that commit: a branch may move in between.
        commit = client.resolve(hub.repo, revision)
        if commit is None or not _COMMIT.fullmatch(commit):
            raise DataError(
                f"the hub names no commit for {hub.repo} at {revision!r}: {commit!r}"
            )
        folder = pathlib.Path(client.download(hub.repo, commit, hub.files))
    except DataError:
        raise
    except Exception as error:  # The boundary to a network library with many error classes.
        hint = " It is gated: accept its terms there and log in." if hub.gated else ""
        raise DataError(
            f"{hub.repo} at {revision!r} could not be downloaded "
            f"({type(error).__name__}: {error}).{hint}"
        ) from error
    return folder, {"kind": "hub", "repo": hub.repo, "revision": revision, "commit": commit}
