"""Clusters: submitting a Ray job, writing Kubernetes objects."""
