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
    answer_locked,
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
from mopd_jax.config_update import (
    LossConfig,
    OptimizerConfig,
    TeacherConfig,
    check_update,
)

__all__ = [
    "Config",
    "ConfigError",
    "ContextConfig",
    "LossConfig",
    "OptimizerConfig",
    "PeerConfig",
    "SandboxConfig",
    "TeacherConfig",
    "answer_locked",
    "defaults",
    "fingerprint",
    "from_config_dict",
    "override",
    "to_config_dict",
    "to_json",
    "unknown",
]

Source = Literal["codebook", "reasoning_gym", "jsonl", "tfds"]
Policy = Literal["student", "teacher"]
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

    source: `codebook` and `reasoning_gym` generate them, `jsonl` reads files, `tfds` what
        `mopd data prepare` wrote.
    train_path, eval_path: JSONL files, for `jsonl` only.
    instruction: stands at the end of every problem's last user message, in training and
        evaluation and for every method alike; with `peers.summaries` it asks for a summary.
    options: of the source (see `data.py`), a flat mapping; unknown names are errors there.
    held_out: evaluation problems that are also trained on are an error. Where they are meant to
        be the same (the paper's LiveCodeBench: the same problems, with more tests), False.
    long_prompts: what becomes of training problems with more than `rollout.prompt_length`
        tokens: an error, or they are left out, counted and named at the start. Held-out ones
        are always an error: without them the result would be another one.
    """

    source: Source = "codebook"
    train_path: str | None = None
    eval_path: str | None = None
    instruction: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    held_out: bool = True
    long_prompts: Literal["error", "drop"] = "error"

    def __post_init__(self):
        if self.source == "jsonl":
            _require(
                self.train_path is not None and self.eval_path is not None,
                "DataConfig.source 'jsonl' needs data.train_path and data.eval_path",
            )
        else:
            _require(
                self.train_path is None and self.eval_path is None,
                f"DataConfig.source {self.source!r} reads no such files; data.train_path and "
                "data.eval_path belong to source 'jsonl'",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How responses are sampled while training.

    prompts, group: P prompts a step, G rollouts of each.
    batch: prompts that are sampled at a time, and judged while the next are sampled; it must
        divide `prompts`. None: all at once, which uses a device best and overlaps nothing.
    prompt_length, response_length: S and T in tokens; a longer prompt is an error, a response
        that has not ended after T tokens is cut there and counted as truncated.
    file: train from the rollouts of this file (docs/rollouts.md) in place of sampling; the
        settings of the sampling must be those it was written with. After its last step comes
        the first.
    """

    prompts: int = 32
    batch: int | None = None
    group: int = 8
    prompt_length: int = 2048
    response_length: int = 4096
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    policy: Policy = "student"
    file: str | None = None

    def __post_init__(self):
        _at_least(self, 1, "prompts", "batch", "prompt_length", "response_length", "top_k")
        _require(
            self.batch is None or self.prompts % self.batch == 0,
            f"RolloutConfig.batch is {self.batch}, which does not divide rollout.prompts="
            f"{self.prompts}; use a divisor, or None for all at once",
        )
        _require(self.file != "", "RolloutConfig.file is empty; None samples")
        _require(
            self.group >= 2,
            f"RolloutConfig.group is {self.group}: a rollout without a group has no peers and "
            "no baseline; set rollout.group to 2 or more",
        )
        _check_sampling(self)


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
    problems: how many held-out problems are used: a fixed draw, the same for every run seed;
        None: all of the split, in that order.
    batch: problems sampled in one call.
    """

    every: int = 20
    problems: int | None = 64
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
        check_update(
            self.loss,
            self.teacher,
            self.optimizer,
            prompts=self.rollout.prompts,
            group=self.rollout.group,
            taught=self.rollout.policy == "teacher",
        )
        if self.context.teacher_prompt_length is None:
            fitting = dataclasses.replace(
                self.context, teacher_prompt_length=self.rollout.prompt_length
            )
            object.__setattr__(self, "context", fitting)
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
            prompts=self.rollout.prompts,
        )


def defaults() -> ConfigDict:
    """The defaults of every field, as a ConfigDict whose keys are locked."""
    return to_config_dict(Config())
