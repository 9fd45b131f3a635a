"""The methods, each a change of settings: the variants that every config file offers.

MOPD, its positive-only form, SDPO, OPD, OPSD and all controls differ in peers and teacher only
(arXiv 2605.12652; SDPO is arXiv 2601.20802, OPSD arXiv 2601.18734). GRPO, DPO, SimPO and SFT
have another loss and the same rollouts, GKD those of the teacher. `paper` and `reference_code`
are MOPD as published and as its authors' code ran it: docs/reproduction.md has the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

from ml_collections import ConfigDict

from mopd_jax.config import PeerConfig, to_config_dict
from mopd_jax.config.contexts import ROW_POLICIES, Control
from mopd_jax.config.update import (
    READ_BY,
    LossConfig,
    Method,
    OptimizerConfig,
    TeacherConfig,
)
from mopd_jax.errors import ConfigError, unknown

Updates = TeacherConfig | LossConfig | OptimizerConfig


def apply(cfg: ConfigDict, variant: str) -> ConfigDict:
    """Turns a config with the settings of MOPD into `variant`, in place, and names it so.

    Only `opsd` shows gold, whatever the config said before.

    Raises:
        ConfigError: there is no such variant; the message names the nearest one.
    """
    if variant not in METHODS:
        raise ConfigError(unknown(f"variant {variant!r}", variant, METHODS))
    cfg.context.gold = "off"
    METHODS[variant](cfg)
    cfg.name = variant
    return cfg


def _mopd(cfg: ConfigDict) -> None:
    """Contexts of successful and failed peers: the config as it is."""


def _positive(cfg: ConfigDict) -> None:
    """Successful peers only; rows without one are masked."""
    cfg.peers.failures = 0


def _anchored(cfg: ConfigDict) -> None:
    """As `positive`, but rows without a successful peer are held to the plain teacher."""
    cfg.peers.failures = 0
    cfg.teacher.no_context = "plain_prompt"


def _sdpo(cfg: ConfigDict) -> None:
    """One successful peer; where there is none, the feedback on the row's own failure."""
    cfg.peers.successes = 1
    cfg.peers.failures = 0
    cfg.context.feedback = "no_success"


def _opd(cfg: ConfigDict) -> None:
    """No peers: the teacher reads what the student reads."""
    _no_contexts(cfg)
    cfg.teacher.no_context = "plain_prompt"


def _opsd(cfg: ConfigDict) -> None:
    """The worked gold solution as the teacher's context, no peers, terms clipped point-wise.

    Where the data has no solutions, set context.gold='answer'.
    """
    _no_peers(cfg)
    cfg.context.gold = "solution"
    _unmoved_teacher(cfg)
    cfg.loss.divergence.update(kind="forward_kl", alpha=None, clip=0.05)


def _gkd(cfg: ConfigDict) -> None:
    """Maximum likelihood on unverified responses of the teacher to the plain prompt.

    The paper's GKD baseline. For an external teacher set teacher.path and
    teacher.kind='external'.
    """
    teacher = cfg.teacher.kind, cfg.teacher.path
    _sft(cfg)
    cfg.loss.sft_rows = "all"
    cfg.rollout.policy = "teacher"
    cfg.teacher.kind, cfg.teacher.path = teacher
    _unmoved_teacher(cfg)


def _paper(cfg: ConfigDict) -> None:
    """MOPD as arXiv 2605.12652 states it; what it leaves open keeps our default."""
    _published(cfg)
    cfg.teacher.no_context = "plain_prompt"
    cfg.loss.aggregation = "seq-mean-token-sum"
    cfg.loss.importance_cap = None
    cfg.loss.rollout_cap = None


def _reference_code(cfg: ConfigDict) -> None:
    """MOPD as the authors' script configures their code, without that code's defects."""
    _published(cfg)
    cfg.peers.rule = "first"
    cfg.peers.failure_rule = "uniform"
    cfg.peers.threshold = 0.5
    cfg.context.strip_thinking = False
    cfg.context.feedback = "no_success"
    cfg.context.feedback_with_gold = True


