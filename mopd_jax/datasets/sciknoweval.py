"""SciKnowEval, level 3, multiple choice (arXiv 2406.09098), split as arXiv 2601.20802 does.

Two forms are read: the hub's (question, choices {text, label}, answerKey, type, domain,
details.level), and rows that were built from them (kind "mcq", prompt with the options at its
end, answer), in files that name their split. `tests/test_datasets.py` has rows of both.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from mopd_jax.datasets import splits
from mopd_jax.datasets.rows import Format, Hub, LeftOut, Options, Parsed, Row, Splits, chat
from mopd_jax.records import Problem

DOMAINS = ("biology", "chemistry", "physics", "material")
SYSTEM = """\
You answer multiple-choice questions in science. Think inside <reasoning> and </reasoning>. \
Then write the letter of the one right option, and nothing else, inside <answer> and \
</answer>, like this:
<reasoning>
your reasoning
</reasoning>
<answer>
{example}
</answer>"""
CLOSING = "Reason step by step, then give the letter."

_OPTION = re.compile(r"^([A-Z]): ?(.*)$", re.DOTALL)
_LAST_LINE = "Please reason step by step."  # Of the built rows, which we replace by our own.


def prompt(question: str, options: Mapping[str, str]) -> tuple:
    """The messages of a multiple-choice question."""
    lines = "\n".join(f"{letter}: {text}" for letter, text in options.items())
    letters = ", ".join(options)
    system = SYSTEM.format(example=next(iter(options)))
    return chat(system, f"{question}\n\n{lines}\n\n{CLOSING} (One of {letters}.)")


def checked_options(row: Row, letters: Sequence[Any], texts: Sequence[Any]) -> dict[str, str]:
    """letter -> text, A first; raises DataError if they are not that."""
    if len(letters) != len(texts) or len(texts) < 2:
        raise row.error(f"{len(letters)} letters for {len(texts)} options; give two or more")
    if list(letters) != list(string.ascii_uppercase[: len(letters)]):
        raise row.error(f"the options are called {list(letters)!r}; they must be A, B, ...")
    for letter, text in zip(letters, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise row.error(f"option {letter} is {text!r}; it must be text")
        row.checked(text, f"option {letter}")
    return dict(zip(letters, texts, strict=True))


def gold(row: Row, name: str, options: Mapping[str, str]) -> str:
    """The gold letter; raises DataError if it is none of the options."""
    letter = row.text(name).strip()
    if letter not in options:
        raise row.error(f"{name!r} is {letter[:40]!r}, none of {', '.join(options)}")
    return letter


def _parse(row: Row, options: Options, *, domain: str) -> list[Problem]:
    built = row.fields.get("kind") == "mcq"
    question, choices, letter = _built(row) if built else _hub(row, options, domain)
    number = row.fields.get("idx", row.number) if built else row.number
    return [
        Problem(
            id=f"sciknoweval-{domain}-{number}",
            messages=prompt(question, choices),
            answer=letter,
            verifier="choice",
            meta={"options": choices},
        )
    ]


def _hub(row: Row, options: Options, domain: str) -> tuple[str, dict[str, str], str]:
    # Materials or Material, Physics.
    if row.text("domain").strip().lower().removesuffix("s") != domain.removesuffix("s"):
        raise LeftOut("another domain")
    if row.mapping("details").get("level") != options["level"]:
        raise LeftOut("another level")
    if not row.text("type").startswith("mcq"):
        raise LeftOut("not multiple choice")
    choices = row.mapping("choices")
    letters, texts = choices.get("label"), choices.get("text")
    if not isinstance(letters, list | tuple) or not isinstance(texts, list | tuple):
        raise row.error("'choices' has no lists 'label' and 'text'")
    if len(texts) not in (2, 4):
        raise LeftOut("neither two nor four options")
    found = checked_options(row, letters, texts)
    return row.text("question").strip(), found, gold(row, "answerKey", found)


def _built(row: Row) -> tuple[str, dict[str, str], str]:
    lines = row.text("prompt").removesuffix(_LAST_LINE).rstrip("\n").split("\n")
    # The options are the last paragraph; the question may have others that look like them.
    start = len(lines)
    while start and lines[start - 1]:
        start -= 1
    found = [_OPTION.match(line) for line in lines[start:]]
    if not all(found) or not start:
        raise row.error("'prompt' does not end with a blank line and options 'A: text'")
    choices = checked_options(row, [m[1] for m in found], [m[2] for m in found])
    return "\n".join(lines[: start - 1]).strip(), choices, gold(row, "answer", choices)


def _split(parsed: Sequence[Parsed], options: Options) -> Splits:
    # The hub calls all of its rows test.
    if {splits.named(row.part) for row in parsed} == {"train", "test"}:
        return splits.given(parsed)
    return splits.permuted(parsed, share=options["test_share"], seed=options["seed"])


def of_domain(domain: str) -> Format:
    """The data set of one domain."""
    return Format(
        parse=functools.partial(_parse, domain=domain),
        split=_split,
        licence="MIT (the compilation)",
        options={"level": "L3", "test_share": 0.1, "seed": 42},
        hub=Hub("hicai-zju/SciKnowEval"),
    )
