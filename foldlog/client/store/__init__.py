"""The local store: the SQLite file of a replica, with its records and its queue."""
