"""Implements `foldlog demo`: replays the history of a git repository through simulated devices, and
checks the results.
"""
