"""The cost of a recipe (tokens, operations, hours, bytes, money, carbon): estimated before a run, measured after it."""
