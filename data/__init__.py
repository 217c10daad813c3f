"""WHAT is stored: schemas, manifests, shards, text cleaning, tokenizing, packing, the order of rows, the logit
cache's codec.

Pure functions over Arrow tables and NumPy arrays; nothing here imports ray or torch, so it runs on any machine.
"""
