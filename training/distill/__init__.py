"""The teacher's side of distillation: the teacher's distributions, and the audit of a cache of distributions."""
