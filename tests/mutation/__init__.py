"""Mutation tests: they change one place of the code at a time, and a test must then fail."""
