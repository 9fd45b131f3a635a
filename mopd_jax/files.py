"""Atomic writes of text files, and JSON for them: a kill never leaves half a file."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one, never a part."""
    _replace(path, [text])


def write_lines(path: pathlib.Path, lines: Iterable[str]) -> None:
    """As `write_text`, from an iterable of lines; adds the line ends."""
    _replace(path, (line + "\n" for line in lines))


def _replace(path: pathlib.Path, parts: Iterable[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(parts)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def dumps(record: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON, by default on one line; numbers that are not finite become null (JSON has none)."""

    def clean(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        return value

    try:  # Nearly always true; checking every number of a long rollout would be slow.
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        record = clean(record)
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # Half a surrogate pair, which UTF-8 does not have.
        return json.dumps(record, allow_nan=False, indent=indent)
    return text
