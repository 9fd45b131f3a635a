"""Mathematics: DeepMath for training, AIME and HMMT for evaluation (arXiv 2605.12652).

    hf download Qwen/Qwen3-4B --local-dir models/Qwen3-4B
    for NAME in deepmath aime24 aime25 hmmt_feb25 hmmt_nov25; do
        mopd data prepare $NAME --source=hub && mopd data check $NAME --policy=exclude
    done
    mopd train --config=configs/math.py                             # or math.py:METHOD

57 k problems of difficulty 6 and more; 4 x 30 contest problems. Reverse KL and responses of
8192 tokens, as the paper says (its scripts say JSD and 4096). Paper, Qwen3-4B, mean@8 / pass@8
in percent, AIME25, AIME24, HMMT February, November: MOPD 25.41 / 36.28, 28.54 / 33.12, 18.50 /
19.58, 15.83 / 22.47; GRPO 25.80 / 36.66, 17.09 / 32.05, 16.92 / 20.94, 13.16 / 19.53. Hardware
there: 8 x H100. Nobody has run this file at that size yet. `data.options.eval` may name one
contest, as docs/reproduction.md does for each row. For `opsd`, which reads solutions, prepare
deepmath with --option.solutions=True.
"""

from mopd_jax.config import recipes


def get_config(variant: str = "mopd"):
    cfg = recipes.base("models/Qwen3-4B", steps=300)
    contests = ("aime24:test", "aime25:test", "hmmt_feb25:test", "hmmt_nov25:test")
    cfg.data.options = {"train": "deepmath:train", "eval": contests}
    cfg.rollout.response_length = 8192
    # Three peers of that length do not fit in the paper's 10240.
    cfg.context.teacher_prompt_length = 16384
    cfg.eval.problems = None  # All that a check has left.
    cfg.eval.every = 25
    recipes.finish(cfg, variant, variant)
    if cfg.loss.method == "distill" and variant not in ("reference_code", "opsd"):
        cfg.loss.divergence.update(kind="reverse_kl", alpha=None)
    return cfg
