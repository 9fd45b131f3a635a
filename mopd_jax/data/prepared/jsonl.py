"""Reads a user's own rows: {id?, prompt | messages, answer, solution?, verifier?, meta?}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mopd_jax.data.prepared import splits
from mopd_jax.data.prepared.rows import (
    DataError,
    Format,
    Options,
    ParsedProblem,
    SourceRow,
    Splits,
    short,
)
from mopd_jax.errors import unknown
from mopd_jax.records import Problem, is_chat

_FIELDS = ("id", "prompt", "messages", "answer", "solution", "verifier", "meta")


def problem(row: Mapping[str, Any], where: str, default_id: str) -> Problem:
    """The problem of one row. The default verifier is `exact`.

    A row for `code` has its tests in `meta` and needs no answer.

    Args:
        where: file and row number, for messages.
        default_id: the id of a row without one.

    Raises:
        DataError: a field is missing, of the wrong type or not known.
    """
    if strange := sorted(str(key) for key in row if key not in _FIELDS):
        message = unknown(f"the field {strange[0]!r}", strange[0], _FIELDS)
        raise DataError(f"{where}: {message}")
    name = row.get("id", default_id)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise DataError(
            f"{where}: 'id' is {short(name)}; give text or a whole number, or leave it out"
        )
    answer = row.get("answer", "" if row.get("verifier") == "code" else None)
    tested = row.get("verifier") == "code" and answer == ""
    if not tested and (not isinstance(answer, str) or not answer.strip()):
        fault = "no 'answer'" if answer is None else f"'answer' is {short(answer)}"
        raise DataError(f"{where}: {fault}; give the gold answer as a non-empty string")
    solution = row.get("solution", "")
    if not isinstance(solution, str):
        raise DataError(
            f"{where}: 'solution' is a {type(solution).__name__}; give text, or leave it out"
        )
    verifier, meta = row.get("verifier", "exact"), row.get("meta", {})
    if not isinstance(verifier, str) or not isinstance(meta, dict):
        raise DataError(
            f"{where}: 'verifier' is the name of one, such as \"math\", and 'meta' an object "
            "with what it needs; write them so, or leave them out"
        )
    # In Parquet every row has every column, with null for a field that the row leaves out.
    messages: Any = row.get("messages")
    prompt = row.get("prompt")
    if messages is not None and prompt is not None:
        raise DataError(f"{where}: both 'prompt' and 'messages'; give one of them")
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    if not is_chat(messages):
        raise DataError(
            f"{where}: no 'prompt' string, and no 'messages' list of roles and contents that "
            "ends with the user"
        )
    return Problem(
        id=str(name),
        messages=tuple(messages),
        answer=answer,
        verifier=verifier,
        meta=meta,
        solution=solution,
    )


def _parse(row: SourceRow, options: Options) -> list[Problem]:
    del options
    return [problem(row.fields, row.where, f"{row.stem}:{row.number + 1}")]


def _split(parsed: Sequence[ParsedProblem], options: Options) -> Splits:
    """By the names of the files; at random if no name has a split."""
    if any(splits.split_of(row.stem) for row in parsed):
        return splits.by_file_names(parsed)
    return splits.permuted(parsed, share=options["test_share"], seed=options["seed"])


FORMAT = Format(
    parse=_parse,
    split=_split,
    licence="the user's own",
    options={"test_share": 0.1, "seed": 42},
    # The system's turn may be part of the question, such as a document.
    by_system=True,
)
