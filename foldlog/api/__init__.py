"""HTTP, and nothing else: routes, what they take and answer, and what a refusal looks like.

`app.create_app` receives ready-made parts. This package imports the domain and the web's
libraries, never the infrastructure, so that everything here runs on the store in memory too.
"""
