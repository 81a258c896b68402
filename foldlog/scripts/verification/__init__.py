"""Implements `foldlog verify`, which checks a log in a database, a service or a file.

The command reads the events of the log and computes hashes and records from them. Then it compares
the computed hashes and records with the stored ones.
"""
