"""What every answer tells browsers and caches, whichever door it comes through."""

from __future__ import annotations

import re

import pytest
from werkzeug.datastructures import Headers

from foldlog.infrastructure.memory.store import MemoryStore
from tests.helpers import changeset

from .live import Space, served

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def paths(app, space: str) -> list[str]:
    """Every path that can be read, with something in the place of its variables."""
    rules = [rule.rule for rule in app.url_map.iter_rules() if "GET" in (rule.methods or ())]
    assert len(rules) > 15
    return [re.sub(r"<[^>]+>", "x", rule.replace("<space>", space)) for rule in rules]


def check(headers: Headers, path: str) -> None:
    for name, value in ALWAYS.items():
        assert headers.getlist(name) == [value], path
    (caching,) = headers.getlist("Cache-Control")
    (policy,) = headers.getlist("Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "frame-ancestors 'none'" in policy, path
    is_about_the_api = path.startswith(("/docs", "/problems", "/openapi.json"))
    assert caching.startswith("private, ") or is_about_the_api, path
    assert "Set-Cookie" not in headers and "Server" not in headers


def test_on_every_answer(app, client):
    """Of each route: data, what is not there, and what is refused."""
    client.push(changeset())
    for path in paths(app, client.space) + paths(app, "nobody-s"):
        if "stream" not in path:
            for method in (client.http.get, client.http.post, client.http.delete):
                check(method(path).headers, path)


@pytest.mark.parametrize("path", ["/nothing", "/v1/spaces/UPPER/events", "/v1/spaces/a%FFb/events"])
def test_on_what_is_nowhere(http, path):
    check(http.get(path).headers, path)


def test_on_answers_that_take_their_time():
    """On their way through a real server: a stream, and a snapshot."""
    with served(MemoryStore()) as service:
        space = Space(service.port)
        space.push(changeset())
        for path in ("events/stream?after=0", "snapshot"):
            with space.http.stream("GET", path) as answer:
                assert answer.status_code == 200
                check(Headers(answer.headers.multi_items()), path)


def test_hsts_is_left_to_who_speaks_tls(http):
    """We do not know whether our name is served by TLS alone."""
    assert "Strict-Transport-Security" not in http.get("/healthz").headers
