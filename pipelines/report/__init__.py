"""The report: the page and the tables that a recipe writes about its results."""
