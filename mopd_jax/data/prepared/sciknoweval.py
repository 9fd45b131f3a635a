"""SciKnowEval, level 3, multiple choice (arXiv 2406.09098), split as arXiv 2601.20802 does.

Two forms are read: the hub's (question, choices {text, label}, answerKey, type, domain,
details.level), and rows that were built from them (kind "mcq", prompt with the options at its
end, answer), in files that name their split. The hub's rows are split at random: it calls all
of them test. `tests/test_datasets.py` has rows of both.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from mopd_jax.data.prepared import splits
from mopd_jax.data.prepared.rows import (
    Format,
    Hub,
    LeftOut,
    Options,
    Parsed,
    Row,
    Splits,
    WrongFile,
    chat,
    short,
)
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

_BUILT = "mcq"  # The `kind` of built rows.
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
    built = row.fields.get("kind") == _BUILT
    if built:
        _check_domain(row, domain)
    question, choices, letter = _built(row) if built else _hub(row, options, domain)
    number = row.identifier("idx") if built else row.number
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
    level = row.mapping("details").get("level")
    if not isinstance(level, str) or not level.strip():
        raise row.error(f"'details.level' is {short(level)}; it must be text such as 'L3'")
    if level != options["level"]:
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
    # Backwards, as the question may have lines that look like options. Blank lines may stand
    # between options: the text of one may have ended in a line end.
    start, found = len(lines), []
    while start and not (found and found[0][1] == "A"):
        start -= 1
        if not lines[start].strip():
            continue
        match = _OPTION.match(lines[start])
        if not match:
            break
        found.insert(0, match)
    question = "\n".join(lines[:start]).strip()
    if not found or not question or lines[start - 1].strip():
        raise row.error("'prompt' does not end with a blank line and options 'A: text'")
    choices = checked_options(row, [m[1] for m in found], [m[2] for m in found])
    return question, choices, gold(row, "answer", choices)


def _check_domain(row: Row, domain: str) -> None:
    """Built rows do not say their domain; their file's name may, or else its folder's."""
    for what, name in (("file", row.part), ("folder", row.folder)):
        words = {word.removesuffix("s") for word in re.findall("[a-z]+", name.lower())}
        if what == "folder" and words - {
            *(d.removesuffix("s") for d in DOMAINS),
            "sciknoweval",
        }:
            continue  # `study_materials` says nothing of its rows.
        said = [known for known in DOMAINS if known.removesuffix("s") in words]
        if domain in said:
            return
        if said:
            raise WrongFile(
                f"{row.where}: by its name the {what} {name} is of {said[0]}, not of {domain}; "
                f"give --source a file or folder of {domain} alone, or rename it"
            )


def _split(parsed: Sequence[Parsed], options: Options) -> Splits:
    """Built rows as their files say; the others, and those whose files say nothing, at random.

    Files of both names were split by someone, so they count for the hub's form, too.
    """
    names = {splits.named(row.part) for row in parsed if row.kind != _BUILT}
    said, rest = [], []
    for row in parsed:
        counts = row.kind == _BUILT or names == {"train", "test"}
        (said if counts and splits.named(row.part) else rest).append(row)
    known = splits.given(said)
    made = splits.permuted(rest, share=options["test_share"], seed=options["seed"])
    return {split: known[split] + made[split] for split in known}


def of_domain(domain: str) -> Format:
    """The data set of one domain."""
    return Format(
        parse=functools.partial(_parse, domain=domain),
        split=_split,
        licence="MIT (the compilation)",
        options={"level": "L3", "test_share": 0.1, "seed": 42},
        hub=Hub("hicai-zju/SciKnowEval"),
    )
