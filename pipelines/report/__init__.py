"""The page that a recipe writes about its results."""
