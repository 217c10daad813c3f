"""HOW a model learns: configuration, losses, optimizer, step, loop, checkpoints, teacher, evaluation.

Plain PyTorch here; PyTorch/XLA in `training.xla`, Ray Train in `training.worker`, and nothing else imports either.
Import the modules: this file imports none, because Ray's controller, which needs no torch, passes through it.
"""
