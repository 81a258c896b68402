"""Foldlog: an event-sourced changeset log service, and the client library that apps import."""

__version__ = "0.1.0"
