"""Multi-Rollout On-Policy Distillation (arXiv 2605.12652) in JAX. Start at `train.py`."""

import importlib.metadata

from mopd_jax.losses import distill_loss

__version__ = importlib.metadata.version("mopd_jax")
__all__ = ["distill_loss"]
