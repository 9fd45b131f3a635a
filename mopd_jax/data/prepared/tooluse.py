"""Reads tool use in the ToolAlpaca format (arXiv 2306.05301): the calls that answer a request.

Rows have one of two forms: ToolAlpaca's records, one for each tool (Name, Description,
NLDocumentation, Instructions, Golden_Answers), or rows that others built from them (kind
"tooluse", prompt, answer). Files name their split; the gold answer is a JSON list of {Action,
Action_Input}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mopd_jax.data.prepared import splits
from mopd_jax.data.prepared.rows import (
    Format,
    LeftOut,
    Options,
    ParsedProblem,
    SourceRow,
    Splits,
    chat,
)
from mopd_jax.records import Problem

PROMPT = """\
Answer the user's request with the tools below. Write every call as

Thought: why this call
Action: the name of one function
Action Input: its arguments, one JSON object

and repeat these lines for every further call. Take arguments from the request; invent none.

Tool: {name}
What it does: {description}
Functions:
{documentation}

Request: {request}"""


def calls(row: SourceRow, value: Any, what: str) -> str:
    """A gold answer as JSON text, a list of {Action, Action_Input}.

    Args:
        what: the answer's name in messages.

    Raises:
        DataError: it is anything else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise row.error(f"{what} is not JSON ({error})") from error
    if not isinstance(value, list) or not value:
        raise row.error(f"{what} is not a list of one call or more")
    for i, call in enumerate(value, start=1):
        if not isinstance(call, dict) or set(call) != {"Action", "Action_Input"}:
            raise row.error(f"{what}, call {i}: not an object of Action and Action_Input")
        if not isinstance(call["Action"], str) or not call["Action"].strip():
            raise row.error(f"{what}, call {i}: 'Action' is not a name")
        arguments = call["Action_Input"]
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError) as error:
            raise row.error(
                f"{what}, call {i}: 'Action_Input' is not JSON ({error})"
            ) from error
        if not isinstance(arguments, dict):
            raise row.error(f"{what}, call {i}: 'Action_Input' is not a JSON object")
    return row.checked(json.dumps(value, ensure_ascii=False), what)


def _parse(row: SourceRow, options: Options) -> list[Problem]:
    if row.fields.get("kind") == "tooluse":
        name = f"tooluse-{row.identifier('idx')}"
        return [_problem(name, row.text("prompt"), row, "answer", options)]
    name = row.text("Name")
    requests, answers = row.fields.get("Instructions"), row.fields.get("Golden_Answers")
    if not isinstance(requests, list) or not isinstance(answers, list):
        raise row.error("'Instructions' and 'Golden_Answers' must be lists")
    if len(requests) != len(answers):
        raise row.error(f"{len(requests)} instructions for {len(answers)} golden answers")
    if not requests:
        raise LeftOut("a tool without instructions")
    problems = []
    for i, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        if not isinstance(request, str) or not request.strip():
            raise row.error(f"instruction {i + 1} is empty or not text")
        text = PROMPT.format(
            name=name,
            description=row.text("Description"),
            documentation=row.text("NLDocumentation").strip(),
            request=request.strip(),
        )
        text = row.checked(text, f"the prompt of instruction {i + 1}")
        problems.append(
            Problem(
                id=f"tooluse-{row.stem}-{row.number}-{i}",
                messages=chat("", text),
                answer=calls(row, answer, f"golden answer {i + 1}"),
                verifier="tools",
                meta={"order": options["order"]},
            )
        )
    return problems


def _problem(name: str, text: str, row: SourceRow, answer: str, options: Options) -> Problem:
    system = row.text("system") if row.fields.get("system") is not None else ""
    return Problem(
        id=name,
        messages=chat(system, text),
        answer=calls(row, row.fields.get(answer), repr(answer)),
        verifier="tools",
        meta={"order": options["order"]},
    )


def _split(parsed: Sequence[ParsedProblem], options: Options) -> Splits:
    """By the names of the files; all of it is test if no name has a split."""
    if any(splits.split_of(p.stem) for p in parsed):
        return splits.by_file_names(parsed)
    return splits.test_only(parsed, options)


FORMAT = Format(
    parse=_parse,
    split=_split,
    licence="Apache-2.0 (ToolAlpaca)",
    options={"order": "any"},
)
