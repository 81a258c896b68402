"""The HTTP interface of the service: its routes, its requests and responses, and its error
responses.

`app.create_app` receives the store, the master table and the other parts as arguments. This package
imports the domain and web libraries only, so tests can run all of it with the in-memory store
instead of PostgreSQL.
"""
