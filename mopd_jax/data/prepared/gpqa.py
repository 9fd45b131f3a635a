"""Reads GPQA (arXiv 2311.12022): four shuffled options, for evaluation only.

The files have the right answer in its own column, so the options are shuffled by (seed, row
number). The authors ask not to show the questions in the clear: publish no copy.
"""

from __future__ import annotations

import numpy as np

from mopd_jax.data.prepared import splits
from mopd_jax.data.prepared.rows import Format, HubSource, Options, SourceRow
from mopd_jax.data.prepared.sciknoweval import prompt
from mopd_jax.records import Problem

_RIGHT = "Correct Answer"
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_PURPOSE = 0x69A  # Separates this use of the seed from others.


def _parse(row: SourceRow, options: Options) -> list[Problem]:
    texts = [row.text(name).strip() for name in (_RIGHT, *_WRONG)]
    if texts[0] in texts[1:]:
        raise row.error("the right answer is also among the wrong ones")
    # In CSV a missing id is an empty cell.
    name = row.identifier("Record ID") if row.fields.get("Record ID") else row.number
    rng = np.random.default_rng([_PURPOSE, options["seed"], row.number])
    order = rng.permutation(len(texts)).tolist()
    choices = dict(zip("ABCD", (texts[i] for i in order), strict=True))
    return [
        Problem(
            id=f"gpqa-{name}",
            messages=prompt(row.text("Question").strip(), choices),
            answer="ABCD"[order.index(0)],
            verifier="choice",
            meta={"options": choices},
        )
    ]


FORMAT = Format(
    parse=_parse,
    split=splits.test_only,
    licence="CC BY 4.0; not to be republished in the clear",
    options={"seed": 42},
    hub=HubSource("Idavidrein/gpqa", files=("gpqa_diamond.csv",), gated=True),
)
