"""The command line: parsing of words and what each command does."""
