"""Science questions, SciKnowEval level 3 (arXiv 2605.12652, tables of science and tool use).

    hf download Qwen/Qwen3-8B --local-dir models/Qwen3-8B
    mopd data prepare sciknoweval_chemistry --source=hub
    mopd data check sciknoweval_chemistry --policy=exclude
    mopd train --config=configs/sciknoweval.py                      # chemistry, MOPD
    mopd train --config=configs/sciknoweval.py:physics/grpo         # DOMAIN/METHOD

Domains: chemistry (1890 train, 210 test), biology (450, 50), physics (720, 80), material
(841, 94). Paper, Qwen3-8B, one number each, mean@8 in percent: MOPD 55.69 biology, 74.29
chemistry, 76.25 physics, 78.59 materials; SDPO 50.60, 62.91, 67.36, 72.34; GRPO 47.32, 64.24,
64.12, 72.09; base 30.89, 42.98, 58.44, 65.59. Hardware there: 8 x H100 or 8 x A100; sizes here
are for such a node. Nobody has run this file at that size yet. docs/reproduction.md has the
rows.
"""

from mopd_jax.config import recipes

DOMAINS = {"chemistry": {}, "biology": {}, "physics": {}, "material": {}}


def get_config(variant: str = "mopd"):
    domain, method, _ = recipes.choose(variant, DOMAINS)
    # The paper does not say where it stops; its chemistry curve ends at 500, epoch 8.5.
    cfg = recipes.base("models/Qwen3-8B", steps=500)
    cfg.data.options = {"name": f"sciknoweval_{domain}"}
    cfg.eval.problems = None  # All that a check has left.
    return recipes.finish(cfg, variant, method)
