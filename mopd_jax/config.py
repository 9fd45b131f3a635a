"""Every default of a run, stated once, in frozen and validated dataclasses.

A config file in `configs/` starts from `defaults()`, says what differs, and is overridden on
the command line (`config_dict.py`). `None` means off or "choose for me"; no number does.
"""

import dataclasses
from typing import Any, Literal

from ml_collections import ConfigDict

from mopd_jax.config_contexts import ContextConfig, PeerConfig, check_contexts
from mopd_jax.config_dict import (
    ConfigError,
    fingerprint,
    from_config_dict,
    override,
    to_config_dict,
    to_json,
    unknown,
)
from mopd_jax.config_dict import at_least as _at_least
from mopd_jax.config_dict import require as _require
from mopd_jax.config_sandbox import SandboxConfig

__all__ = [
    "Config",
    "ConfigError",
    "ContextConfig",
    "PeerConfig",
    "SandboxConfig",
    "defaults",
    "fingerprint",
    "from_config_dict",
    "override",
    "to_config_dict",
    "to_json",
    "unknown",
]

NoContext = Literal["mask", "plain_prompt"]
TeacherKind = Literal["ema", "frozen"]
Method = Literal["distill", "grpo", "dpo", "simpo", "sft"]
Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
Aggregation = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
]
Support = Literal["full", "student", "teacher", "union", "sampled"]
Source = Literal["codebook", "reasoning_gym", "jsonl"]
Dtype = Literal["float32", "bfloat16"]


