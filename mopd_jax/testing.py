"""Fakes for fast tests: a tiny decoder, a batch, a judged response."""

from __future__ import annotations

from typing import Any

import numpy as np

from mopd_jax.evaluation.scores import Response
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Batch


def tiny_decoder(**changes: Any) -> DecoderConfig:
    """A Qwen3-like decoder of two layers; any field can be changed."""
    fields: dict[str, Any] = {
        "vocab_size": 64,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 8,
        "mlp_width": 64,
        "rope_theta": 1e4,
        "qk_norm": True,
    }
    return DecoderConfig(**{**fields, **changes})


def random_batch(
    seed: int, *, rows: int, prompt: int, teacher_prompt: int, response: int, vocab: int
) -> Batch:
    """A batch of ragged random rows: left-padded prompts, right-padded responses."""
    rng = np.random.default_rng(seed)

    def left(length: int) -> np.ndarray:
        real = rng.integers(1, length + 1, rows)
        return np.arange(length)[None] >= length - real[:, None]

    lengths = rng.integers(1, response + 1, rows)
    mask = np.arange(response)[None] < lengths[:, None]

    def tokens(length: int) -> np.ndarray:
        return rng.integers(0, vocab, (rows, length)).astype(np.int32)

    sampled = np.where(mask, -rng.exponential(size=mask.shape), 0.0)
    fields: dict[str, Any] = {
        "prompt": tokens(prompt),
        "prompt_mask": left(prompt),
        "response": tokens(response),
        "mask": mask,
        "sampled_logp": sampled.astype(np.float32),
        "teacher_prompt": tokens(teacher_prompt),
        "teacher_prompt_mask": left(teacher_prompt),
        "advantage": rng.normal(size=rows).astype(np.float32),
    }
    return Batch(**fields)  # Host arrays; `jax.device_put` lays them over a mesh.


def response(**changes: Any) -> Response:
    """A wrong answer that ended; any field can be changed."""
    fields: dict[str, Any] = {
        "problem": "a",
        "question": "0" * 12,
        "sample": 0,
        "text": "1 2 3",
        "tokens": 3,
        "reward": 0.0,
        "test_fraction": None,
        "format_ok": None,
        "error": "",
        "stopped": True,
        "tests_skipped": 0,
        "answer": "1 2 3",
    }
    return Response(**{**fields, **changes})
