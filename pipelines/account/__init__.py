"""What a recipe takes (tokens, operations, hours, bytes, money, carbon): estimated before, measured after."""
