"""Ignored type errors are few and say why; mypy itself runs in `.ci/run`."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
MOST = 25
IGNORE = re.compile(r"#\s*type:\s*ignore.*")
# `# type: ignore[code]  # Reason.`
GOOD = re.compile(r"# type: ignore\[[a-z-]+(, ?[a-z-]+)*\] +# \S.{5,}")


def test_every_ignore_has_its_code_and_reason_and_they_are_few():
    found = []
    for folder in ("mopd_jax", "kernels", "examples", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path != pathlib.Path(__file__):
                for number, line in enumerate(path.read_text().splitlines(), 1):
                    if match := IGNORE.search(line):
                        found.append((f"{path.relative_to(ROOT)}:{number}", match[0]))
    bad = [place for place, text in found if not GOOD.fullmatch(text)]
    assert not bad, f"write `# type: ignore[code]  # Reason.` at {', '.join(bad)}"
    assert len(found) <= MOST, f"{len(found)} ignored type errors; at most {MOST} are allowed"
