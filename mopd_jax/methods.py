"""The methods as settings of one code path; the variants of every config file come from here.

MOPD, its positive-only form, SDPO, OPD and all controls differ in peers and teacher only
(arXiv 2605.12652; SDPO is arXiv 2601.20802). GRPO, DPO, SimPO and SFT have another loss and the
same rollouts.
"""

from __future__ import annotations

from typing import get_args

from ml_collections import ConfigDict

from mopd_jax.config import ConfigError, unknown
from mopd_jax.config_contexts import Control


def apply(cfg: ConfigDict, variant: str) -> ConfigDict:
    """Turns a config with the settings of MOPD into `variant`, and names it so.

    Raises:
        ConfigError: if there is no such variant, naming the nearest one.
    """
    if variant not in METHODS:
        raise ConfigError(unknown(f"variant {variant!r}", variant, METHODS))
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


def _no_contexts(cfg):
    cfg.peers.successes = 0
    cfg.peers.failures = 0
    # Nothing but the plain prompt has to fit.
    cfg.context.teacher_prompt_length = cfg.rollout.prompt_length


METHODS = {
    "mopd": _mopd,
    "positive": _positive,
    "anchored": _anchored,
    "sdpo": _sdpo,
    "opd": _opd,
    "grpo": _grpo,
    "dpo": _dpo,
    "simpo": _simpo,
    "sft": _sft,
    **{f"control_{name}": _control(name) for name in get_args(Control) if name != "off"},
}
