"""The fit check: the TPU's own compiler decides whether a program fits a TPU slice, and how fast it could be."""