def _published(cfg: ConfigDict) -> None:
    """What `paper` and `reference_code` share: peers, teacher, loss and optimizer at their
    defaults, but for the lines below. An external teacher, sizes and context texts stay."""
    teacher, parts = (cfg.teacher.kind, cfg.teacher.path), cfg.optimizer.micro_batches
    _reset(cfg.peers, PeerConfig)
    _reset(cfg.teacher, TeacherConfig)
    _reset(cfg.loss, LossConfig)
    _reset(cfg.optimizer, OptimizerConfig)
    cfg.optimizer.micro_batches = parts
    if teacher[0] == "external":
        cfg.teacher.kind, cfg.teacher.path = teacher
    cfg.context.strip_thinking = True
    cfg.context.feedback = "off"
    cfg.context.feedback_with_gold = False
    cfg.context.gold = "off"
    cfg.peers.truncated = "outcome"
    cfg.loss.divergence.support = "student"
    cfg.loss.every_row = True


def _grpo(cfg: ConfigDict) -> None:
    """Advantages of the verifier's rewards within the group; no teacher, so no contexts."""
    _objective(cfg, "grpo")
    cfg.loss.aggregation = "token-mean"
    cfg.loss.every_row = False


def _dpo(cfg: ConfigDict) -> None:
    """Every (better, worse) pair of a group, against the initial student."""
    _objective(cfg, "dpo")


def _simpo(cfg: ConfigDict) -> None:
    """The same pairs by mean log-prob and a margin, without a reference."""
    _objective(cfg, "simpo")


def _sft(cfg: ConfigDict) -> None:
    """Maximum likelihood on the student's own successes."""
    _objective(cfg, "sft")
    cfg.loss.aggregation = "seq-mean-token-mean"


def _control(name: str) -> Callable[[ConfigDict], None]:
    """MOPD with the peers of one control of `controls.py`."""

    def control(cfg: ConfigDict) -> None:
        cfg.peers.control = name

    return control


def _objective(cfg: ConfigDict, method: Method) -> None:
    """A loss without a teacher; settings that it does not read go back to their defaults."""
    cfg.loss.method = method
    for field in dataclasses.fields(LossConfig):
        if method not in READ_BY.get(field.name, (method,)):
            cfg.loss[field.name] = _plain(field.default)
    for name in ("aggregation", "every_row", "step_separator"):
        cfg.loss[name] = getattr(LossConfig, name)
    _reset(cfg.teacher, TeacherConfig)
    _no_contexts(cfg)


def _unmoved_teacher(cfg: ConfigDict) -> None:
    """An external teacher where there is one, else the initial student."""
    kept = (cfg.teacher.kind, cfg.teacher.path)
    _reset(cfg.teacher, TeacherConfig)
    cfg.teacher.kind, cfg.teacher.path = kept if kept[0] == "external" else ("frozen", None)


def _reset(section: ConfigDict, config: type[PeerConfig | Updates]) -> None:
    """Sets every field of a section to its default."""
    for field in dataclasses.fields(config):
        section[field.name] = _plain(field.default)


def _plain(default: Any) -> Any:
    """A default as a ConfigDict has it."""
    return to_config_dict(default) if dataclasses.is_dataclass(default) else default


def _no_peers(cfg: ConfigDict) -> None:
    """No peers in full or by summary, no control, and no feedback in their place."""
    cfg.peers.successes = 0
    cfg.peers.failures = 0
    cfg.peers.summaries = 0
    cfg.peers.slots = None
    for name in ("control", "control_match"):
        cfg.peers[name] = getattr(PeerConfig, name)
    cfg.context.feedback = "off"
    cfg.context.feedback_with_gold = False


def _no_contexts(cfg: ConfigDict) -> None:
    """Every row is trained, and teachers read the plain prompt."""
    _no_peers(cfg)
    for name in ROW_POLICIES:
        cfg.peers[name] = getattr(PeerConfig, name)
    # Only the plain prompt has to fit, whatever its length is set to later.
    cfg.context.teacher_prompt_length = None


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
