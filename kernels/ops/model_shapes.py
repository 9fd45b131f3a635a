"""Shapes of the heads of real models, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple


class HeadShape(NamedTuple):
    """Sizes of a head [V, D] as published, padding rows included."""

    width: int  # D
    vocab: int  # V


SHAPES = {
    "SmolLM2-135M": HeadShape(576, 49_152),
    "Qwen3-0.6B": HeadShape(1024, 151_936),
    "Qwen3-4B": HeadShape(2560, 151_936),
    "Qwen3-8B": HeadShape(4096, 151_936),
    "Llama-3.2-1B": HeadShape(2048, 128_256),
}
