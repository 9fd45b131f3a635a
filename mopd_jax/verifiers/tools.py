"""The verifier `tools`: the calls of a response in ReAct format against the gold calls.

A call is a line `Action: name` and, behind it, `Action Input:` and one JSON object. Calls are
compared one by one, with typed arguments; docs/verifiers.md has the policy.

Feedback says how many calls were read and which cannot be, never what the gold has.
`meta["feedback"] = "gold"` adds the expected calls, which the verdict then declares. Gold is in
`problem.answer`: a JSON list of {"Action": name, "Action_Input": an object, or its text}.
"""

from __future__ import annotations

import collections
import decimal
import json
import re
from typing import Any, NamedTuple

from mopd_jax.records import Problem, Verdict
from mopd_jax.thinking import answer_part

_LABEL = re.compile(
    r"^[ \t>*_#-]*(?P<item>\d{1,3}[.)][ *_]*)?"
    r"action(?P<input>[ _]input)?(?P<number> ?\d{1,3})?[*_ \t]*:[ \t*]*",
    re.IGNORECASE | re.MULTILINE,
)
_INPUT = re.compile(r"\baction[ _]input(?: ?\d{1,3})?[*_ \t]*:[ \t*]*", re.IGNORECASE)
_FENCE = re.compile(r"\A\s*`{1,3}(?:json)?", re.IGNORECASE)
_FENCED = re.compile(r"[\s*]*(?:`{1,3}(?:json)?[\s*]*){0,2}\{", re.IGNORECASE)
_DEEPEST = 64  # Levels of nested arguments; deeper ones cannot be read.
_SHOWN = 8  # Unreadable calls that feedback lists one by one.

Canonical = tuple[str, Any]  # (kind, hashable value), as `_canonical` makes it.


class Call(NamedTuple):
    """One call of a response or of the gold."""

    name: str
    arguments: Canonical | None  # None where they cannot be read.
    problem: str  # Why the call cannot be read, or "".


def verify(problem: Problem, response: str) -> Verdict:
    """1 if the calls of the response are the gold calls, by docs/verifiers.md, else 0."""
    gold, fault = _gold(problem)
    called = calls(response)
    ordered = problem.meta.get("order", "any") == "exact"
    answer = _answer(called, ordered=ordered) or None
    if fault:
        return Verdict(0.0, error=fault, answer=answer)
    readable = bool(called) and not any(call.problem for call in called)
    pairs = [(call.name, call.arguments) for call in called]
    gold_pairs = [(call.name, call.arguments) for call in gold]
    if ordered:
        right = pairs == gold_pairs
    else:
        right = collections.Counter(pairs) == collections.Counter(gold_pairs)
    right = right and readable
    disclose = problem.meta.get("feedback", "format") == "gold"
    return Verdict(
        float(right),
        feedback="" if right else _feedback(called, problem.answer if disclose else ""),
        format_ok=readable,
        feedback_has_gold=disclose and not right,
        answer=answer,
    )


def calls(response: str) -> list[Call]:
    """The calls of a response in their order, unreadable ones included."""
    text = answer_part(response)
    called: list[Call] = []
    waiting = False  # Whether the last Action has no input yet.
    labels = _labels(text)
    # Labels begin a line, so none is inside JSON, whose strings cannot hold a line's end.
    ends = [label.start() for label in labels[1:]] + [len(text)]
    for i, label in enumerate(labels):
        if label["input"]:
            if not waiting:
                called.append(Call("", None, "its Action Input has no Action"))
            waiting = False
            continue
        lines = text[label.end() : ends[i]].lstrip(" \t\r\n")
        head, _, _ = lines.partition("\n")
        value = None
        if same_line := _INPUT.search(head):
            value = lines[same_line.end() :]
            head = head[: same_line.start()]
        elif i + 1 < len(labels) and labels[i + 1]["input"]:
            value = text[labels[i + 1].end() : ends[i + 1]]
        waiting = not same_line
        arguments, problem = None, "it has no Action Input"
        if value is not None:
            arguments, problem = _read(value)
        name = _name(head)
        called.append(Call(name, arguments, problem if name else "its Action has no name"))
    return called


def _labels(text: str) -> list[re.Match[str]]:
    """The labels of calls. Where Actions without a number have calls, numbered ones of which
    none has an input are a plan, and left out."""
    labels = list(_LABEL.finditer(text))
    numbered = [m for m in labels if (m["item"] or m["number"]) and not m["input"]]
    if len(numbered) == sum(not m["input"] for m in labels):
        return labels
    after: dict[re.Match[str], re.Match[str] | None]
    after = dict(zip(labels, [*labels[1:], None], strict=True))
    for label in numbered:
        end = text.find("\n", label.end()) % (len(text) + 1)  # Of the line, or of the text.
        same_line = _INPUT.search(text, label.end(), end)
        following = after[label]
        if same_line or (following and following["input"]):
            return labels
    plan = set(numbered)
    return [label for label in labels if label not in plan]


def _answer(called: list[Call], *, ordered: bool) -> str:
    """The calls as text, sorted where their order does not count; "" if one is unreadable."""
    if any(call.problem for call in called):
        return ""
    texts = [f"{call.name} {_text(call.arguments)}" for call in called]
    return "\n".join(texts if ordered else sorted(texts))


def gold_response(problem: Problem) -> str:
    """The gold calls in the format that prompts ask for."""
    return _render(_raw_gold(problem))


