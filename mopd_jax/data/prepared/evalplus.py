"""Reads HumanEval+ and MBPP+ (arXiv 2305.01210), for evaluation.

A row's `test` is a program with two lists, `inputs` and `results`. They are read as literals
from its syntax tree; no part of it is run. Tests that JSON cannot express are left out and
counted in `meta["tests_left_out"]`; a problem with no other test is left out with that reason.
Tuples become lists: if a solution needs tuples, the self-test excludes the item.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from mopd_jax.data.prepared import programs, splits
from mopd_jax.data.prepared.rows import Format, HubSource, LeftOut, Options, SourceRow, chat
from mopd_jax.records import Problem

# Functions whose values EvalPlus 0.3.1 compares otherwise, in the order of their tasks: as sets
# (2, 7, 111, 140, 232, 249, 579, 769), as present or absent (the three on text), or by a rule
# of the task's own (164, 295, 558, 581; HumanEval/32). Compared as values, right programs fail.
_OWN_RULE = {
    "similar_elements",
    "find_char_long",
    "common_in_nested_lists",
    "extract_singly",
    "larg_nnum",
    "intersection_array",
    "find_dissimilar",
    "Diff",
    "check_str",
    "text_match_three",
    "text_starta_endb",
    "are_equivalent",
    "sum_div",
    "digit_distance_nums",
    "surface_Area",
    "find_zero",
}
_MORE = "its tests do more than compare the value of a function"
_LONGEST_TEST = 1 << 24  # Characters of the field `test`.


def _humaneval(row: SourceRow, options: Options) -> list[Problem]:
    start, function = row.text("prompt"), row.text("entry_point")
    text = f"Complete this function.\n```python\n{start.rstrip()}\n```"
    solution = start + row.text("canonical_solution")
    return [_problem(row, text, function, "candidate", solution, options, "humanevalplus")]


def _mbpp(row: SourceRow, options: Options) -> list[Problem]:
    shown = row.fields.get("test_list")
    if not isinstance(shown, list) or not shown or not all(isinstance(t, str) for t in shown):
        raise row.error("'test_list' must be a list of assertions")
    comparison = _comparison(_tree(row))
    if comparison is None:
        raise LeftOut(_MORE)
    called = comparison[0]
    text = (
        f"{row.text('prompt').strip()}\n\nThe function is called `{called}`. For example:\n"
        f"```python\n{shown[0].strip()}\n```"
    )
    return [_problem(row, text, called, called, row.text("code"), options, "mbppplus")]


def _problem(
    row: SourceRow,
    text: str,
    function: str,
    called: str,
    solution: str,
    options: Options,
    prefix: str,
) -> Problem:
    """The problem of a row.

    Args:
        text: of the prompt.
        function: the name that the program must define.
        called: the name that the row's test program calls it by.
        solution: the gold program.
        prefix: of the id.
    """
    tree = _tree(row)
    if not function.isidentifier():
        raise row.error(f"{function!r} cannot be the name of a function")
    comparison = _comparison(tree)
    if comparison is None or comparison[0] != called:
        raise LeftOut(_MORE)
    if function in _OWN_RULE:
        raise LeftOut("EvalPlus judges it by a rule of its own")
    inputs, results = _list(tree, "inputs"), _list(tree, "results")
    if inputs is None or results is None:
        raise LeftOut("its results are computed, not written down")
    if len(inputs) != len(results):
        raise row.error(f"{len(inputs)} inputs for {len(results)} results")
    tests = []
    for arguments, result in zip(inputs, results, strict=True):
        try:
            tests.append(programs.call(ast.literal_eval(arguments), ast.literal_eval(result)))
        except (ValueError, TypeError, RecursionError):
            continue
    if not tests:
        raise LeftOut("JSON can express none of its tests")
    meta: dict[str, object] = {
        "tests": programs.spread(tests, options["max_tests"]),
        "fn_name": function,
        "time_limit": options["seconds"],
        "tests_left_out": len(inputs) - len(tests),
        "tests_not_drawn": max(0, len(tests) - options["max_tests"]),
    }
    if comparison[1] > 0:
        meta["float_tolerance"] = comparison[1]
    text += "\n\n" + programs.CLOSING.format(seconds=options["seconds"])
    # "HumanEval/7" and 7 are both the task 7 of their data set.
    number = str(row.identifier("task_id")).rpartition("/")[2]
    return Problem(
        id=f"{prefix}-{number}",
        messages=chat("", text),
        answer="",
        verifier="code",
        meta=meta,
        solution=solution,
    )


def _tree(row: SourceRow) -> ast.Module:
    text = row.text("test", longest=_LONGEST_TEST)
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise row.error(f"'test' is not a Python program ({error})") from error


def _list(tree: ast.Module, name: str) -> list[ast.expr] | None:
    """The elements of the list that a name is assigned; None unless there is exactly one."""
    values = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and [t.id for t in node.targets if isinstance(t, ast.Name)] == [name]
    ]
    if len(values) != 1 or not isinstance(values[0], ast.List | ast.Tuple):
        return None
    return values[0].elts


def _comparison(tree: ast.Module) -> tuple[str, float] | None:
    """(function, absolute tolerance) if the program only tests the function's value on `*inp`.

    None if it tests anything else, or several functions.
    """
    comparisons: set[tuple[str, float]] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id != "assertion":
            continue
        match node.args:
            case [
                ast.Call(func=ast.Name(id=name), args=[ast.Starred()], keywords=[]),
                ast.Name(),
                ast.Constant(value=int() | float() as tolerance),
            ]:
                comparisons.add((name, float(tolerance)))
            case _:
                return None
    return comparisons.pop() if len(comparisons) == 1 else None


def _format(
    parse: Callable[[SourceRow, Options], Sequence[Problem]], licence: str, repo: str
) -> Format:
    return Format(
        parse=parse,
        split=splits.test_only,
        licence=licence,
        options={"max_tests": 64, "seconds": 6.0},
        hub=HubSource(repo),
    )


HUMANEVAL = _format(
    _humaneval, "Apache-2.0 (EvalPlus), MIT (HumanEval)", "evalplus/humanevalplus"
)
MBPP = _format(_mbpp, "Apache-2.0 (EvalPlus), CC BY 4.0 (MBPP)", "evalplus/mbppplus")
