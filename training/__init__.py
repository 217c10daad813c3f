"""HOW a model learns: configuration, losses, optimizer, step, loop, checkpoints, teacher, evaluation.

Plain PyTorch; only `training.backends.xla` imports PyTorch/XLA, and only `training.worker` imports Ray.
Import the modules: this file imports none, because Ray's controller, which needs no torch, passes through it.
"""
