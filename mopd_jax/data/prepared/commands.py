"""Runs `mopd data prepare | check | show NAME --flag=value ...`; returns the text to print."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

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
        What to print, and the exit status: 1 if items failed the check under policy "error".

    Raises:
        InputError: the command, a flag or the data cannot be used.
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
    plain = dict(pair for pair in flags if not pair[0].startswith(("option.", "sandbox.")))
    known = [*_FLAGS[command], *_MORE.get(command, ())]
    for flag in plain:
        if flag not in known:
            raise DataError(unknown(f"--{flag}", flag, known))
    if options and command != "prepare":
        raise DataError("--option belongs to `mopd data prepare`")
    if limits and command != "check":
        raise DataError("--sandbox belongs to `mopd data check`")
    if command == "prepare":
        return _prepare(name, plain, options, client), 0
    root = pathlib.Path(plain.get("dir", "data"))
    if command == "show":
        row = _whole(plain, "row", 0)
        return check.show(root, name, split=plain.get("split"), row=row), 0
    threads = _whole(plain, "threads", 1)
    if threads < 1:
        raise DataError(f"--threads={threads}; give 1 or more")
    policy = plain.get("policy", "error")
    sandbox = _sandbox([("workers", str(threads)), *limits], plain.get("sandbox"))
    report, good = check.check(root, name, policy=policy, threads=threads, sandbox=sandbox)
    return report, 0 if good else 1


def _sandbox(limits: Sequence[tuple[str, str]], level: str | None) -> SandboxConfig:
    """The settings of --sandbox=LEVEL and --sandbox.NAME=VALUE; raises ConfigError."""
    tree = to_config_dict(SandboxConfig())
    for name, value in limits:
        override(tree, name, value)
    if level is not None:
        tree.level = level
    return from_config_dict(SandboxConfig, tree, where="sandbox")


def _prepare(
    name: str,
    flags: Mapping[str, str],
    option_flags: Mapping[str, str],
    client: hub.Client | None,
) -> str:
    options = catalogue.options(name, option_flags)
    root = pathlib.Path(flags.get("out", "data"))
    called, bad_rows = flags.get("as"), flags.get("bad-rows", "error")
    source = flags.get("source")
    if not source:
        raise DataError("give --source=PATH, a file or folder, or --source=hub")
    origin: dict[str, Any] = {"kind": "files"}
    only = None
    if source == "hub":
        # Before the download, which may take long.
        prepare.check_request(name, root, called, bad_rows)
        place = catalogue.find(name).hub
        if place is None:
            raise DataError(f"the catalogue has no hub for {name}; give --source=PATH")
        revision = flags.get("revision", "")
        client = client or hub.HuggingFace()
        folder, origin = hub.download(place, revision=revision, client=client)
        # The folder may have other files of that commit, from other downloads.
        only = place.files
    elif "revision" in flags:
        raise DataError("--revision belongs to --source=hub")
    else:
        folder = pathlib.Path(source)
    manifest = prepare.prepare(
        name,
        folder,
        root,
        options=options,
        called=called,
        bad_rows=bad_rows,
        origin=origin,
        only=only,
    )
    where = f"written to {root / manifest['name'] / manifest['version']}"
    return f"{prepare.summary(manifest)}\n{where}"


def _whole(flags: Mapping[str, str], name: str, default: int) -> int:
    text = flags.get(name, str(default))
    if not text.isdecimal():
        raise DataError(f"--{name}={text}: give a whole number")
    return int(text)
