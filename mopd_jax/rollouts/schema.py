"""Records of the lines of a rollout file, their JSON form, and the checks of a single line.

Pure functions between bytes and records. `storage.py` reads and writes the files, and checks
the lines against each other; docs/rollouts.md has the table of all fields.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from mopd_jax.errors import InputError
from mopd_jax.records import Message, Problem, Verdict, is_chat

FORMAT, VERSION = "mopd-rollouts", 2  # 1: no `tests_skipped`.


class RolloutFileError(InputError):
    """A file of rollouts cannot be used; the message has line, field, value and remedy."""


@dataclasses.dataclass(frozen=True)
class Header:
    """The first line of a file: the values shared by all rows.

    tokenizer: the tokenizer's fingerprint; stop_ids are its end tokens, vocab_size the model's.
    policy: who sampled, "student" or "teacher" (`rollout.policy`).
    model, trained: the path of its weights, and the steps it had been trained for.
    seed, temperature, top_p, top_k, prompt_length, response_length: of the sampling.
    instruction: `data.instruction`, which the messages end with.
    steps, prompts, group: the file has steps * prompts * group rows.
    config: fingerprint of the config that wrote the file.
    """

    tokenizer: str
    vocab_size: int
    stop_ids: tuple[int, ...]
    policy: str
    model: str
    trained: int
    seed: int
    instruction: str
    steps: int
    prompts: int
    group: int
    prompt_length: int
    response_length: int
    temperature: float
    top_p: float | None
    top_k: int | None
    config: str


@dataclasses.dataclass(frozen=True, eq=False)
class RolloutRow:
    """One rollout. Rows of one step and uid are a group.

    problem, messages: id and prompt of the problem; the gold answer is not in the file.
    response, context, teacher_message: for people: the text, the record of the peers shown
        (`contexts.render.ContextRecord`), and the last message that the teacher read.
    stopped: the response ended by itself, and its last token is a stop token.
    prompt_ids, response_ids: as the student read and sampled them, without pads; the second
        i32[t].
    sampled_logp: f32[t] nats of the response's tokens, at `temperature`, before top-p/k. The
        key in the file is `behaviour_logp`, as since format 1.
    """

    step: int
    problem: str
    uid: int
    rollout: int
    messages: tuple[Message, ...]
    response: str
    verdict: Verdict
    stopped: bool
    context: Mapping[str, Any]
    teacher_message: str | None
    prompt_ids: tuple[int, ...]
    response_ids: np.ndarray
    sampled_logp: np.ndarray

    @property
    def asked(self) -> Problem:
        """The problem without gold and verifier, which the file does not hold."""
        return Problem(id=self.problem, messages=self.messages, answer="", verifier="")


def header_fields(header: Header) -> dict[str, Any]:
    """A header as JSON values."""
    return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(header)}


def row_fields(row: RolloutRow) -> dict[str, Any]:
    """A row as JSON values, the arrays last."""
    fields = {name: getattr(row, name) for name in _PLAIN}
    fields["messages"] = [dict(message) for message in row.messages]
    verdict = {name: getattr(row.verdict, name) for name in _VERDICT}
    # Nine significant digits distinguish any two float32 and survive parsing as a double.
    short = [float(f"{x:.9g}") for x in row.sampled_logp.tolist()]
    arrays = (row.prompt_ids, row.response_ids.tolist(), short)
    return {
        **fields,
        **verdict,
        **dict(zip(_ARRAYS, arrays, strict=True)),
    }


# A test of one value, and the text that describes the values it accepts.
_Rule = tuple[Callable[[Any], bool], str]
_LARGEST = float(np.finfo(np.float32).max)
_U32 = 1 << 32


def _whole(low: int, below: int | None = None) -> _Rule:
    text = f"a whole number from {low}" + ("" if below is None else f" to {below - 1}")
    return lambda v: type(v) is int and low <= v and (below is None or v < below), text


def _number(low: float, high: float, text: str) -> _Rule:
    # False of nan too.
    return lambda v: type(v) in (int, float) and low <= v <= high, text


def _optional(rule: _Rule) -> _Rule:
    test, text = rule
    return lambda v: v is None or test(v), f"{text}, or null"


def _list_of(rule: _Rule, text: str) -> _Rule:
    test, _ = rule
    return lambda v: isinstance(v, list) and all(map(test, v)), text


_TEXT: _Rule = (lambda v: isinstance(v, str), "text")
_NAME: _Rule = (lambda v: isinstance(v, str) and v != "", "text, not empty")
_FLAG: _Rule = (lambda v: type(v) is bool, "true or false")
_SHARE = _number(0.0, 1.0, "a number in [0, 1]")
_POSITIVE = 5e-324

_HEADER: dict[str, _Rule] = {
    "tokenizer": _NAME,
    "vocab_size": _whole(1),
    "stop_ids": _list_of(_whole(0), "a list of token ids"),
    "policy": (lambda v: v in ("student", "teacher"), '"student" or "teacher"'),
    "model": _NAME,
    "trained": _whole(0),
    "seed": _whole(0),
    "instruction": _TEXT,
    "steps": _whole(1),
    "prompts": _whole(1),
    "group": _whole(1),
    "prompt_length": _whole(1),
    "response_length": _whole(1),
    "temperature": _number(_POSITIVE, _LARGEST, "a positive number"),
    "top_p": _optional(_number(_POSITIVE, 1.0, "a number in (0, 1]")),
    "top_k": _optional(_whole(1)),
    "config": _TEXT,
}
# All fields of a verdict but `answer`, which the file leaves out; it is None after reading.
_VERDICT: dict[str, _Rule] = {
    "reward": _SHARE,
    "test_fraction": _optional(_SHARE),
    "feedback": _TEXT,
    "error": _TEXT,
    "format_ok": _optional(_FLAG),
    "truncated": _FLAG,
    "feedback_has_gold": _FLAG,
    "tests_skipped": _whole(0),
}
_ROW: dict[str, _Rule] = {
    "step": _whole(1, _U32),
    "problem": _TEXT,
    "uid": _whole(0, _U32),
    "messages": (is_chat, "messages of role and content, the last from the user"),
    "response": _TEXT,
    **_VERDICT,
    "stopped": _FLAG,
    "context": (lambda v: isinstance(v, dict), "an object"),
    "teacher_message": _optional(_TEXT),
}
_LOGP_KEY = "behaviour_logp"  # Of `RolloutRow.sampled_logp` in the file.
_ARRAYS = ("prompt_ids", "response_ids", _LOGP_KEY)
# Fields of a row with a JSON key of their own and no further form.
_PLAIN = tuple(
    f.name
    for f in dataclasses.fields(RolloutRow)
    if f.name not in ("verdict", "prompt_ids", "response_ids", "sampled_logp")
)
_LOGP_RULE = _number(-_LARGEST, 0.0, "a finite number, at most 0")
_SHOWN: dict[str, _Rule] = {
    "shown": _list_of(_whole(0), "a list of rollouts"),
    "shown_uids": _list_of(_whole(0, _U32), "a list of uids"),
    "succeeded": _list_of(_FLAG, "a list of true and false"),
    "kinds": _list_of(_TEXT, "a list of headings"),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """Parses and checks one line of a file; errors name its number, from 1."""

    path: pathlib.Path
    number: int

    def error(self, text: str) -> NoReturn:
        """Raises RolloutFileError with the place and `text`."""
        raise RolloutFileError(f"{self.path}, line {self.number}: {text}")

    def fail(self, field: str, value: Any, expected: str) -> NoReturn:
        """Raises RolloutFileError for a value that is not as expected."""
        shown = json.dumps(value, ensure_ascii=False)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        self.error(f"{field} is {shown}; expected {expected}")

    def parse(self, raw: bytes) -> dict[str, Any]:
        """The object that a whole line holds."""
        if not raw.endswith(b"\n"):
            self.error("cut short, it has no end; the file was not written or copied whole")
        try:
            value = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # Errors of UTF-8 and of JSON.
            self.error(f"not JSON in UTF-8 ({error}); expected one object a line")
        if not isinstance(value, dict):
            self.fail("the line", value, "an object")
        return value

    def check(
        self, fields: Mapping[str, Any], rules: Mapping[str, _Rule], at: str = ""
    ) -> None:
        """Checks that every field of `rules` is present and valid; others are allowed."""
        for name, (test, expected) in rules.items():
            if name not in fields:
                self.error(f"{at}{name} is missing; expected {expected}")
            if not test(fields[name]):
                self.fail(at + name, fields[name], expected)

    def check_each(self, fields: Mapping[str, Any], name: str, rule: _Rule) -> None:
        """Checks a list of at least one value; the error names the first invalid one."""
        test, expected = rule
        filled: _Rule = (lambda v: isinstance(v, list) and v != [], "a list, not empty")
        self.check(fields, {name: filled})
        for i, value in enumerate(fields[name]):
            if not test(value):
                self.fail(f"{name}[{i}]", value, expected)


def parse_header(where: Line, raw: bytes) -> Header:
    """The header from the first line.

    Raises:
        RolloutFileError: the line is not a header, or one of another version.
    """
    fields = where.parse(raw)
    where.check(fields, {"format": (lambda v: v == FORMAT, f'"{FORMAT}"')})
    where.check(fields, {"version": _whole(0)})
    version = fields["version"]
    if version != VERSION:
        newer = "it was written by a newer mopd_jax, use that one"
        older = "it was written by an older mopd_jax, write it again with `mopd rollout`"
        where.fail("version", version, f"{VERSION}: {newer if version > VERSION else older}")
    where.check(fields, _HEADER)
    values = {f.name: fields[f.name] for f in dataclasses.fields(Header)}
    return Header(**{**values, "stop_ids": tuple(fields["stop_ids"])})


def parse_row(where: Line, raw: bytes, header: Header, vocab_size: int) -> RolloutRow:
    """The row from any further line, checked by itself.

    Args:
        vocab_size: ids are below it.

    Raises:
        RolloutFileError: names the first invalid field.
    """
    fields = where.parse(raw)
    where.check(fields, {**_ROW, "rollout": _whole(0, header.group)})
    token = _whole(0, vocab_size)
    for name, rule in zip(_ARRAYS, (token, token, _LOGP_RULE), strict=True):
        where.check_each(fields, name, rule)
    _check_response(where, fields, header)
    _check_context(where, fields)
    verdict = {name: fields[name] for name in _VERDICT} | {"reward": float(fields["reward"])}
    row = {name: fields[name] for name in _PLAIN}
    row |= {name: tuple(fields[name]) for name in ("messages", "prompt_ids")}
    return RolloutRow(
        **row,
        response_ids=np.array(fields["response_ids"], np.int32),
        sampled_logp=np.array(fields[_LOGP_KEY], np.float32),
        verdict=Verdict(**verdict),
    )


def _check_response(where: Line, fields: Mapping[str, Any], header: Header) -> None:
    """Checks lengths, and the places of stop tokens."""
    ids, stopped, stops = fields["response_ids"], fields["stopped"], header.stop_ids
    for name in ("prompt", "response"):
        most, count = getattr(header, f"{name}_length"), len(fields[f"{name}_ids"])
        if count > most:
            where.error(f"{name}_ids has {count} tokens; expected at most {name}_length={most}")
    count = len(fields[_LOGP_KEY])
    if count != len(ids):
        where.error(
            f"{_LOGP_KEY} has {count} numbers; expected {len(ids)}, one a token of response_ids"
        )
    last = len(ids) - 1
    early = next((i for i, token in enumerate(ids[:last]) if token in stops), None)
    if early is not None:
        where.fail(f"response_ids[{early}]", ids[early], "a stop token at the end only")
    if stopped and ids[last] not in stops:
        expected = f"one of the stop tokens {list(stops)}, since stopped is true"
        where.fail(f"response_ids[{last}]", ids[last], expected)
    if not stopped and ids[last] in stops:
        where.fail(f"response_ids[{last}]", ids[last], "no stop token, since stopped is false")
    if not stopped and len(ids) < header.response_length:
        expected = f"response_length={header.response_length}, since stopped is false"
        where.error(f"response_ids has {len(ids)} tokens; expected {expected}")
    if fields["truncated"] == stopped:
        where.fail("truncated", fields["truncated"], "the opposite of stopped")


def _check_context(where: Line, fields: Mapping[str, Any]) -> None:
    """Checks the peers shown: lists of one length, and never the row itself."""
    context = fields["context"]
    where.check(context, _SHOWN, at="context.")
    count = len(context["shown"])
    for name in _SHOWN:
        if len(context[name]) != count:
            where.fail(f"context.{name}", context[name], f"{count} values, as shown has")
    pairs = zip(context["shown_uids"], context["shown"], strict=True)
    if (fields["uid"], fields["rollout"]) in pairs:
        shown = context["shown"]
        where.fail("context.shown", shown, "other rollouts only, never the row itself")
