"""Implements `foldlog verify`: reads a log from a database, a service or a file, computes its
hashes and records from the events, and compares them with those in the source.
"""
