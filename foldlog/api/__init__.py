"""Implements the HTTP interface of the service: its routes, its requests and responses, and its
error responses.

The function `app.create_app` receives the event store, the master table and the other objects that
it needs as arguments. This package imports only the domain and libraries for the web, so tests can
run the whole interface with an in-memory store instead of PostgreSQL.
"""
