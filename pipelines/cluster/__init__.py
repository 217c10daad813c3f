"""Clusters: submitting a Ray job, writing Kubernetes manifests."""
