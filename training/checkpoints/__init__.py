"""Checkpoints: what is saved, how it is committed, and what may be continued."""
