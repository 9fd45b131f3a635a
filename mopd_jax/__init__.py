"""Multi-Rollout On-Policy Distillation (arXiv 2605.12652) in JAX. Start at `train.py`."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mopd_jax.kernels import Divergence, HeadSharding, Hidden, Logits, Stored
    from mopd_jax.losses import batch_totals, distill_loss, token_weights

__version__ = importlib.metadata.version("mopd_jax")
__all__ = [
    "Divergence",
    "HeadSharding",
    "Hidden",
    "Logits",
    "Stored",
    "batch_totals",
    "distill_loss",
    "token_weights",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that `mopd --help` need not wait for
    JAX (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    losses = ("batch_totals", "distill_loss", "token_weights")
    module = importlib.import_module(f"{__name__}.{'losses' if name in losses else 'kernels'}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
