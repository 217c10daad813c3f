"""Training under Ray Train: the one room of `training` that imports ray.

driver      the driver's side: places workers, watches them, returns what was done
on_worker   each worker's side: backend, feed, loop
slices      XlaConfig: what PyTorch/XLA workers need, on TPU slices and off them
"""

from training.worker.driver import fit
from training.worker.slices import TpuSlices, XlaConfig

__all__ = ["TpuSlices", "XlaConfig", "fit"]
