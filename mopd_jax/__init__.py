"""Multi-Rollout On-Policy Distillation (arXiv 2605.12652) in JAX. Start at `train.py`."""

from mopd_jax.losses import distill_loss

__version__ = "0.1.0"
__all__ = ["distill_loss"]
