"""Reads mathematics: DeepMath-103K (arXiv 2504.11456) to train, contests to evaluate, GSM8K.

    data set                 problem, gold answer                        split
    -----------------------  ------------------------------------------  -----------------------
    deepmath                 question, final_answer, difficulty          train; difficulty >= 6
    aime24, aime25           problem or question; answer, or without it  test
    hmmt_feb25, hmmt_nov25   the last box of the solution
    gsm8k                    question; answer, after its last ####       by file names

Signs and thousands separators stay in the gold answer, since the verifier reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from mopd_jax.data.prepared import splits
from mopd_jax.data.prepared.rows import (
    Format,
    HubSource,
    LeftOut,
    Options,
    ParsedProblem,
    SourceRow,
    Splits,
    chat,
)
from mopd_jax.records import Problem
from mopd_jax.verifiers.mathematics import parsing

CLOSING = r"Think step by step, and put the final answer into \boxed{}."
_MARK = "####"


def _problem(name: str, question: str, answer: str, solution: str = "") -> Problem:
    messages = chat("", f"{question.strip()}\n\n{CLOSING}")
    return Problem(name, messages, answer.strip(), "math", solution=solution)


def _deepmath(row: SourceRow, options: Options) -> list[Problem]:
    if row.number_of("difficulty") < options["min_difficulty"]:
        raise LeftOut(f"difficulty below {options['min_difficulty']:g}")
    solution = row.text("r1_solution_1") if options["solutions"] else ""
    question, answer = row.text("question"), row.text("final_answer")
    return [_problem(f"deepmath-{row.number}", question, answer, solution)]


def _contest(row: SourceRow, options: Options, *, contest: str) -> list[Problem]:
    del options
    name = f"{contest}-{row.identifier('problem_idx', 'id')}"
    return [_problem(name, row.first_text("problem", "question"), _gold(row))]


def _gold(row: SourceRow) -> str:
    value = row.fields.get("answer")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None:
        return row.text("answer")
    box = parsing.last_box(row.text("solution"))
    if box is None or not box.closed or not box.content.strip():
        raise row.error("no 'answer', and no box in 'solution' that can be read")
    return box.content


def _gsm8k(row: SourceRow, options: Options) -> list[Problem]:
    del options
    worked, mark, answer = row.text("answer").rpartition(_MARK)
    if not mark or not answer.strip() or "\n" in answer.strip():
        raise row.error(f"'answer' does not end with {_MARK} and the result")
    name = f"gsm8k-{row.stem}-{row.number}"
    return [_problem(name, row.text("question"), answer, worked.strip())]


def _by_file_names(parsed: Sequence[ParsedProblem], options: Options) -> Splits:
    del options
    return splits.by_file_names(parsed)


DEEPMATH = Format(
    parse=_deepmath,
    split=splits.train_only,
    licence="MIT",
    options={"min_difficulty": 6.0, "solutions": False},
    hub=HubSource("zwhe99/DeepMath-103K"),
)
GSM8K = Format(
    parse=_gsm8k,
    split=_by_file_names,
    licence="MIT",
    hub=HubSource("openai/gsm8k", files=("main/*.parquet",)),
)


def contest(name: str, repo: str, licence: str) -> Format:
    """The format of a contest, which is for evaluation only."""
    return Format(
        parse=functools.partial(_contest, contest=name),
        split=splits.test_only,
        licence=licence,
        hub=HubSource(repo),
    )
