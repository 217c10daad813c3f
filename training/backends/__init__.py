"""Where a step computes.

base            the protocol of a backend, and what backends share
abilities       what a backend declares about itself: remat, mesh axes, processes
names           the names of devices
make            the backend of a set-up
devices         the device that this machine has
plain           plain PyTorch: torch_backend for a whole model, fsdp for parts of a model
xla/            PyTorch/XLA
gradients, checksum, local_workers
"""
