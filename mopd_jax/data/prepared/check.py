"""Judges the gold answers of a prepared data set (`mopd data check`), and prints its rows."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from mopd_jax import verifiers
from mopd_jax.config.sandbox import SandboxConfig
from mopd_jax.data.prepared import store
from mopd_jax.data.prepared.rows import DataError
from mopd_jax.records import Problem
from mopd_jax.sandbox import Sandbox
from mopd_jax.verifiers import selftest

_SHOWN = 20
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # Not tab and newline.


def check(
    root: pathlib.Path,
    name: str,
    *,
    policy: str = "error",
    threads: int = 1,
    sandbox: SandboxConfig | None = None,
) -> tuple[str, bool]:
    """Judges every gold answer and its mutations, and records the outcome in the manifest.

    Args:
        policy: what happens to items that fail. "exclude" leaves them out of training and
            evaluation from now on; "keep" and "error" leave them in.
        threads: items that are judged at a time.
        sandbox: settings for gold programs; by default a run's, with a worker for each thread.

    Returns:
        The report, and whether all is well: nothing failed, or the policy is not "error".

    Raises:
        DataError: another policy, no such data set, or it is damaged or cannot be written.
        InputError: a verifier does not exist or is not installed, or the sandbox fails to open.
    """
    if policy not in ("error", "exclude", "keep"):
        raise DataError(f"--policy={policy}; it must be one of error, exclude, keep")
    manifest = store.read_manifest(root, name)
    store.check_folder(root, name)  # Before the judging, which may take long.
    store.check_content(root, name)
    lines, sound = [], True
    record: dict[str, Any] = {"policy": policy, "splits": {}, "excluded": {}}
    for split in manifest["splits"]:
        # What an earlier check excluded is judged again.
        problems = list(store.StoredProblems(root, name, split, with_excluded=True))
        result = _selftest(problems, threads, sandbox or SandboxConfig(workers=threads))
        numbers: dict[str, Any] = {**result.summary()}
        if not result.tested:
            numbers["ceiling"] = None
        bad = {name for name, _ in (*result.failed, *result.unsound)}
        places = [i for i, problem in enumerate(problems) if problem.id in bad]
        out = places if policy == "exclude" else []
        numbers["kept"] = len(problems) - len(out)
        numbers["ceiling_of_kept"] = numbers["ceiling"]
        if out:  # No item that is left fails; None if none of them was tested.
            numbers["ceiling_of_kept"] = 1.0 if result.tested > len(out) else None
        record["splits"][split] = {
            **numbers,
            "failed": [list(finding) for finding in result.failed],
            "passed_wrongly": [list(finding) for finding in result.unsound],
        }
        record["excluded"][split] = out
        lines += _report(split, result, len(problems), len(out))
        sound = sound and not (result.failed or result.unsound)
    manifest["check"] = record
    store.write_manifest(store.folder(root, name), manifest)
    if not sound and policy == "error":
        lines.append("choose --policy=exclude or --policy=keep; until then they stay in")
    return "\n".join(lines), sound or policy != "error"


def _selftest(problems: list[Problem], threads: int, cfg: SandboxConfig) -> selftest.SelfTest:
    if not verifiers.needs_sandbox(problems):
        return selftest.selftest(problems, policy="keep", threads=threads)
    with Sandbox(cfg) as sandbox:
        return selftest.selftest(problems, policy="keep", threads=threads, sandbox=sandbox)


def _report(split: str, result: selftest.SelfTest, total: int, excluded: int) -> list[str]:
    ceiling = f"ceiling {result.ceiling:.4f}" if result.tested else "ceiling not known"
    lines = [
        f"{split}: {total} items, {result.tested} tested, {ceiling}; {len(result.failed)} fail "
        f"on their own gold answer, {len(result.unsound)} let a wrong answer pass, "
        f"{len(result.untested)} have no gold response; {excluded} excluded"
    ]
    if result.mutations:
        lines.append(
            f"  mutation rate {result.mutation_rate:.4f}: "
            f"{result.passed} of {result.mutations} "
            "small changes of gold answers and golds of other rows are judged right"
        )
    bad = (*result.failed, *result.unsound)
    lines += [f"  {name}: {why}" for name, why in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"  and {len(bad) - _SHOWN} more (see the manifest)")
    return lines


def show(root: pathlib.Path, name: str, *, split: str | None = None, row: int = 0) -> str:
    """The counts of a data set, and one prompt as the student reads it.

    Args:
        split: by default train, or test if train is empty.
        row: number of the problem in the split, from 0.

    Raises:
        DataError: no such data set, split or row.
    """
    if split is None:
        split = "train" if store.read_manifest(root, name)["splits"].get("train") else "test"
    problems = store.StoredProblems(root, name, split)
    if not len(problems):
        raise DataError(f"{name} has no problems in {split}; see --split")
    if not 0 <= row < len(problems):
        raise DataError(f"--row={row}, but {name} has rows 0 to {len(problems) - 1} in {split}")
    manifest = problems.manifest
    counts = ", ".join(f"{count} {of}" for of, count in manifest["splits"].items())
    checked = manifest.get("check", {}).get("splits", {}).get(split)
    state = "not checked yet: run `mopd data check`"
    if checked:
        ceiling = checked["ceiling"]
        state = f"ceiling {ceiling:.4f}" if ceiling is not None else "ceiling not known"
        state += f", {checked['kept']} kept"
    head = f"{name} {manifest['version']}: {counts}; {split}: {state}"
    return "\n".join([head, "", *_prompt(problems[row])])


def _prompt(problem: Problem) -> list[str]:
    lines = [f"id {problem.id}, verifier {problem.verifier}"]
    for message in problem.messages:
        lines += ["", f"[{message['role']}]", message["content"]]
    lines += ["", "[gold answer, not shown to the student]"]
    tests = problem.meta.get("tests")
    if problem.answer or tests is None:
        lines.append(problem.answer)
    if tests is not None:
        lines.append(f"{len(tests)} tests")
    return [_printable(line) for line in lines]


def _printable(text: str) -> str:
    """The text with control characters, which could change a terminal's state, escaped."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
