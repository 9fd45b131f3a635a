"""A bigger teacher that also reads peers: Qwen3-14B to Qwen3-4B (arXiv 2605.12652).

    hf download Qwen/Qwen3-4B --local-dir models/Qwen3-4B
    hf download Qwen/Qwen3-14B --local-dir models/Qwen3-14B
    mopd train --config=configs/teacher_student.py                  # tool use, MOPD
    mopd train --config=configs/teacher_student.py:code/opd         # TASK/METHOD

Tasks: `tooluse`, and `code` on the paper's own split (configs/tooluse.py, livecodebench.py say
how to prepare them). Paper, mean@8 / pass@8 in percent, tool use and code: MOPD 66.44 / 68.61
and 61.92 / 67.35; OPD without peers 59.63 / 61.58 and 60.92 / 67.30; GKD 55.91 / 60.05 and
46.05 / 56.67; 14B teacher 56.02 / 60.89 and 46.75 / 65.16; 4B student 53.27 / 58.58 and 28.80 /
49.36. The rows with a self-teacher are configs/tooluse.py and configs/livecodebench.py with the
4B model. Hardware there: 2 nodes of 8 x H100. Nobody has run this file at that size yet.
"""

from mopd_jax.config import recipes

TASKS = {
    "tooluse": {"name": "tooluse", "held_out": True, "steps": 250},
    "code": {"name": "livecodebench_tests", "held_out": False, "steps": 120},
}
TEACHER = "models/Qwen3-14B"


def get_config(variant: str = "mopd"):
    _, method, task = recipes.choose(variant, TASKS)
    cfg = recipes.base("models/Qwen3-4B", steps=task["steps"])
    cfg.data.options = {"name": task["name"]}
    cfg.data.held_out = task["held_out"]
    cfg.eval.problems = None  # All that a check has left.
    recipes.finish(cfg, variant, method)
    # GRPO, DPO, SimPO and SFT have no teacher and are here for comparison.
    if cfg.loss.method == "distill" or cfg.rollout.policy == "teacher":
        cfg.teacher.kind = "external"
        cfg.teacher.path = TEACHER
    return cfg
