"""WHERE it runs: Ray sessions here and on clusters. Imports nothing of ours."""
