"""Recipes: Python functions that return typed steps."""
