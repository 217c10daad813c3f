"""Where a step computes.

base            the protocol of a backend, and what backends share
abilities       what a backend declares of itself: remat, mesh axes, processes
names           the names of devices
make            the backend of a set-up
devices         which device this machine has
plain           plain PyTorch: torch_backend for a whole model, fsdp for parts of it
xla/            PyTorch/XLA
gradients, checksum, local_workers
"""
