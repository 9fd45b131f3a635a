"""`mopd data prepare | check | show NAME --flag=value ...`, as text to print."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from mopd_jax.config.sandbox import SandboxConfig
from mopd_jax.config.tree import from_config_dict, override, to_config_dict
from mopd_jax.data.prepared import catalogue, check, hub, prepare
from mopd_jax.data.prepared.rows import DataError
from mopd_jax.errors import unknown

_FLAGS = {
    "prepare": ("source", "out", "as", "bad-rows", "revision"),
    "check": ("dir", "policy", "threads", "sandbox"),
    "show": ("dir", "split", "row"),
}
_MORE = {"prepare": ("option.KEY",), "check": ("sandbox.KEY",)}


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
    for flag, value in flags:
        if not value:
            raise DataError(f"--{flag}= is empty; give a value, or leave it out")
    options = {k.removeprefix("option."): v for k, v in flags if k.startswith("option.")}
    limits = [(k.removeprefix("sandbox."), v) for k, v in flags if k.startswith("sandbox.")]
    given = dict(pair for pair in flags if not pair[0].startswith(("option.", "sandbox.")))
    known = [*_FLAGS[command], *_MORE.get(command, ())]
    for flag in given:
        if flag not in known:
            raise DataError(unknown(f"--{flag}", flag, known))
    if options and command != "prepare":
        raise DataError("--option belongs to `mopd data prepare`")
    if limits and command != "check":
        raise DataError("--sandbox belongs to `mopd data check`")
    if command == "prepare":
        return _prepare(name, given, options, client), 0
    root = pathlib.Path(given.get("dir", "data"))
    if command == "show":
        row = _whole(given, "row", 0)
        return check.show(root, name, split=given.get("split"), row=row), 0
    threads = _whole(given, "threads", 1)
    if threads < 1:
        raise DataError(f"--threads={threads}; give 1 or more")
    policy = given.get("policy", "error")
    box = _sandbox([("workers", str(threads)), *limits], given.get("sandbox"))
    report, good = check.check(root, name, policy=policy, threads=threads, sandbox=box)
    return report, 0 if good else 1


def _sandbox(limits: Sequence[tuple[str, str]], level: str | None) -> SandboxConfig:
    """--sandbox=LEVEL and --sandbox.NAME=VALUE; raises ConfigError for what cannot be."""
    tree = to_config_dict(SandboxConfig())
    for name, value in limits:
        override(tree, name, value)
    if level is not None:
        tree.level = level
    return from_config_dict(SandboxConfig, tree, where="sandbox")


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
    # Before the download, which may take long.
    prepare.check_request(name, root, settings["called"], settings["bad_rows"])
    place = catalogue.find(name).hub
    folder, origin = hub.download(
        name,
        place,
        revision=given.get("revision", ""),
        client=client or hub.HuggingFace(),
    )
    # The folder may hold what others have downloaded of that commit, too.
    made = prepare.prepare(name, folder, root, origin=origin, only=place.files, **settings)
    return _said(made, root)


def _said(manifest: Mapping, root: pathlib.Path) -> str:
    where = f"written to {root / manifest['name'] / manifest['version']}"
    return f"{prepare.summary(manifest)}\n{where}"


def _whole(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal():
        raise DataError(f"--{name}={text}: give a whole number")
    return int(text)
