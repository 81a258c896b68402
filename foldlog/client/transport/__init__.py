"""Requests to the service, over HTTP and over the live channel."""
