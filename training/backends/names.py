"""The names of devices, on the command line and in manifests: a new backend adds its own here and in make.py.

Light on purpose (no torch): the command line reads these names before it loads anything.
"""

from typing import Literal

Device = Literal["xla", "cuda", "cpu", "auto"]
"""`auto` is resolved on the machine that computes (training/backends/devices.py)."""
