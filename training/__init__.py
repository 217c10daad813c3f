"""HOW a model learns: configuration, losses, optimizer, step, loop, checkpoints, teacher, evaluation.

Plain PyTorch here; PyTorch/XLA in `training.xla`, Ray Train in `training.worker`, and nothing else imports either.
"""

from training.config import OptimizerConfig, TrainingConfig, TrainJob

__all__ = ["OptimizerConfig", "TrainJob", "TrainingConfig"]
