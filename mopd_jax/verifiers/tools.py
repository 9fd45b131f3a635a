"""Tool use in the ReAct format: the calls of a response against the gold calls, one by one.

A call is a line `Action: name` and, behind it, `Action Input:` and one JSON object. Both labels
stand at the start of a line (the second also behind the name), in any case, with or without
emphasis or a number (`1. Action:`, `Action 1:`). Thoughts are not read: up to the last
</think>, or from an unclosed <think> on.

    question                     policy
    ---------------------------  ---------------------------------------------------------------
    number of calls              as many as in the gold
    order                        any; exact where `meta["order"]` is "exact"
    what must be equal           name and arguments of the same call; calls are never merged
    names                        exact and case-sensitive; quotes, backquotes and emphasis round
                                 them removed; a bracket is part of a name; one that is not on
                                 its label's line is on the next with text
    arguments                    JSON values: same keys, equal values at every depth
    types                        a string is no number, nor is true; null is no missing key
    numbers                      by value: 1 = 1.0 = 1e0, 0.10 = 0.1, in exact decimals
    strings, arrays              exact; arrays in order
    key order, white space       mean nothing
    a key given twice            not readable: which one holds is undefined
    empty arguments              {} and nothing else
    code fence, backquotes       may stand round the JSON
    text behind the JSON         only on the next line, and no second object
    an input without a name      a call that cannot be read: guesses do not come free
    unreadable or missing input  the call counts, and is wrong

Feedback says what could not be read and how many calls were read, never what the gold has.
`meta["feedback"] = "gold"` adds the expected calls, and the verdict then declares it. Gold is
in `problem.answer`: a JSON list of {"Action": name, "Action_Input": an object, or its text}.
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
_DEEPEST = 64
_SHOWN = 8  # Calls that feedback speaks of one by one.

Canonical = tuple


class Call(NamedTuple):
    """One call: its name, its arguments in a form that compares, or why there are none."""

    name: str
    arguments: Canonical | None
    problem: str


def verify(problem: Problem, response: str) -> Verdict:
    """1 if the calls of the response are the gold calls by the table above, else 0."""
    gold, wrong = _gold(problem)
    if wrong:
        return Verdict(0.0, error=wrong)
    found = calls(response)
    readable = bool(found) and not any(call.problem for call in found)
    pairs = [(call.name, call.arguments) for call in found]
    wanted = [(call.name, call.arguments) for call in gold]
    if problem.meta.get("order", "any") == "exact":
        right = pairs == wanted
    else:
        right = collections.Counter(pairs) == collections.Counter(wanted)
    right = right and readable
    disclose = problem.meta.get("feedback", "format") == "gold"
    return Verdict(
        float(right),
        feedback="" if right else _feedback(found, problem.answer if disclose else ""),
        format_ok=readable,
        feedback_has_gold=disclose and not right,
    )


def calls(response: str) -> list[Call]:
    """The calls of a response in their order."""
    text = answer_part(response)
    found: list[Call] = []
    waits = False  # Whether an Action has no input yet.
    labels = _labels(text)
    # No label stands inside of JSON, whose strings cannot hold a line's end.
    ends = [label.start() for label in labels[1:]] + [len(text)]
    for i, label in enumerate(labels):
        if label["input"]:
            if not waits:
                found.append(Call("", None, "its Action Input has no Action"))
            waits = False
            continue
        lines = text[label.end() : ends[i]].lstrip(" \t\r\n")
        head, _, _ = lines.partition("\n")
        value = None
        if same_line := _INPUT.search(head):
            value = lines[same_line.end() :]
            head = head[: same_line.start()]
        elif i + 1 < len(labels) and labels[i + 1]["input"]:
            value = text[labels[i + 1].end() : ends[i + 1]]
        waits = not same_line
        arguments, problem = None, "it has no Action Input"
        if value is not None:
            arguments, problem = _read(value)
        name = _name(head)
        found.append(Call(name, arguments, problem if name else "its Action has no name"))
    return found


def _labels(text: str) -> list[re.Match[str]]:
    """The labels of calls; those of a numbered plan are none, if no number has an input."""
    labels = list(_LABEL.finditer(text))
    numbered = [m for m in labels if (m["item"] or m["number"]) and not m["input"]]
    if len(numbered) == sum(not m["input"] for m in labels):
        return labels
    behind = dict(zip(labels, [*labels[1:], None], strict=True))
    for label in numbered:
        end = text.find("\n", label.end()) % (len(text) + 1)  # Of the line, or of all.
        same_line = _INPUT.search(text, label.end(), end)
        if same_line or (behind[label] and behind[label]["input"]):
            return labels
    plan = set(numbered)
    return [label for label in labels if label not in plan]


def answer(problem: Problem, response: str) -> str:
    """The calls as text, in one order where theirs does not count; "" if one is unreadable."""
    found = calls(response)
    if any(call.problem for call in found):
        return ""
    texts = [f"{call.name} {_text(call.arguments)}" for call in found]
    ordered = problem.meta.get("order", "any") == "exact"
    return "\n".join(texts if ordered else sorted(texts))


def gold_response(problem: Problem) -> str:
    """The gold calls in the asked format."""
    return _render(_raw_gold(problem))


def mutated(problem: Problem) -> tuple[str, ...]:
    """Responses that must score 0: a call less, one more, another name, another argument, an
    argument more or less, and calls without readable arguments."""
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
    """[(name, arguments)] of a well-formed gold answer; raises ValueError of others."""
    if wrong := _gold(problem)[1]:
        raise ValueError(wrong)
    rows = json.loads(problem.answer)
    inputs = [row["Action_Input"] for row in rows]
    return [
        (row["Action"], json.loads(value) if isinstance(value, str) else value)
        for row, value in zip(rows, inputs, strict=True)
    ]


def _gold(problem: Problem) -> tuple[list[Call], str]:
    """(gold calls, what is wrong with the item)."""
    for key, known in (("order", ("any", "exact")), ("feedback", ("format", "gold"))):
        value = problem.meta.get(key, known[0])
        if value not in known:
            return [], f"meta[{key!r}] is {value!r}; it must be one of {', '.join(known)}"
    try:
        rows = _loads(problem.answer)
    except ValueError as error:
        return [], f"the gold answer is no JSON ({error})"
    if not isinstance(rows, list) or not rows:
        return [], "the gold answer is no list of calls"
    gold = []
    for i, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or set(row) != {"Action", "Action_Input"}:
            return [], f"gold call {i} is no object of Action and Action_Input"
        name, value = row["Action"], row["Action_Input"]
        if not isinstance(name, str) or not _name(name):
            return [], f"gold call {i} has no name"
        if "\n" in _name(name):  # A response has names in one line.
            return [], f"gold call {i} has a name of several lines, {name[:40]!r}"
        try:
            value = _loads(value) if isinstance(value, str) else value
            if not isinstance(value, dict):
                raise ValueError("no object")
            gold.append(Call(_name(name), _canonical(value), ""))
        except ValueError as error:
            return [], f"gold call {i} has unreadable arguments ({error})"
    return gold, ""


def _name(text: str) -> str:
    return text.strip().strip("*`\"'").strip()


def _read(text: str) -> tuple[Canonical | None, str]:
    """(arguments, what is wrong with them) of the text behind an Action Input."""
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
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


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
    """A hashable form that is equal exactly where JSON values are equal by the table above."""
    if depth > _DEEPEST:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        items = ((key, _canonical(item, depth + 1)) for key, item in value.items())
        return ("object", frozenset(items))
    if isinstance(value, list):
        return ("array", tuple(_canonical(item, depth + 1) for item in value))
    # The type's name keeps true from 1 and "1" from 1.
    return (type(value).__name__, value)


def _text(value: Canonical | None) -> str:
    """One text for all forms that are equal, the same in every process."""
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
        kept = "".join(map(str, digits)).rstrip("0")
        exponent += len(digits) - len(kept)
        return f"{'-' * sign}{kept}e{exponent}" if kept else "0"
    return json.dumps(inner)


def _feedback(found: list[Call], gold: str) -> str:
    lines = []
    if not found:
        lines.append("No call was found: write lines 'Action: name' and 'Action Input: {...}'.")
    else:
        lines.append(f"Calls that were found: {len(found)}.")
        broken = [(i, call) for i, call in enumerate(found, start=1) if call.problem]
        lines += [f"Call {i} cannot be read: {call.problem}." for i, call in broken[:_SHOWN]]
        if len(broken) > _SHOWN:
            lines.append(f"{len(broken) - _SHOWN} more calls cannot be read.")
    if gold:
        lines.append(f"The expected calls are: {gold}")
    return "\n".join(lines)
