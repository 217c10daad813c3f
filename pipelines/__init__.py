"""WHEN, in which order: stages, recipes, the runner that ties them together, and every command line."""
