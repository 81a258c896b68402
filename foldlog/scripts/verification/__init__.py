"""Implements `foldlog verify`: reads a log from a source, folds its events, and compares the
results with what the source states.
"""
