"""Health, limits, the documents about the API, and the pages about its problems."""

from __future__ import annotations

import re
from html import unescape

import msgspec
import pytest

from foldlog.api.document.catalogue import BY_CODE, CATALOGUE
from foldlog.domain import errors
from foldlog.domain.limits import LIMITS, Limits
from foldlog.domain.ports import Gauge

from .conftest import assert_problem


def test_a_living_process_says_so(http):
    """
    The check covers this process only: restarting it does not help a database that is down.
    """
    answer = http.get("/healthz")

    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_a_ready_service_shows_its_checks(http):
    """
    The response lists the checks and the alarms for an operator.
    """
    answer = http.get("/readyz")

    assert answer.status_code == 200
    assert answer.json == {"status": "ready", "checks": {"database": "ok"}, "alarms": {}}


def test_a_service_that_is_not_ready_says_what_is_wrong(app_with):
    """
    The status is 503, so a load balancer sends requests elsewhere.
    """
    checks = {"database": "connection refused", "disk": "ok"}

    answer = app_with(ready=lambda: checks).http.get("/readyz")

    standard = assert_problem(answer, 503, "not-ready", checks=checks)
    assert standard["detail"] == "not ready: database"
    assert answer.headers["Retry-After"] == "1"


def test_every_limit_is_published(http, app_with):
    """
    Each limit has its current value, and the name that problems use.
    """
    assert http.get("/v1/limits").json == msgspec.to_builtins(LIMITS)
    lowered = app_with(limits=Limits(page_events_max=7)).http.get("/v1/limits")
    assert lowered.json["page_events_max"] == 7


def test_a_lowered_limit_is_enforced(app_with):
    """
    The service enforces the published value.
    """
    client = app_with(limits=Limits(page_events_max=7, page_events_default=5))

    assert client.get("events?limit=8").status_code == 400


def test_every_error_of_the_domain_has_its_page():
    """
    Each error has a remedy for the client.
    """

    def below(error):
        return {error}.union(*map(below, error.__subclasses__()))

    #: Only subclasses of these are raised. HTTP responses exclude `OperatorError`.
    abstract = {errors.FoldlogError, errors.PushConflict, errors.Unavailable}
    abstract |= {errors.DefinitionConflict}
    ours = {e for e in below(errors.FoldlogError) if e.__module__.startswith("foldlog.")}
    of_http_or_domain = {e for e in ours if ".domain." in e.__module__ or ".api." in e.__module__}

    assert of_http_or_domain - abstract - {errors.OperatorError} == set(CATALOGUE)
    assert len(BY_CODE) == len(CATALOGUE)


@pytest.mark.parametrize("code", BY_CODE)
def test_a_problem_has_a_page_for_programs_and_for_people(http, code):
    """
    The `type` of a problem document leads here.
    """
    as_json = http.get(f"/problems/{code}", headers={"Accept": "*/*"})
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    as_html = http.get(f"/problems/{code}", headers={"Accept": browser})

    assert as_json.content_type == "application/json"
    assert as_json.json.keys() == {"code", "title", "statuses", "remedy", "example"}
    assert as_json.json["example"]["code"] == code
    assert as_json.json["example"]["status"] in as_json.json["statuses"]
    assert as_html.mimetype == "text/html"
    assert as_json.json["title"] in unescape(as_html.text)
    assert "Accept" in as_html.headers["Vary"].split(", ")


def test_a_problem_that_is_not_there(http):
    """
    An unknown code is a problem itself.
    """
    assert_problem(http.get("/problems/teapot"), 404, "not-found")


def test_the_page_of_the_api_shows_everything(http, app):
    """
    The page has each operation, each schema and each problem.
    """
    page = http.get("/docs")
    document = http.get("/openapi.json").json

    assert page.mimetype == "text/html"
    for path, operations in document["paths"].items():
        assert f"<code>{path}</code>" in page.text
        for described in operations.values():
            assert f'<section id="{described["operationId"]}">' in page.text
            for parameter in described["parameters"]:
                assert f"<code>{parameter['name']}</code>" in page.text
    for name in document["components"]["schemas"]:
        assert f'<section id="schema-{name}">' in page.text
    for code in BY_CODE:
        assert f'<section id="problem-{code}">' in page.text


@pytest.mark.parametrize("path", ["/docs", "/problems/log-behind"])
def test_a_page_needs_nothing_from_elsewhere(http, path):
    """
    A page loads no external resources, and runs no scripts.
    """
    page = http.get(path, headers={"Accept": "text/html"})

    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    for outside in ("http:", "https:", "<script", "<link", "@import", "url("):
        assert outside not in page.text


def test_the_links_of_the_page_lead_somewhere(http):
    """
    Every linked anchor exists.
    """
    page = http.get("/docs").text

    linked = set(re.findall(r'href="#([^"]+)"', page))
    assert linked <= set(re.findall(r'id="([^"]+)"', page))


def test_metrics_are_what_prometheus_reads(app_with):
    """
    Each gauge has one line, with its help and labels. Metrics of the process are left out.
    """
    gauges = [
        Gauge("foldlog_spaces", "Spaces.", 3),
        Gauge("foldlog_lag_events", "Events not projected yet.", 7, {"projection": "master"}),
    ]
    answer = app_with(gauges=lambda: gauges).http.get("/metrics")

    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.text.splitlines() == [
        "# HELP foldlog_spaces Spaces.",
        "# TYPE foldlog_spaces gauge",
        "foldlog_spaces 3.0",
        "# HELP foldlog_lag_events Events not projected yet.",
        "# TYPE foldlog_lag_events gauge",
        'foldlog_lag_events{projection="master"} 7.0',
    ]
