"""The least that a Flask app can do: hand back what it was sent."""

from __future__ import annotations

from flask import Flask, Response, request

app = Flask(__name__, static_folder=None)


@app.post("/echo")
def echo() -> Response:
    return Response(request.get_data(), mimetype="application/json")
