"""Syncing a local store with the service."""
