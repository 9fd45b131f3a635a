"""The quick start: a 0.3 M-parameter decoder learns a hidden codebook from its own rollouts.

    mopd train --config=configs/quickstart.py                    # MOPD: successes and failures
    mopd train --config=configs/quickstart.py:grpo               # any variant of methods.py
    mopd train --config=configs/quickstart.py --config.seed=1    # another hidden table

A prompt names a dialect and three digits; which rule a dialect stands for is hidden from the
student, and every peer's labelled answer narrows it down (`mopd_jax/codebook.py`). The warm
start is part of the package. Two CPU cores, a few minutes, no download. benchmarks/RESULTS.md
has the sweep of learning rates, the seeds and intervals.
"""

from mopd_jax import config
from mopd_jax.config import methods

# The best of three rates for every method in the sweep; the other methods have not been swept.
LEARNING_RATE = 1e-3


def get_config(variant: str = "mopd"):
    cfg = config.defaults()
    cfg.steps = 120
    cfg.dump_every = 10
    cfg.model.path = "builtin:codebook"
    cfg.data.source = "codebook"
    cfg.rollout.prompts = 32
    cfg.rollout.group = 8
    cfg.rollout.prompt_length = 6
    cfg.rollout.response_length = 5
    # Where few rollouts succeed, failures take the free slots: each rules out one rule.
    cfg.peers.successes = 2
    cfg.peers.failures = 6
    cfg.peers.slots = 6
    cfg.context.teacher_prompt_length = 36
    cfg.context.success = "<ok> {text}"
    cfg.context.another_success = "<ok> {text}"
    cfg.context.failure = "<bad> {text}"
    cfg.context.neutral = "{text}"
    cfg.context.gold_block = "<ok> {text}"
    cfg.context.closing = ""
    cfg.context.separator = " "
    cfg.context.strip_thinking = False
    # The warm start reads peers well; it stays the teacher, since the student, trained on bare
    # prompts only, would forget how to.
    cfg.teacher.kind = "frozen"
    cfg.optimizer.warmup_steps = 1
    cfg.optimizer.weight_decay = 0.0
    cfg.eval.every = 30
    cfg.eval.problems = 128
    cfg.eval.batch = 128
    methods.apply(cfg, variant)
    cfg.optimizer.learning_rate = LEARNING_RATE
    if cfg.loss.divergence.support != "full":
        cfg.loss.divergence.top_k = 32  # Of 74 words; the paper has more than there are.
    return cfg
