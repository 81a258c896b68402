"""Implements `foldlog demo`: replays the history of a git repository as devices, and checks the
results.
"""
