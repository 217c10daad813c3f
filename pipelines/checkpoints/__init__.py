"""Trained models for other stages and commands: loading, model cards, tracing and replaying of training runs."""
