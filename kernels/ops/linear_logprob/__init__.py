"""Log-probs and entropy of one head over hidden states; called through `mopd_jax.kernels`."""
