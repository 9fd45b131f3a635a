"""`mopd data check` and `mopd data show`: what the verifiers say of a prepared data set."""

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
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # Not tab and newline.


def check(
    root: pathlib.Path,
    name: str,
    *,
    policy: selftest.Policy = "error",
    threads: int = 1,
    sandbox: SandboxConfig | None = None,
) -> tuple[str, bool]:
    """Judges every gold answer and its mutations, and records the outcome in the manifest.

    Args:
        policy: "exclude" leaves items that fail out of training and evaluation from now on,
            "keep" leaves them in, and so does "error", which only says that they are there.
        threads: items at a time.
        sandbox: of the programs that are to be run; by default as a run's, a worker a thread.

    Returns:
        The report, and whether it is good: nothing failed, or the policy decided about it.

    Raises:
        DataError: no such data set, it is damaged, or its manifest cannot be written.
        InputError: a verifier does not exist or is not installed, or the sandbox cannot be had.
    """
    if policy not in ("error", "exclude", "keep"):
        raise DataError(f"--policy={policy}; it must be one of error, exclude, keep")
    manifest = store.read_manifest(root, name)
    store.check_folder(root, name)  # Known before anything is judged.
    store.check_content(root, name)
    lines, sound = [], True
    record: dict[str, Any] = {"policy": policy, "splits": {}, "excluded": {}}
    for split in manifest["splits"]:
        # What an earlier check excluded is judged again.
        problems = list(store.Stored(root, name, split, with_excluded=True))
        found = _selftest(problems, threads, sandbox or SandboxConfig(workers=threads))
        numbers = found.summary()
        if not found.tested:
            numbers["ceiling"] = None
        bad = {name for name, _ in (*found.failed, *found.unsound)}
        places = [i for i, problem in enumerate(problems) if problem.id in bad]
        out = places if policy == "exclude" else []
        numbers["kept"] = len(problems) - len(out)
        numbers["ceiling_of_kept"] = numbers["ceiling"]
        if out:  # Of these none fails; known where one was tested.
            numbers["ceiling_of_kept"] = 1.0 if found.tested > len(out) else None
        record["splits"][split] = {
            **numbers,
            "failed": [list(finding) for finding in found.failed],
            "passed_wrongly": [list(finding) for finding in found.unsound],
        }
        record["excluded"][split] = out
        lines += _report(split, found, len(problems), len(out))
        sound = sound and not (found.failed or found.unsound)
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


def _report(split: str, found: selftest.SelfTest, total: int, excluded: int) -> list[str]:
    ceiling = f"ceiling {found.ceiling:.4f}" if found.tested else "ceiling not known"
    lines = [
        f"{split}: {total} items, {found.tested} tested, {ceiling}; {len(found.failed)} fail "
        f"on their own gold answer, {len(found.unsound)} let a wrong answer pass, "
        f"{len(found.untested)} have no gold response; {excluded} excluded"
    ]
    bad = (*found.failed, *found.unsound)
    lines += [f"  {name}: {why}" for name, why in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"  and {len(bad) - _SHOWN} more (see the manifest)")
    return lines


def show(root: pathlib.Path, name: str, *, split: str | None = None, row: int = 0) -> str:
    """The counts of a data set, and one prompt as the student reads it.

    The split is by default train, and test where train is empty.

    Raises:
        DataError: no such data set, split or row.
    """
    if split is None:
        split = "train" if store.read_manifest(root, name)["splits"].get("train") else "test"
    problems = store.Stored(root, name, split)
    if not len(problems):
        raise DataError(f"{name} has no problems in {split}; see --split")
    if not 0 <= row < len(problems):
        raise DataError(f"--row={row}, but {name} has rows 0 to {len(problems) - 1} in {split}")
    manifest = problems.manifest
    counts = ", ".join(f"{n} {part}" for part, n in manifest["splits"].items())
    checked = manifest.get("check", {}).get("splits", {}).get(split)
    said = "not checked yet: run `mopd data check`"
    if checked:
        ceiling = checked["ceiling"]
        said = f"ceiling {ceiling:.4f}" if ceiling is not None else "ceiling not known"
        said += f", {checked['kept']} kept"
    head = f"{name} {manifest['version']}: {counts}; {split}: {said}"
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
    """Text as it is but for what would steer a terminal."""
    return _STEERS.sub(lambda found: repr(found[0])[1:-1], text)
