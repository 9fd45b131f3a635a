"""Tool use in the ToolAlpaca format (arXiv 2605.12652, tables of science and tool use).

    hf download Qwen/Qwen3-8B --local-dir models/Qwen3-8B
    mopd data prepare tooluse --source=FOLDER       # with a train and a test file
    mopd data check tooluse --policy=exclude
    mopd train --config=configs/tooluse.py          # or tooluse.py:METHOD

Paper, Qwen3-8B, mean@8 in percent: MOPD 66.73, SDPO 63.45, GRPO 60.32, base 59.11, on 68 test
rows. The train file (about 4046 rows) and the test file are in the repository of arXiv
2601.20802, `datasets/tooluse/`; docs/data.md has both forms that are read. Hardware there:
8 x H100 or 8 x A100. Nobody has run this file at that size yet.
"""

from mopd_jax.config import recipes


def get_config(variant: str = "mopd"):
    # 126 steps are an epoch of 4046 rows.
    cfg = recipes.base("models/Qwen3-8B", steps=250)
    cfg.data.options = {"name": "tooluse"}
    # Prompts hold the documentation of a tool: up to 5412 characters in the test rows.
    cfg.eval.problems = None  # All that a check has left.
    return recipes.finish(cfg, variant, variant)
