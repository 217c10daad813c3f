"""The fit check: does a program fit a TPU slice, and at what speed, by the TPU's own compiler."""
