"""Syncs the local store of a replica with the service."""
