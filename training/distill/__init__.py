"""The teacher's side of distillation: its distributions, and the audit of a cache of them."""
