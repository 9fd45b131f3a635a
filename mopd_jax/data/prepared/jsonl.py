"""A user's rows: {id?, prompt | messages, answer, solution?, verifier?, meta?}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mopd_jax.data.prepared import splits
from mopd_jax.data.prepared.rows import DataError, Format, Options, Parsed, Row, Splits, short
from mopd_jax.errors import unknown
from mopd_jax.records import Problem, is_chat

_FIELDS = ("id", "prompt", "messages", "answer", "solution", "verifier", "meta")


def problem(row: Mapping[str, Any], where: str, default_id: str) -> Problem:
    """One row as a problem; its verifier is `exact` where it names none.

    A row for `code` has its tests in `meta` and needs no answer.

    Raises:
        DataError: a field is missing, of the wrong type or not known.
    """
    if strange := sorted(str(key) for key in row if key not in _FIELDS):
        said = unknown(f"the field {strange[0]!r}", strange[0], _FIELDS)
        raise DataError(f"{where}: {said}")
    name = row.get("id", default_id)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise DataError(
            f"{where}: 'id' is {short(name)}; give text or a whole number, or leave it out"
        )
    answer = row.get("answer", "" if row.get("verifier") == "code" else None)
    tested = row.get("verifier") == "code" and answer == ""
    if not tested and (not isinstance(answer, str) or not answer.strip()):
        said = "no 'answer'" if answer is None else f"'answer' is {short(answer)}"
        raise DataError(f"{where}: {said}; give the gold answer as a non-empty string")
    solution = row.get("solution", "")
    if not isinstance(solution, str):
        raise DataError(
            f"{where}: 'solution' is a {type(solution).__name__}; give text, or leave it out"
        )
    verifier, meta = row.get("verifier", "exact"), row.get("meta", {})
    if not isinstance(verifier, str) or not isinstance(meta, dict):
        raise DataError(
            f"{where}: 'verifier' is the name of one, such as \"math\", and 'meta' an object "
            "with what it needs; give them so, or leave them out"
        )
    # Parquet has every column in every row, with null for what a row leaves out.
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


def _parse(row: Row, options: Options) -> list[Problem]:
    del options
    return [problem(row.fields, row.where, f"{row.part}:{row.number + 1}")]


def _split(parsed: Sequence[Parsed], options: Options) -> Splits:
    """As the files' names say; a share at random where no name says a split."""
    if any(splits.named(row.part) for row in parsed):
        return splits.given(parsed)
    return splits.permuted(parsed, share=options["test_share"], seed=options["seed"])


FORMAT = Format(
    parse=_parse,
    split=_split,
    licence="the user's own",
    options={"test_share": 0.1, "seed": 42},
    # What a problem asks may stand in the system's turn: a document, for one.
    by_system=True,
)
