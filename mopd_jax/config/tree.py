"""Turns a ConfigDict, which a user may change, into a frozen dataclass, and back.

`from_config_dict` is the only place that reads a ConfigDict: after it, a setting is a field of
a validated record. An error names the setting, its value and the nearest name that exists.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import math
import re
import types
import typing
from typing import Any, Literal

from ml_collections import ConfigDict

from mopd_jax.errors import ConfigError, InputError, unknown

_LARGEST = 2**31 - 1  # Of an int: devices count in 32 bits.
# Names below this one are the data source's, which checks them itself.
_FREE = "config.data.options"

# Settings that have another name now, or none: {old: new}.
RENAMED = {
    "peers.same_text": "peers.exclude ('rollout' for True, 'text' for False)",
    "loss.alpha": "loss.divergence.alpha",
    "loss.pointwise_clip": "loss.divergence.clip",
    "loss.support": "loss.divergence.support",
    "loss.top_k": "loss.divergence.top_k",
    "loss.tail": "loss.divergence.tail",
    # Now a section: what is a value there was the kind.
    "loss.divergence": "loss.divergence.kind",
}
RETIRED = {
    "loss.continuous": "it divided a jsd by alpha (1 - alpha), a constant factor of the loss, "
    "which AdamW does not see; near the ends of alpha choose the KL itself",
    "peers.groups": "for 'mixed' set config.peers.no_success='mask' and "
    "config.peers.all_success='mask'; a group without any verdict has no peers either way",
    "peers.failures_when": "config.peers.slots limits failures to the slots that successes "
    "leave; with slots=1 and successes=1 a failure is shown only where no success can be",
    "peers.control_topup": "'success_only' always fills up with successes of other prompts, "
    "and control_topped_up counts them",
    **{
        f"context.{name}": "its text is the same for every run, a constant in mopd_jax/contexts"
        for name in ("cut_mark", "summary_success", "summary_failure", "feedback_block")
    },
}


def to_config_dict(cfg: Any) -> ConfigDict:
    """Frozen dataclass -> ConfigDict with locked keys; the inverse of `from_config_dict`."""

    def build(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            return {f.name: build(getattr(value, f.name)) for f in fields}
        return value

    # `from_config_dict` checks types: it lets an int stand for a float and a number replace
    # None, which ConfigDict's own check refuses.
    return ConfigDict(build(cfg), type_safe=False).lock()


def from_config_dict(cls: type, cfg: Any, *, where: str = "config") -> Any:
    """ConfigDict or mapping -> validated frozen dataclass; what it leaves out is the default.

    Raises:
        ConfigError: an unknown name (with the nearest known one), a value of the wrong type, or
            a combination that cannot work.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    if not hasattr(cfg, "items"):
        _answer_old(where)
        raise ConfigError(
            f"{where}={cfg!r} must be a section with settings: {', '.join(names)}"
        )
    given = dict(cfg.items())
    for name in given:
        if name not in names:
            _answer_old(f"{where}.{name}")
            raise ConfigError(unknown(f"{where}.{name}", name, names))
    built = {
        name: _convert(hints[name], value, f"{where}.{name}") for name, value in given.items()
    }
    try:
        return cls(**built)
    except InputError:
        raise
    except ValueError as error:  # A record that is not of the configuration alone.
        raise ConfigError(f"{where}: {error}") from error


def _answer_old(where: str) -> None:
    """Raises ConfigError for a setting that was renamed or retired, with what holds now."""
    dotted = where.removeprefix("config.")
    if dotted in RENAMED:
        raise ConfigError(f"{where} is config.{RENAMED[dotted]} now; set that")
    if dotted in RETIRED:
        raise ConfigError(f"{where} does not exist any more: {RETIRED[dotted]}")


def answer_locked(error: Exception) -> None:
    """Raises ConfigError where a config file set what has another name in a locked ConfigDict.

    The error of ml_collections names the last part of the setting only.
    """
    name = re.search(r'Key "(\w+)" does not exist', str(error))
    for dotted in (*RENAMED, *RETIRED):
        if name is not None and dotted.rpartition(".")[2] == name[1]:
            try:
                _answer_old(f"config.{dotted}")
            except ConfigError as answer:
                raise ConfigError(
                    f"no section has the setting {name[1]!r} that the config file sets; if "
                    f"config.{dotted} is meant: {answer}"
                ) from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A value as its field's type hint asks; raises ConfigError if it cannot be that."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_config_dict(hint, value, where=where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}={value!r}: {unknown(repr(value), str(value), args)}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        # The first: what else such a field may hold in code, an array, no setting can be.
        hint = next(a for a in args if a is not type(None))
        return _convert(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}={value!r} must be a list of {args[0].__name__}")
        return tuple(_convert(args[0], v, where) for v in value)
    if origin is dict:
        if not hasattr(value, "items"):
            raise ConfigError(f"{where}={value!r} must be a mapping; set {where}.NAME")
        return _plain(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf  # Refused below.
    if type(value) is not hint:
        raise ConfigError(
            f"{where}={value!r} is of type {type(value).__name__}; it must be {hint.__name__}"
        )
    if hint is float and not math.isfinite(value):
        raise ConfigError(
            f"{where}={value!r} is not a finite number; give one, or None for off"
        )
    if hint is int and abs(value) > _LARGEST:
        raise ConfigError(f"{where}={value!r} is beyond {_LARGEST}, the largest of 32 bits")
    return value


def _plain(value: Any) -> Any:
    """The same with nested mappings as dicts and sequences as tuples."""
    if hasattr(value, "items"):
        return {name: _plain(item) for name, item in value.items()}
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else value


def override(cfg: ConfigDict, dotted: str, text: str) -> None:
    """Sets `cfg.<dotted>` from command-line text: a Python literal, else a plain string.

    Raises:
        ConfigError: there is no such setting; the message names the nearest one.
    """
    *path, last = dotted.split(".")
    node, where = cfg, "config"
    for name in path:
        free = where.startswith(_FREE)
        if free and name not in node:
            with node.unlocked():
                node[name] = ConfigDict(type_safe=False)
        if name not in node or not isinstance(node[name], ConfigDict):
            _answer_old(f"{where}.{name}")
            raise ConfigError(unknown(f"{where}.{name}", name, list(node)))
        node, where = node[name], f"{where}.{name}"
    if last not in node and not where.startswith(_FREE):
        _answer_old(f"{where}.{last}")
        raise ConfigError(unknown(f"{where}.{last}", last, list(node)))
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    with node.unlocked():
        node[last] = value


def to_json(cfg: Any) -> str:
    """The whole config as indented JSON with sorted keys, for the run record."""
    return json.dumps(dataclasses.asdict(cfg), indent=2, sort_keys=True)


def fingerprint(cfg: Any) -> str:
    """Twelve hex digits, others for every other value of any field of the dataclass."""
    text = json.dumps(dataclasses.asdict(cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