def _check_sampling(cfg: Any) -> None:
    name = type(cfg).__name__
    _require(
        cfg.temperature > 0,
        f"{name}.temperature is {cfg.temperature}; it must be positive (greedy: top_k=1)",
    )
    _require(
        cfg.top_p is None or 0 < cfg.top_p <= 1,
        f"{name}.top_p is {cfg.top_p}; it must lie in (0, 1], or None for off",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which weights the student starts from, and how they are computed with.

    path: a Hugging Face folder (safetensors), a `.gguf` file, or `builtin:codebook`,
        `builtin:smollm2`. Architecture, tokenizer and chat template come from there.
    compute_dtype: of activations and matmul operands; master weights are always float32.
    remat: recompute each layer in the backward pass; costs a third more FLOPs.
    head_chunk: tokens a device whose logits exist at one time; memory is some
        5 * head_chunk * V floats. None suits the platform.
    """

    path: str = "builtin:codebook"
    compute_dtype: Dtype = "float32"
    remat: bool = False
    head_chunk: int | None = None

    def __post_init__(self):
        _require(bool(self.path), "ModelConfig.path is empty; name a folder or a .gguf file")
        _at_least(self, 1, "head_chunk")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where problems come from.

    source: `codebook` and `reasoning_gym` generate them, `jsonl` reads files.
    train_path, eval_path: JSONL files, for `jsonl` only.
    instruction: stands at the end of every problem's last user message, in training and
        evaluation and for every method alike; with `peers.summaries` it asks for a summary.
    options: of the source (see `data.py`), a flat mapping; unknown names are errors there.
    """

    source: Source = "codebook"
    train_path: str | None = None
    eval_path: str | None = None
    instruction: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.source == "jsonl":
            _require(
                self.train_path is not None and self.eval_path is not None,
                "DataConfig.source 'jsonl' needs data.train_path and data.eval_path",
            )
        else:
            _require(
                self.train_path is None and self.eval_path is None,
                f"DataConfig.source {self.source!r} generates its rows; data.train_path and "
                "data.eval_path belong to source 'jsonl'",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How the student is sampled while training.

    prompts, group: P prompts a step, G rollouts of each.
    prompt_length, response_length: S and T in tokens; a longer prompt is an error, a response
        that has not ended after T tokens is cut there and counted as truncated.
    """

    prompts: int = 32
    group: int = 8
    prompt_length: int = 2048
    response_length: int = 4096
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None

    def __post_init__(self):
        _at_least(self, 1, "prompts", "prompt_length", "response_length", "top_k")
        _require(
            self.group >= 2,
            f"RolloutConfig.group is {self.group}: a rollout without a group has no peers and "
            "no baseline; set rollout.group to 2 or more",
        )
        _check_sampling(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Whose distribution the student is distilled towards.

    kind: `ema` follows the student slowly, `frozen` stays at the initial weights.
    rate: of the EMA, once per step: teacher <- (1 - rate) teacher + rate student.
    no_context: rows whose context is empty are not trained on (`mask`), or are distilled
        towards the teacher on the plain prompt (`plain_prompt`; with no peers this is OPD).
    """

    kind: TeacherKind = "ema"
    rate: float = 0.05
    no_context: NoContext = "mask"

    def __post_init__(self):
        _require(
            0.0 < self.rate <= 1.0,
            f"TeacherConfig.rate is {self.rate}; it must lie in (0, 1]. For a teacher that "
            "does not move set teacher.kind='frozen'",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The objective of an update.

    method: `distill` needs a teacher, the others only the rewards: `grpo`; `dpo` (against the
        initial student) and `simpo` on the pairs of a group; `sft` on its successes.
    divergence, alpha: `jsd` weighs the teacher by alpha in [0, 1], None is 0.5. It vanishes
        towards both ends; at them it is the forward (0) and the reverse (1) KL.
    continuous: divides a `jsd` by alpha (1 - alpha), so that it meets the KLs at the ends.
    support: what the divergence is over: the `full` vocabulary; the top_k tokens of the
        `student`, the `teacher` or both (`union`), with the rest as one more outcome (`tail`)
        or renormalised without it; or the `sampled` token, for `reverse_kl` only.
    aggregation: how token losses become one number (`losses.token_weights`).
    every_row: means over sequences count rows without a trained token, as zeros.
    importance_cap: the most that min(p_now / p_behaviour, cap) may weigh a token; None is off.
    clip_low, clip_high, dual_clip, scale_by_std: of GRPO.
    beta, margin, label_smoothing: of DPO and SimPO. Beta None is 0.1 for DPO, 2.0 for SimPO;
        margin None is 0.0 and 1.0.
    """

    method: Method = "distill"
    divergence: Divergence = "jsd"
    alpha: float | None = None
    continuous: bool = False
    support: Support = "full"
    top_k: int = 100
    tail: bool = True
    aggregation: Aggregation = "seq-mean-token-mean"
    every_row: bool = False
    importance_cap: float | None = 2.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 3.0
    scale_by_std: bool = False
    beta: float | None = None
    margin: float | None = None
    label_smoothing: float = 0.0

    def __post_init__(self):
        _require(
            self.alpha is None or 0.0 <= self.alpha <= 1.0,
            f"LossConfig.alpha is {self.alpha}; JSD needs 0 <= alpha <= 1, the weight of the "
            "teacher",
        )
        _require(
            self.alpha is None or self.divergence == "jsd",
            f"LossConfig.alpha is {self.alpha}, but {self.divergence} has none; leave it None",
        )
        _require(
            self.support != "sampled" or self.divergence == "reverse_kl",
            f"LossConfig.support is 'sampled', which estimates reverse_kl, and the divergence "
            f"{self.divergence}; set loss.divergence='reverse_kl' or another support",
        )
        _require(
            not self.continuous or self.divergence == "jsd",
            f"LossConfig.continuous rescales a jsd, and the divergence is {self.divergence}; "
            "set loss.continuous=False",
        )
        _at_least(self, 1, "top_k")
        _at_least(self, 0, "margin")
        _require(
            self.beta is None or self.beta > 0,
            f"LossConfig.beta is {self.beta}; it must be positive, None is the method's own",
        )
        _require(
            0.0 <= self.label_smoothing < 0.5,
            f"LossConfig.label_smoothing is {self.label_smoothing}; it must lie in [0, 0.5)",
        )
        _require(
            self.importance_cap is None or self.importance_cap > 0,
            f"LossConfig.importance_cap is {self.importance_cap}; use None to turn it off",
        )
        _require(
            0.0 <= self.clip_low < 1.0 and self.clip_high >= 0.0,
            f"LossConfig.clip_low {self.clip_low} must lie in [0, 1) and clip_high "
            f"{self.clip_high} must not be negative",
        )
        _require(self.dual_clip > 1.0, f"LossConfig.dual_clip is {self.dual_clip}; use > 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up to a constant rate; weights and moments are float32.

    warmup_steps: step k (from 0) uses rate * (k + 1) / warmup_steps, so none is wasted.
    clip_norm: bound on the global gradient norm.
    micro_batches: parts the rows of a step are split into to save memory; the result does not
        depend on it.
    """

    learning_rate: float = 1e-5
    warmup_steps: int = 10
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    micro_batches: int = 1

    def __post_init__(self):
        _at_least(self, 0, "warmup_steps", "weight_decay")
        _at_least(self, 1, "micro_batches")
        for name in ("learning_rate", "epsilon", "clip_norm"):
            value = getattr(self, name)
            _require(value > 0, f"OptimizerConfig.{name} is {value}; it must be positive")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"OptimizerConfig.{name} is {value}; use [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along (data, fsdp, tensor); data None takes what the other two leave."""

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        _at_least(self, 1, "data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on held-out problems, before, every `every` steps, and after.

    samples: n responses per problem, for mean@n and the unbiased pass@k of every k in `ks`.
    problems: how many held-out problems are used: a fixed draw, the same for every run seed.
    batch: problems sampled in one call.
    """

    every: int = 20
    problems: int = 64
    samples: int = 8
    batch: int = 32
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    ks: tuple[int, ...] = (1, 2, 4, 8)

    def __post_init__(self):
        _at_least(self, 1, "every", "problems", "samples", "batch", "top_k")
        _check_sampling(self)
        for k in self.ks:
            _require(
                1 <= k <= self.samples,
                f"EvalConfig.ks has {k}; pass@k needs 1 <= k <= eval.samples={self.samples}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """A checkpoint every `every` steps and at the end; the newest `keep` stay."""

    every: int = 20
    keep: int = 2

    def __post_init__(self):
        _at_least(self, 1, "every", "keep")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run. `name` is the method's name in logs and in the default run folder.

    dump_every: every so many steps the rollouts are written with their peers and contexts.
    """

    name: str = "mopd"
    seed: int = 0
    steps: int = 100
    dump_every: int = 1
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    peers: PeerConfig = PeerConfig()
    context: ContextConfig = ContextConfig()
    teacher: TeacherConfig = TeacherConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    sandbox: SandboxConfig = SandboxConfig()

    def __post_init__(self):
        _at_least(self, 1, "steps", "dump_every")
        _at_least(self, 0, "seed")
        rows = self.rollout.prompts * self.rollout.group
        _require(
            rows % self.optimizer.micro_batches == 0,
            f"optimizer.micro_batches={self.optimizer.micro_batches} does not divide the "
            f"{rows} rows of a step (rollout.prompts * rollout.group)",
        )
        _require(
            self.context.teacher_prompt_length >= self.rollout.prompt_length,
            f"context.teacher_prompt_length={self.context.teacher_prompt_length} is below "
            f"rollout.prompt_length={self.rollout.prompt_length}: not even a plain prompt fits",
        )
        check_contexts(
            self.peers,
            self.context,
            distills=self.loss.method == "distill",
            plain_prompt=self.teacher.no_context == "plain_prompt",
            instruction=self.data.instruction,
        )


def defaults() -> ConfigDict:
    """The defaults of every field, as a ConfigDict whose keys are locked."""
    return to_config_dict(Config())
