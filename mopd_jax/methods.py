"""The methods as settings of one code path; the variants of every config file come from here.

MOPD, its positive-only form, SDPO, OPD, OPSD and all controls differ in peers and teacher only
(arXiv 2605.12652; SDPO is arXiv 2601.20802, OPSD arXiv 2601.18734). GRPO, DPO, SimPO and SFT
have another loss and the same rollouts, GKD those of the teacher. `paper` and `reference_code`
are MOPD as published and as its authors' code ran it: docs/reproduction.md has the table.
"""

from __future__ import annotations

from typing import get_args

from ml_collections import ConfigDict

from mopd_jax.config import ConfigError, unknown
from mopd_jax.config_contexts import ROW_POLICIES, Control, PeerConfig


def apply(cfg: ConfigDict, variant: str) -> ConfigDict:
    """Turns a config with the settings of MOPD into `variant`, and names it so.

    No variant but `opsd` shows gold, whatever the config says before.

    Raises:
        ConfigError: if there is no such variant, naming the nearest one.
    """
    if variant not in METHODS:
        raise ConfigError(unknown(f"variant {variant!r}", variant, METHODS))
    cfg.context.gold = "off"
    METHODS[variant](cfg)
    cfg.name = variant
    return cfg


def _mopd(cfg):
    """Successes and failures of the peers."""


def _positive(cfg):
    """Successful peers only; rows without one are masked."""
    cfg.peers.failures = 0


def _anchored(cfg):
    """As `positive`, but rows without a successful peer are held to the plain teacher."""
    cfg.peers.failures = 0
    cfg.teacher.no_context = "plain_prompt"


def _sdpo(cfg):
    """One successful peer, and where there is none the feedback on the own failed attempt."""
    cfg.peers.successes = 1
    cfg.peers.failures = 0
    cfg.context.feedback = "no_success"


def _opd(cfg):
    """No peers: the teacher reads what the student reads."""
    _no_contexts(cfg)
    cfg.teacher.no_context = "plain_prompt"


def _opsd(cfg):
    """The worked gold solution as the teacher's context, no peers, terms clipped one by one.

    Where the data has no solutions, set context.gold='answer'.
    """
    _no_peers(cfg)
    cfg.context.gold = "solution"
    cfg.teacher.kind = "frozen"
    cfg.loss.divergence = "forward_kl"
    cfg.loss.pointwise_clip = 0.05


def _gkd(cfg):
    """Maximum likelihood on responses that the teacher writes to the plain prompt, unverified.

    What the paper calls its GKD baseline. For an external teacher set teacher.path and
    teacher.kind='external'.
    """
    _sft(cfg)
    cfg.loss.sft_rows = "all"
    cfg.rollout.policy = "teacher"
    cfg.teacher.kind = "frozen"


def _paper(cfg):
    """MOPD as arXiv 2605.12652 writes it down; what it leaves open is as in `config.py`."""
    _two_successes_one_failure(cfg)
    cfg.peers.truncated = "outcome"
    cfg.teacher.no_context = "plain_prompt"
    cfg.loss.aggregation = "seq-mean-token-sum"
    cfg.loss.every_row = True
    cfg.loss.importance_cap = None
    cfg.loss.rollout_cap = None


def _reference_code(cfg):
    """MOPD as the authors' script configures their code, without that code's defects."""
    _two_successes_one_failure(cfg)
    cfg.peers.rule = "first"
    cfg.peers.failure_rule = "uniform"
    cfg.peers.truncated = "outcome"
    cfg.peers.threshold = 0.5
    cfg.context.strip_thinking = False
    cfg.context.feedback = "no_success"
    cfg.context.feedback_with_gold = True
    cfg.loss.aggregation = "seq-mean-token-mean"
    cfg.loss.every_row = True
    cfg.loss.importance_cap = 2.0
    cfg.loss.rollout_cap = 2.0


def _two_successes_one_failure(cfg):
    """What `paper` and `reference_code` have in common."""
    cfg.peers.successes = 2
    cfg.peers.failures = 1
    cfg.peers.slots = None
    cfg.peers.failures_when = "always"
    cfg.teacher.kind = "ema"
    cfg.teacher.rate = 0.05
    cfg.loss.divergence = "jsd"
    cfg.loss.alpha = 0.5
    cfg.loss.support = "student"
    cfg.loss.top_k = 100
    cfg.loss.tail = True
    cfg.optimizer.learning_rate = 1e-5
    cfg.optimizer.warmup_steps = 10
    cfg.optimizer.weight_decay = 0.01
    cfg.optimizer.clip_norm = 1.0


def _grpo(cfg):
    """Advantages of the verifier's rewards within the group; no teacher, so no contexts."""
    cfg.loss.method = "grpo"
    _no_contexts(cfg)
    cfg.loss.aggregation = "token-mean"


def _dpo(cfg):
    """Every (better, worse) pair of a group, against the initial student."""
    cfg.loss.method = "dpo"
    _no_contexts(cfg)


def _simpo(cfg):
    """The same pairs by mean log-prob and a margin, without a reference."""
    cfg.loss.method = "simpo"
    _no_contexts(cfg)


def _sft(cfg):
    """Maximum likelihood on the student's own successes."""
    cfg.loss.method = "sft"
    _no_contexts(cfg)
    cfg.loss.aggregation = "seq-mean-token-mean"


def _control(name):
    """MOPD with the peers of one control of `controls.py`."""

    def control(cfg):
        cfg.peers.control = name

    return control


def _no_peers(cfg):
    """Neither in full nor in brief, nothing to control for, and no feedback in their place."""
    cfg.peers.successes = 0
    cfg.peers.failures = 0
    cfg.peers.summaries = 0
    cfg.peers.slots = None
    for name in ("control", "control_match", "control_topup"):
        cfg.peers[name] = getattr(PeerConfig, name)
    cfg.context.feedback = "off"
    cfg.context.feedback_with_gold = False


def _no_contexts(cfg):
    """Every row is trained, and what is read is the plain prompt."""
    _no_peers(cfg)
    for name in ROW_POLICIES:
        cfg.peers[name] = getattr(PeerConfig, name)
    # Nothing but the plain prompt has to fit.
    cfg.context.teacher_prompt_length = cfg.rollout.prompt_length


METHODS = {
    "mopd": _mopd,
    "positive": _positive,
    "anchored": _anchored,
    "sdpo": _sdpo,
    "opd": _opd,
    "opsd": _opsd,
    "grpo": _grpo,
    "dpo": _dpo,
    "simpo": _simpo,
    "sft": _sft,
    "gkd": _gkd,
    "paper": _paper,
    "reference_code": _reference_code,
    **{f"control_{name}": _control(name) for name in get_args(Control) if name != "off"},
}