def mutated(problem: Problem) -> tuple[str, ...]:
    """Wrong responses, which must score 0: a call less, one more, another name, an argument
    changed, added or missing, and calls without readable arguments."""
    gold = _raw_gold(problem)
    (name, arguments), rest = gold[0], gold[1:]
    changed = [
        [*gold, gold[-1]],
        [(name + "X", arguments), *rest],
        [(name, {**arguments, "no_such_argument": 1}), *rest],
    ]
    for key in arguments:
        others = {k: v for k, v in arguments.items() if k != key}
        changed.append([(name, others), *rest])
        changed.append([(name, {**others, key: [arguments[key]]}), *rest])
    texts = [_render(calls_) for calls_ in changed]
    if rest:
        texts.append(_render(rest))
    if problem.meta.get("order", "any") == "exact" and gold[::-1] != gold:
        texts.append(_render(gold[::-1]))
    return (*texts, f"Action: {name}", f"Action: {name}\nAction Input: {{}} or so", "")


def _render(gold: list[tuple[str, dict[str, Any]]]) -> str:
    return "\n".join(
        f"Action: {name}\nAction Input: {json.dumps(arguments)}" for name, arguments in gold
    )


def _raw_gold(problem: Problem) -> list[tuple[str, dict[str, Any]]]:
    """[(name, arguments)] of the gold answer. Raises ValueError if it is not well formed."""
    if fault := _gold(problem)[1]:
        raise ValueError(fault)
    rows = json.loads(problem.answer)
    inputs = [row["Action_Input"] for row in rows]
    return [
        (row["Action"], json.loads(value) if isinstance(value, str) else value)
        for row, value in zip(rows, inputs, strict=True)
    ]


def _gold(problem: Problem) -> tuple[list[Call], str]:
    """(gold calls, why the item is unusable or "")."""
    for key, known in (("order", ("any", "exact")), ("feedback", ("format", "gold"))):
        value = problem.meta.get(key, known[0])
        if value not in known:
            return [], f"meta[{key!r}] is {value!r}; it must be one of {', '.join(known)}"
    try:
        rows = _loads(problem.answer)
    except ValueError as error:
        return [], f"the gold answer is not JSON ({error})"
    if not isinstance(rows, list) or not rows:
        return [], "the gold answer is not a list of at least one call"
    gold = []
    for i, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or set(row) != {"Action", "Action_Input"}:
            return [], f"gold call {i} is not an object of Action and Action_Input alone"
        name, value = row["Action"], row["Action_Input"]
        if not isinstance(name, str) or not _name(name):
            return [], f"gold call {i} has no name"
        if "\n" in _name(name):  # The names in a response are one line.
            return [], f"gold call {i} has a name of several lines, {name[:40]!r}"
        try:
            value = _loads(value) if isinstance(value, str) else value
            if not isinstance(value, dict):
                raise ValueError("not an object")
            gold.append(Call(_name(name), _canonical(value), ""))
        except ValueError as error:
            return [], f"gold call {i} has unreadable arguments ({error})"
    return gold, ""


def _name(text: str) -> str:
    return text.strip().strip("*`\"'").strip()


def _read(text: str) -> tuple[Canonical | None, str]:
    """(arguments, why they cannot be read or "") of the text behind an Action Input."""
    text = _FENCE.sub("", text, count=1).lstrip(" \t\r\n*")
    if not text.startswith("{"):
        return None, "its Action Input is no JSON object"
    try:
        value, end = _DECODER.raw_decode(text)
        arguments = _canonical(value)
    except RecursionError:
        return None, "its Action Input is nested too deeply"
    except ValueError as error:
        return None, f"its Action Input is not readable JSON ({error})"
    rest, _, behind = text[end:].partition("\n")
    if rest.strip(" \t\r*`") or _FENCED.match(behind):
        return None, "text stands behind the JSON of its Action Input"
    return arguments, ""


def _loads(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice")
    return value


def _number(text: str) -> decimal.Decimal:
    try:
        return decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise ValueError("a number out of range") from None


def _constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_number, parse_int=_number, parse_constant=_constant
)


def _canonical(value: Any, depth: int = 0) -> Canonical:
    """A hashable form: two are equal exactly where the JSON values count as equal.

    Raises:
        ValueError: nested more than 64 deep.
    """
    if depth > _DEEPEST:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        items = ((key, _canonical(item, depth + 1)) for key, item in value.items())
        return ("object", frozenset(items))
    if isinstance(value, list):
        return ("array", tuple(_canonical(item, depth + 1) for item in value))
    # With the type's name, true and "1" differ from 1.
    return (type(value).__name__, value)


def _text(value: Canonical | None) -> str:
    """A text that is the same for equal forms, in every process; None gives ""."""
    if value is None:
        return ""
    kind, inner = value
    if kind == "object":
        pairs = sorted((json.dumps(key), _text(item)) for key, item in inner)
        return "{" + ", ".join(f"{key}: {item}" for key, item in pairs) + "}"
    if kind == "array":
        return "[" + ", ".join(map(_text, inner)) + "]"
    if kind == "Decimal":
        sign, digits, exponent = inner.as_tuple()
        significant = "".join(map(str, digits)).rstrip("0")
        exponent += len(digits) - len(significant)
        return f"{'-' * sign}{significant}e{exponent}" if significant else "0"
    return json.dumps(inner)


def _feedback(called: list[Call], gold: str) -> str:
    """What the response's calls lack; the expected calls too, unless `gold` is ""."""
    lines = []
    if not called:
        lines.append("No call was found: write lines 'Action: name' and 'Action Input: {...}'.")
    else:
        lines.append(f"Calls that were found: {len(called)}.")
        broken = [(i, call) for i, call in enumerate(called, start=1) if call.problem]
        lines += [f"Call {i} cannot be read: {call.problem}." for i, call in broken[:_SHOWN]]
        if len(broken) > _SHOWN:
            lines.append(f"{len(broken) - _SHOWN} more calls cannot be read.")
    if gold:
        lines.append(f"The expected calls are: {gold}")
    return "\n".join(lines)
