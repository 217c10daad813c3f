"""Where a step computes: plain PyTorch, FSDP2, PyTorch/XLA."""
