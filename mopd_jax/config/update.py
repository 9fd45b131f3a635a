"""Settings of an update: the teacher, the objective, and the optimizer."""

import dataclasses
from typing import Literal

from mopd_jax.choices import Aggregation
from mopd_jax.errors import at_least, require
from mopd_jax.kernels import Divergence

NoContext = Literal["mask", "plain_prompt"]
TeacherKind = Literal["ema", "frozen", "student", "periodic", "trust_region", "external"]
Method = Literal["distill", "grpo", "dpo", "simpo", "sft"]
RowWeight = Literal["equal", "solve_variance"]
RatioBase = Literal["trainer", "sampler"]
SftRows = Literal["success", "all"]


# Which methods read a field of `LossConfig`; all read one that is not here.
READ_BY: dict[str, tuple[Method, ...]] = {
    **dict.fromkeys(("divergence", "importance_cap"), ("distill",)),
    **dict.fromkeys(("rollout_cap", "ratio_base"), ("distill", "grpo")),
    **dict.fromkeys(("aggregation", "every_row", "row_weight"), ("distill", "grpo", "sft")),
    **dict.fromkeys(("clip_low", "clip_high", "dual_clip"), ("grpo",)),
    **dict.fromkeys(("scale_by_std", "kl_coef"), ("grpo",)),
    **dict.fromkeys(("beta", "margin", "label_smoothing"), ("dpo", "simpo")),
    "sft_rows": ("sft",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The model whose distribution the student is distilled towards.

    kind: `ema` follows the student slowly; `frozen` stays at the initial weights; `student` is
        the student as it is now; `periodic` is a copy of it, renewed every `every` steps;
        `trust_region` mixes the logits of the initial weights and of the student; `external`
        is another model with the same tokenizer, of any width.
    rate: for `ema`, once a step: teacher <- (1 - rate) teacher + rate student. For
        `trust_region`: logits = (1 - rate) initial + rate student, both with the context.
    every: for `periodic`, steps between copies.
    path: for `external`, as `model.path`. Its weights never move, are kept in the compute
        dtype, and are read from there again at a resume.
    no_context: rows with an empty context are not trained on (`mask`), or are distilled towards
        the teacher on the plain prompt (`plain_prompt`; without any peers this is OPD).
    cache: score the teacher once a step, before its updates, and keep the log-probs of its
        `loss.divergence.top_k` likeliest tokens only; needs loss.divergence.support='teacher'.
    drift_every: steps between measurements of how far the teacher is from the student and of
        what the context changes; each costs three forward passes. None is off.
    """

    kind: TeacherKind = "ema"
    rate: float = 0.05
    every: int = 50
    path: str | None = None
    no_context: NoContext = "mask"
    cache: bool = False
    drift_every: int | None = None

    def __post_init__(self) -> None:
        require(
            0.0 < self.rate <= 1.0,
            f"TeacherConfig.rate is {self.rate}; it must lie in (0, 1]. For a teacher that "
            "does not move set teacher.kind='frozen'",
        )
        at_least(self, 1, "every", "drift_every")
        moves = {"rate": ("ema", "trust_region"), "every": ("periodic",)}
        for name, kinds in moves.items():
            require(
                self.kind in kinds or getattr(self, name) == getattr(TeacherConfig, name),
                f"TeacherConfig.{name} is {getattr(self, name)}, which only a teacher.kind of "
                f"{' or '.join(kinds)} reads, and the kind is {self.kind!r}; leave it as it is "
                "by default",
            )
        require(
            (self.kind == "external") == (self.path is not None),
            f"TeacherConfig.kind is {self.kind!r} and path {self.path!r}: an external teacher "
            "needs a path, and no other has one; set both, teacher.kind='external' and "
            "teacher.path=FOLDER, or neither",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective of an update.

    method: `distill` needs a teacher, the others only the rewards: `grpo`; `dpo` (against the
        initial student) and `simpo` on the pairs of a group; `sft` on its successes.
    divergence: which divergence, at which alpha, over which tokens: the fields of
        `mopd_jax.Divergence` (kind, alpha, clip, support, top_k, tail).
    aggregation: how token losses become one number (`losses.token_weights`).
    step_separator: of `seq-mean-step-mean`, the text that ends a step of a response.
    every_row: means over sequences count rows without a trained token, as zeros.
    row_weight: `solve_variance` weighs a row by p (1 - p), p the solve rate of its group.
    ratio_base: what the importance ratio p_now / p_base is relative to: the `trainer`'s own
        log-probs before the first update of the step (with one update a step it is 1), or the
        `sampler`'s.
    importance_cap: distillation weighs a token by min(p_now / p_base, cap); None is off.
    rollout_cap: distillation and GRPO weigh a token by min(p_base / p_sampler, cap), constant;
        None is off. With ratio_base 'sampler' that is 1.
    clip_low, clip_high, dual_clip, scale_by_std: of GRPO.
    kl_coef: of GRPO, weight of the k3 estimate of the KL to the initial student; 0 is off.
    beta, margin, label_smoothing: of DPO and SimPO. Beta None is 0.1 for DPO, 2.0 for SimPO;
        margin None is 0.0 and 1.0.
    sft_rows: supervised fine-tuning on the successes, or on `all` responses unverified.
    """

    method: Method = "distill"
    divergence: Divergence = Divergence()
    aggregation: Aggregation = "seq-mean-token-mean"
    step_separator: str = "\n\n"
    every_row: bool = False
    row_weight: RowWeight = "equal"
    ratio_base: RatioBase = "trainer"
    importance_cap: float | None = 2.0
    rollout_cap: float | None = 2.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 3.0
    scale_by_std: bool = False
    kl_coef: float = 0.0
    beta: float | None = None
    margin: float | None = None
    label_smoothing: float = 0.0
    sft_rows: SftRows = "success"

    def __post_init__(self) -> None:
        require(
            isinstance(self.divergence, Divergence),
            f"LossConfig.divergence is {self.divergence!r}; it is a record now: give "
            "Divergence(kind, alpha, clip, support, top_k, tail)",
        )
        at_least(self, 0, "margin", "kl_coef")
        for name in ("importance_cap", "rollout_cap", "beta"):
            value = getattr(self, name)
            require(
                value is None or value > 0,
                f"LossConfig.{name} is {value}; it must be positive, None is off (of beta: the "
                "method's own)",
            )
        require(
            0.0 <= self.label_smoothing < 0.5,
            f"LossConfig.label_smoothing is {self.label_smoothing}; it must lie in [0, 0.5)",
        )
        require(
            0.0 <= self.clip_low < 1.0 and self.clip_high >= 0.0,
            f"LossConfig.clip_low {self.clip_low} must lie in [0, 1) and clip_high "
            f"{self.clip_high} must not be negative",
        )
        require(self.dual_clip > 1.0, f"LossConfig.dual_clip is {self.dual_clip}; use > 1")
        require(
            self.step_separator != "",
            "LossConfig.step_separator is empty; name a text that ends a step, such as a blank "
            "line",
        )
        self._check_method()

    def _check_method(self) -> None:
        for name, methods in READ_BY.items():
            value, default = getattr(self, name), getattr(LossConfig, name)
            remedy = f"set loss.{name}={default!r}"
            if dataclasses.is_dataclass(default):
                remedy = f"leave all of loss.{name} as it is by default"
            require(
                self.method in methods or value == default,
                f"LossConfig.{name} is {value!r}, which only a loss.method of "
                f"{' or '.join(methods)} reads, and the method is {self.method!r}; {remedy}",
            )
        require(
            self.step_separator == LossConfig.step_separator
            or self.aggregation == "seq-mean-step-mean",
            f"LossConfig.step_separator is {self.step_separator!r}, which aggregation "
            "'seq-mean-step-mean' alone reads; leave it as it is by default",
        )
        rows = ("seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-step-mean")
        require(
            not self.every_row or self.aggregation in rows,
            "LossConfig.every_row counts the rows of a mean over sequences, and the "
            f"aggregation is {self.aggregation!r}; set loss.every_row=False",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up to a constant rate; weights and moments are float32.

    learning_rate: after the warm-up.
    warmup_steps: update k (from 0) uses rate * (k + 1) / warmup_steps, so none has rate 0.
    beta1: decay of the mean of gradients, once an update.
    beta2: decay of the mean of squared gradients, once an update.
    epsilon: added to the root of the second moment.
    weight_decay: decoupled: an update also subtracts rate * weight_decay * weights.
    clip_norm: the most that the global norm of a gradient may be; a longer one is scaled down.
    mini_batches: updates that the prompts of a step are divided among, a group never split.
    epochs: how often a step goes through its rollouts.
    micro_batches: parts that the rows of an update are computed in, to save memory; the result
        does not depend on it.
    """

    learning_rate: float = 1e-5
    warmup_steps: int = 10
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    mini_batches: int = 1
    epochs: int = 1
    micro_batches: int = 1

    @property
    def updates(self) -> int:
        """Updates of a step."""
        return self.mini_batches * self.epochs

    def __post_init__(self) -> None:
        at_least(self, 0, "warmup_steps", "weight_decay")
        at_least(self, 1, "mini_batches", "epochs", "micro_batches")
        for name in ("learning_rate", "epsilon", "clip_norm"):
            value = getattr(self, name)
            require(value > 0, f"OptimizerConfig.{name} is {value}; it must be positive")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"OptimizerConfig.{name} is {value}; use [0, 1)")


def check_update(
    loss: LossConfig,
    teacher: TeacherConfig,
    optimizer: OptimizerConfig,
    *,
    prompts: int,
    group: int,
    teacher_samples: bool,
) -> None:
    """Checks what the three sections require of each other and of the rollouts.

    Args:
        prompts, group: prompts of a step, rollouts of each.
        teacher_samples: the teacher writes the responses.

    Raises:
        ConfigError: with the remedy.
    """
    require(
        prompts % optimizer.mini_batches == 0,
        f"optimizer.mini_batches={optimizer.mini_batches} does not divide the {prompts} "
        "prompts of a step (rollout.prompts)",
    )
    rows = prompts * group // optimizer.mini_batches
    require(
        rows % optimizer.micro_batches == 0,
        f"optimizer.micro_batches={optimizer.micro_batches} does not divide the {rows} rows of "
        "an update (rollout.prompts * rollout.group / optimizer.mini_batches)",
    )
    require(
        not teacher_samples or loss.method == "sft",
        f"rollout.policy='teacher' lets the teacher write what loss.method={loss.method!r} "
        "takes for the student's own; set loss.method='sft', or rollout.policy='student'",
    )
    require(
        not teacher_samples or teacher.kind in ("frozen", "external"),
        f"rollout.policy='teacher' samples a teacher that stays as it is, and teacher.kind is "
        f"{teacher.kind!r}; set teacher.kind='frozen' or 'external'",
    )
    distills = loss.method == "distill"
    require(
        distills or teacher_samples or teacher == TeacherConfig(),
        f"loss.method={loss.method!r} has no teacher, and the settings of teacher are not all "
        f"as they are by default ({teacher}); leave them, or set loss.method='distill'",
    )
    require(
        distills or (not teacher.cache and teacher.drift_every is None),
        f"teacher.cache={teacher.cache} and teacher.drift_every={teacher.drift_every} need a "
        f"teacher that is distilled, and loss.method is {loss.method!r}; leave them as they "
        "are by default",
    )
    require(
        not teacher.cache or loss.divergence.support == "teacher",
        f"teacher.cache keeps the teacher's likeliest tokens, and loss.divergence.support is "
        f"{loss.divergence.support!r}; set loss.divergence.support='teacher', or "
        "teacher.cache=False",
    )
