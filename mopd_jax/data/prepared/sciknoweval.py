"""Reads SciKnowEval, level 3, multiple choice (arXiv 2406.09098), split as in arXiv 2601.20802.

Rows have one of two forms: the hub's (question, choices {text, label}, answerKey, type, domain,
details.level), or rows that others built from them (kind "mcq", prompt with the options at its
end, answer), in files that name their split. The hub calls all of its rows test, so those are
split at random. `tests/test_datasets.py` has rows of both.
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
    HubSource,
    LeftOut,
    Options,
    ParsedProblem,
    SourceRow,
    Splits,
    WrongFile,
    chat,
    short,
)
from mopd_jax.records import Message, Problem

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

_BUILT = "mcq"  # The field `kind` of built rows.
_OPTION = re.compile(r"^([A-Z]): ?(.*)$", re.DOTALL)
_LAST_LINE = "Please reason step by step."  # Ends built prompts; our own closing replaces it.


def prompt(question: str, options: Mapping[str, str]) -> tuple[Message, ...]:
    """The messages of a multiple-choice question."""
    lines = "\n".join(f"{letter}: {text}" for letter, text in options.items())
    letters = ", ".join(options)
    system = SYSTEM.format(example=next(iter(options)))
    return chat(system, f"{question}\n\n{lines}\n\n{CLOSING} (One of {letters}.)")


def checked_options(
    row: SourceRow, letters: Sequence[Any], texts: Sequence[Any]
) -> dict[str, str]:
    """{letter: text}, A first; raises DataError unless they are lettered from A, with texts."""
    if len(letters) != len(texts) or len(texts) < 2:
        raise row.error(f"{len(letters)} letters for {len(texts)} options; give two or more")
    if list(letters) != list(string.ascii_uppercase[: len(letters)]):
        raise row.error(f"the options are called {list(letters)!r}; they must be A, B, ...")
    for letter, text in zip(letters, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise row.error(f"option {letter} is {text!r}; it must be text")
        row.checked(text, f"option {letter}")
    return dict(zip(letters, texts, strict=True))


def gold(row: SourceRow, name: str, options: Mapping[str, str]) -> str:
    """The gold letter; raises DataError if no option has it."""
    letter = row.text(name).strip()
    if letter not in options:
        raise row.error(f"{name!r} is {letter[:40]!r}; it must be one of {', '.join(options)}")
    return letter


def _parse(row: SourceRow, options: Options, *, domain: str) -> list[Problem]:
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


def _hub(row: SourceRow, options: Options, domain: str) -> tuple[str, dict[str, str], str]:
    # The hub writes Physics, and both Material and Materials.
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
    options_by_letter = checked_options(row, letters, texts)
    letter = gold(row, "answerKey", options_by_letter)
    return row.text("question").strip(), options_by_letter, letter


def _built(row: SourceRow) -> tuple[str, dict[str, str], str]:
    lines = row.text("prompt").removesuffix(_LAST_LINE).rstrip("\n").split("\n")
    # Backwards, as the question may have lines that look like options. There may be blank lines
    # between options, since an option's text may end in a line end.
    start = len(lines)
    matches: list[re.Match[str]] = []
    while start and not (matches and matches[0][1] == "A"):
        start -= 1
        if not lines[start].strip():
            continue
        match = _OPTION.match(lines[start])
        if not match:
            break
        matches.insert(0, match)
    question = "\n".join(lines[:start]).strip()
    if not matches or not question or lines[start - 1].strip():
        raise row.error("'prompt' does not end with a blank line and options 'A: text'")
    choices = checked_options(row, [m[1] for m in matches], [m[2] for m in matches])
    return question, choices, gold(row, "answer", choices)


def _check_domain(row: SourceRow, domain: str) -> None:
    """Raises WrongFile if the file's name, or else its folder's, has another domain.

    A built row itself does not say its domain.
    """
    for what, name in (("file", row.stem), ("folder", row.folder)):
        words = {word.removesuffix("s") for word in re.findall("[a-z]+", name.lower())}
        if what == "folder" and words - {
            *(d.removesuffix("s") for d in DOMAINS),
            "sciknoweval",
        }:
            continue  # A folder such as `study_materials` is not named after its rows.
        named = [known for known in DOMAINS if known.removesuffix("s") in words]
        if domain in named:
            return
        if named:
            raise WrongFile(
                f"{row.where}: by its name the {what} {name} is of {named[0]}, not of "
                f"{domain}; give --source a file or folder of {domain} alone, or rename it"
            )


def _split(parsed: Sequence[ParsedProblem], options: Options) -> Splits:
    """Built rows by the names of their files; rows of the hub, and of other files, at random.

    If the hub's rows are in files of both names, somebody has split them: then by these names.
    """
    hub_splits = {splits.split_of(row.stem) for row in parsed if row.kind != _BUILT}
    by_name: list[ParsedProblem] = []
    rest: list[ParsedProblem] = []
    for row in parsed:
        trusted = row.kind == _BUILT or hub_splits == {"train", "test"}
        (by_name if trusted and splits.split_of(row.stem) else rest).append(row)
    named = splits.by_file_names(by_name)
    drawn = splits.permuted(rest, share=options["test_share"], seed=options["seed"])
    return {split: named[split] + drawn[split] for split in named}


def of_domain(domain: str) -> Format:
    """The format of one domain's data set."""
    return Format(
        parse=functools.partial(_parse, domain=domain),
        split=_split,
        licence="MIT (the compilation)",
        options={"level": "L3", "test_share": 0.1, "seed": 42},
        hub=HubSource("hicai-zju/SciKnowEval"),
    )
