"""Verification of a log: its sources, the fold of its events, and the run that compares them."""
