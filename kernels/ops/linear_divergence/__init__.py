"""Divergence of two heads over two hidden states; called through `mopd_jax.kernels`."""
