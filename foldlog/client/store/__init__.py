"""Reads and writes the SQLite file of a replica, with its records and its queue of changesets."""
