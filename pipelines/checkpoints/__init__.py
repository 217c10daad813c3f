"""Trained models as other stages use them: loading, model cards, tracing and replaying a training run."""
