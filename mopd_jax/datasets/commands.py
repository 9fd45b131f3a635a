"""`mopd data prepare | check | show NAME --flag=value ...`, as text to print."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import get_args

from mopd_jax.config_dict import unknown
from mopd_jax.config_sandbox import Level
from mopd_jax.datasets import catalogue, hub, prepare
from mopd_jax.datasets.rows import DataError

_FLAGS = {
    "prepare": ("source", "out", "as", "bad-rows", "revision"),
    "check": ("dir", "policy", "threads", "sandbox"),
    "show": ("dir", "split", "row"),
}


def run(
    words: Sequence[str], flags: Sequence[tuple[str, str]], *, client: hub.Client | None = None
) -> tuple[str, int]:
    """A data command.

    Args:
        words: the command and the name of the data set.
        flags: (name, value) pairs.
        client: of the hub; by default Hugging Face's.

    Returns:
        What to print, and the exit status: 1 where the check found what nobody decided about.

    Raises:
        InputError: whatever of it cannot work.
    """
    if len(words) != 2 or words[0] not in _FLAGS:
        if words and words[0] not in _FLAGS:
            raise DataError(unknown(f"command 'data {words[0]}'", words[0], _FLAGS))
        raise DataError("give `mopd data prepare|check|show NAME`, with one name")
    command, name = words
    options = {k.removeprefix("option."): v for k, v in flags if k.startswith("option.")}
    given = dict(pair for pair in flags if not pair[0].startswith("option."))
    known = [*_FLAGS[command], *(["option.KEY"] if command == "prepare" else [])]
    for flag in given:
        if flag not in known:
            raise DataError(unknown(f"--{flag}", flag, known))
    if options and command != "prepare":
        raise DataError("--option belongs to `mopd data prepare`")
    if command == "prepare":
        return _prepare(name, given, options, client), 0
    # Imported here: the verifiers are slow to import, and `prepare` needs none.
    from mopd_jax.datasets import check

    root = pathlib.Path(given.get("dir", "data"))
    if command == "show":
        row = _whole(given, "row", 0)
        return check.show(root, name, split=given.get("split"), row=row), 0
    threads = _whole(given, "threads", 1)
    if threads < 1:
        raise DataError(f"--threads={threads}; give 1 or more")
    level = given.get("sandbox", "namespaces")
    if level not in get_args(Level):
        raise DataError(unknown(f"--sandbox={level}", level, get_args(Level)))
    policy = given.get("policy", "error")
    report, good = check.check(root, name, policy=policy, threads=threads, level=level)
    return report, 0 if good else 1


def _prepare(
    name: str,
    given: Mapping[str, str],
    options: Mapping[str, str],
    client: hub.Client | None,
) -> str:
    made = catalogue.options(name, options)
    root = pathlib.Path(given.get("out", "data"))
    settings = {
        "options": made,
        "called": given.get("as"),
        "bad_rows": given.get("bad-rows", "error"),
    }
    source = given.get("source")
    if not source:
        raise DataError("give --source=PATH, a file or folder, or --source=hub")
    if source != "hub":
        if "revision" in given:
            raise DataError("--revision belongs to --source=hub")
        return _said(prepare.prepare(name, pathlib.Path(source), root, **settings), root)
    folder, origin = hub.download(
        name,
        catalogue.find(name).hub,
        revision=given.get("revision", ""),
        client=client or hub.HuggingFace(),
    )
    return _said(prepare.prepare(name, folder, root, origin=origin, **settings), root)


def _said(manifest: Mapping, root: pathlib.Path) -> str:
    where = f"written to {root / manifest['name'] / manifest['version']}"
    return f"{prepare.summary(manifest)}\n{where}"


def _whole(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal():
        raise DataError(f"--{name}={text}: give a whole number")
    return int(text)
