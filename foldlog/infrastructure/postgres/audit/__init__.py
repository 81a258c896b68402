"""Reads all rows of a space as they stood at one moment, so that `foldlog verify` can compare them
with the events.
"""
