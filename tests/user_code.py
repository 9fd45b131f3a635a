"""Code of a user of the loss, as `test_wheel.py` runs it and type-checks it."""

import jax
import jax.numpy as jnp

from mopd_jax import Hidden, distill_loss


def loss_of(states: jax.Array, head: jax.Array) -> jax.Array:
    """The mean divergence of a student from itself, f32[]."""
    targets = jnp.zeros(states.shape[:-1], jnp.int32)
    mask = jnp.ones(states.shape[:-1], bool)
    model = Hidden(states, head)
    loss, _ = distill_loss(model, model, targets, mask)
    return loss


if __name__ == "__main__":
    print(float(loss_of(jnp.ones((2, 3, 4)), jnp.eye(5, 4))))
