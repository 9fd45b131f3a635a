"""Multi-Rollout On-Policy Distillation (arXiv 2605.12652) in JAX. Start at `train.py`."""

import importlib.metadata

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
