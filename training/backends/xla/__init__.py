"""PyTorch/XLA: the only place that imports torch_xla (and jax), so that everything else runs without it."""
