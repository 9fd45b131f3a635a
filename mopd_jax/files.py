"""Files that a kill never leaves in part, and the JSON that they hold."""

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
    """As `write_text`, line by line as they come; each gets its end."""
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
    """JSON, by default on one line, with null for what is not finite: nan is no JSON."""

    def clean(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        return value

    try:  # Nearly always; looking at every number of a long rollout takes its time.
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        record = clean(record)
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # Half a surrogate pair, which UTF-8 does not have.
        return json.dumps(record, allow_nan=False, indent=indent)
    return text
