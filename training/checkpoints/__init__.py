"""Checkpoints: what is saved, how it is committed, and which run may be resumed from a checkpoint."""
