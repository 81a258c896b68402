"""What every answer tells browsers and caches, whichever door it comes through."""

from __future__ import annotations

import re

import pytest

from tests.helpers import changeset

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


def check(answer, path: str) -> None:
    for name, value in ALWAYS.items():
        assert answer.headers.getlist(name) == [value], path
    (caching,) = answer.headers.getlist("Cache-Control")
    (policy,) = answer.headers.getlist("Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "frame-ancestors 'none'" in policy, path
    is_about_the_api = path.startswith(("/docs", "/problems", "/openapi.json"))
    assert caching.startswith("private, ") or is_about_the_api, path
    assert "Set-Cookie" not in answer.headers and "Server" not in answer.headers


def test_on_every_answer(app, client):
    """Of each route: data, what is not there, and what is refused."""
    client.push(changeset())
    for path in paths(app, client.space) + paths(app, "nobody-s"):
        if "stream" not in path:
            for method in (client.http.get, client.http.post, client.http.delete):
                check(method(path), path)


@pytest.mark.parametrize("path", ["/nothing", "/v1/spaces/UPPER/events", "/v1/spaces/a%FFb/events"])
def test_on_what_is_nowhere(http, path):
    check(http.get(path), path)


def test_on_streams(client):
    """An answer that has begun to come."""
    client.push(changeset())
    for path in ("events/stream?after=0&seconds=0", "snapshot"):
        answer = client.get(path, buffered=False)
        check(answer, path)
        answer.close()


def test_hsts_is_left_to_who_speaks_tls(http):
    """We do not know whether our name is served by TLS alone."""
    assert "Strict-Transport-Security" not in http.get("/healthz").headers
