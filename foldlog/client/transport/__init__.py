"""Sends requests to the service over HTTP, and reads the live channel."""
