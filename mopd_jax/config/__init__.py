"""Every setting of a run with its default, in frozen and validated dataclasses.

A config file in `configs/` starts from `defaults()` and changes some; the command line changes
more (`config/tree.py`). `None` means off or "choose for me"; no number does. Every field has an
entry `name: meaning` in the docstring of its class, from which docs/settings.md is made.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ml_collections import ConfigDict

from mopd_jax.config.contexts import ContextConfig, PeerConfig, check_contexts
from mopd_jax.config.sandbox import SandboxConfig
from mopd_jax.config.tree import (
    answer_locked,
    fingerprint,
    from_config_dict,
    override,
    to_config_dict,
    to_json,
)
from mopd_jax.config.update import (
    LossConfig,
    OptimizerConfig,
    TeacherConfig,
    check_update,
)
from mopd_jax.errors import ConfigError, at_least, require, unknown

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


def _check_sampling(cfg: RolloutConfig | EvalConfig) -> None:
    name = type(cfg).__name__
    require(
        cfg.temperature > 0,
        f"{name}.temperature is {cfg.temperature}; it must be positive (greedy: top_k=1)",
    )
    require(
        cfg.top_p is None or 0 < cfg.top_p <= 1,
        f"{name}.top_p is {cfg.top_p}; it must lie in (0, 1], or None for off",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The student's initial weights, and the arithmetic that they are used in.

    path: a Hugging Face folder (safetensors), a `.gguf` file, or `builtin:codebook`,
        `builtin:smollm2`. Architecture, tokenizer and chat template come from there.
    compute_dtype: of activations and matmul operands; master weights are always float32.
    remat: recompute each layer in the backward pass: less memory for a third more FLOPs.
    head_chunk: tokens of a device whose logits exist at one time; they take about
        5 * head_chunk * V floats. None chooses by the platform.
    """

    path: str = "builtin:codebook"
    compute_dtype: Dtype = "float32"
    remat: bool = False
    head_chunk: int | None = None

    def __post_init__(self) -> None:
        require(bool(self.path), "ModelConfig.path is empty; name a folder or a .gguf file")
        at_least(self, 1, "head_chunk")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The problems to train on and to evaluate on.

    source: `codebook` and `reasoning_gym` generate problems, `jsonl` reads files, `tfds` reads
        what `mopd data prepare` wrote.
    train_path: JSONL file of training problems, for source `jsonl` only.
    eval_path: JSONL file of held-out problems, for source `jsonl` only.
    instruction: appended to every problem's last user message, in training and evaluation and
        for every method alike; with `peers.summaries` it asks for a summary.
    options: options of the source (docs/data.md), a mapping; the source refuses unknown names.
    held_out: refuse evaluation problems that are also trained on. False where both are meant to
        be the same (the paper's LiveCodeBench: the same problems with more tests).
    long_prompts: training problems with more than `rollout.prompt_length` tokens are an error,
        or are dropped, counted and named at the start. Held-out problems that are too long are
        always an error, because dropping them would change the benchmark.
    """

    source: Source = "codebook"
    train_path: str | None = None
    eval_path: str | None = None
    instruction: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    held_out: bool = True
    long_prompts: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        if self.source == "jsonl":
            require(
                self.train_path is not None and self.eval_path is not None,
                "DataConfig.source 'jsonl' needs data.train_path and data.eval_path",
            )
        else:
            require(
                self.train_path is None and self.eval_path is None,
                f"DataConfig.source {self.source!r} reads no such files; data.train_path and "
                "data.eval_path belong to source 'jsonl'",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How responses are sampled while training.

    prompts: P, prompts of a step.
    batch: prompts sampled at a time, and judged while the next are sampled; it must divide
        `prompts`. None: all at once, which uses a device best and overlaps nothing.
    group: G, rollouts of each prompt; at least 2.
    prompt_length: S in tokens; a longer prompt is an error.
    response_length: T in tokens; a response that has not ended by then is cut there and counted
        as truncated.
    temperature: of sampling, and of the log-probs that the update reads.
    top_p: sample from the likeliest tokens that hold this much probability. None is off.
    top_k: sample from so many of the likeliest tokens; 1 is greedy. None is off.
    policy: whether the student or the teacher writes the responses; `teacher` is for
        loss.method `sft` only.
    file: train from the rollouts of this file (docs/rollouts.md) instead of sampling. The
        settings of sampling must be those it was written with; after its last step its first
        comes again.
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

    def __post_init__(self) -> None:
        at_least(self, 1, "prompts", "batch", "prompt_length", "response_length", "top_k")
        require(
            self.batch is None or self.prompts % self.batch == 0,
            f"RolloutConfig.batch is {self.batch}, which does not divide rollout.prompts="
            f"{self.prompts}; use a divisor, or None for all at once",
        )
        require(self.file != "", "RolloutConfig.file is empty; name a file, or None to sample")
        require(
            self.group >= 2,
            f"RolloutConfig.group is {self.group}: a rollout without a group has no peers and "
            "no baseline; set rollout.group to 2 or more",
        )
        _check_sampling(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along the three axes of the mesh.

    data: copies of the weights, each with its share of the rows. None: as many as the other
        axes leave devices for.
    fsdp: devices that share out weights, moments and rows.
    tensor: devices that share out the heads, the MLP and the vocabulary of each layer.
    """

    data: int | None = None
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        at_least(self, 1, "data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on held-out problems: before the first step, between steps, after the last.

    every: steps between evaluations.
    problems: held-out problems that are used: a fixed draw, the same for every run seed. None:
        all of the split.
    samples: n, responses per problem.
    batch: problems sampled in one call.
    temperature: of sampling.
    top_p: as `rollout.top_p`.
    top_k: as `rollout.top_k`.
    ks: the k of every pass@k; each at most `samples`.
    """

    every: int = 20
    problems: int | None = 64
    samples: int = 8
    batch: int = 32
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    ks: tuple[int, ...] = (1, 2, 4, 8)

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "problems", "samples", "batch", "top_k")
        _check_sampling(self)
        for k in self.ks:
            require(
                1 <= k <= self.samples,
                f"EvalConfig.ks has {k}; pass@k needs 1 <= k <= eval.samples={self.samples}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints; one is always written after the last step.

    every: steps between checkpoints.
    keep: the latest checkpoints that are kept; older ones are removed.
    """

    every: int = 20
    keep: int = 2

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "keep")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Services that get the metrics besides the run folder, which always has all of them.

    wandb: a project of Weights & Biases (`pip install 'mopd_jax[wandb]'`). None is off.
    trackio: a project of Trackio (`pip install 'mopd_jax[trackio]'`). None is off.
    """

    wandb: str | None = None
    trackio: str | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            require(value != "", f"LogConfig.{name} is empty; name a project, or None for off")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run: settings of the whole, and a section for each part.

    name: the method's name in logs and in the default run folder.
    seed: of problems, sampling, peers and evaluation draws.
    steps: steps of the run; a finished run may be given more.
    dump_every: steps between dumps of the rollouts with their peers and contexts.
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
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "dump_every")
        at_least(self, 0, "seed")
        check_update(
            self.loss,
            self.teacher,
            self.optimizer,
            prompts=self.rollout.prompts,
            group=self.rollout.group,
            teacher_samples=self.rollout.policy == "teacher",
        )
        length = self.context.teacher_prompt_length
        if length is None:
            length = self.rollout.prompt_length
            fitting = dataclasses.replace(self.context, teacher_prompt_length=length)
            object.__setattr__(self, "context", fitting)
        require(
            length >= self.rollout.prompt_length,
            f"context.teacher_prompt_length={length} is below rollout.prompt_length="
            f"{self.rollout.prompt_length}: not even a plain prompt fits",
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
    """Every setting at its default, in a ConfigDict whose keys are locked."""
    return to_config_dict(Config())
