"""Where work runs: Ray sessions, clusters, accelerators, slices and prices. Imports no other package of ours."""
