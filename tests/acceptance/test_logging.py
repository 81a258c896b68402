"""One line for each request, and nothing in it that a user wrote."""

from __future__ import annotations

import json
import logging
import re

import pytest
import structlog

from foldlog.api.http.access import TokenAccess
from foldlog.api.http.logging import configure_logging
from foldlog.domain.access import Claims, Grant, Right, Role
from foldlog.domain.errors import StorageUnavailable
from foldlog.domain.redaction import redacted
from tests.helpers import a_token, changeset, new_id, put

from .conftest import ADMIN_TOKEN


def test_a_request_is_one_line(client, lines):
    """
    With the template of the path, so that lines can be counted by operation.
    """
    answer = client.push(changeset(), **{"return": "records"})

    (line,) = lines
    assert line.pop("duration_ms") >= 0
    assert line.pop("bytes_in") > 100
    assert line.pop("request_id") == answer.headers["X-Request-Id"]
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "POST",
        "path": "/v1/spaces/{space}/changesets",
        "space": client.space,
        "status": 200,
        "problem": None,
        "bytes_out": len(answer.data),
    }


def test_what_users_wrote_is_not_logged(client, lines):
    """
    Neither values nor ids of records, nor a token.
    """
    client.filled(put("secret-id", title="secret-value"))
    client.get("records/tasks/secret-id?at_least=1", headers={"Authorization": "secret-token"})
    client.push(changeset(put("secret-id", title=["secret-value"] * 2, nested={"a" * 300: 1})))
    client.get("secret-path?secret=1")
    client.push({**changeset(), "secret-member": 1})

    assert len(lines) >= 5
    assert "secret" not in str(lines)


def test_a_problem_is_named_in_its_line(client, lines):
    """
    What an operator counts.
    """
    client.get("events")

    assert (lines[-1]["status"], lines[-1]["problem"]) == (404, "unknown-space")


def test_a_sane_request_id_is_kept_and_another_is_not(client, lines):
    """
    Whoever sends an id wants to find it again; but our lines are not theirs to write.
    """
    kept = client.get("events", headers={"X-Request-Id": "trace-1.a_B"})
    made = client.get("events", headers={"X-Request-Id": 'x" injected="1'})

    assert kept.headers["X-Request-Id"] == lines[0]["request_id"] == "trace-1.a_B"
    assert made.headers["X-Request-Id"] == lines[1]["request_id"] != 'x" injected="1'


def test_an_id_tells_nothing_of_other_requests(client):
    """
    A number in it would tell anybody how many requests others make.
    """
    ids = [client.get("events").headers["X-Request-Id"] for _ in range(20)]

    assert all(re.fullmatch("[0-9a-f]{16}", id) for id in ids)
    for half in ({id[:8] for id in ids}, {id[8:] for id in ids}):
        assert len(half) == len(ids)


class SignIn:
    """Takes any token with two dots."""

    def read(self, text):
        return Claims(
            subject="ada",
            spaces=frozenset({text.split(".")[0]}),
            rights=frozenset({Right.READ}),
            device=None,
            expires_at=float("inf"),
        )


def test_a_line_names_who_called(app_with, store, lines):
    """
    By an id that is no secret, at both doors; whoever is not known is not named.
    """
    access = TokenAccess(store, store, admin_token=ADMIN_TOKEN, jwts=SignIn())
    client = app_with(access=access)
    text, digest = a_token()
    id = new_id()
    store.grant(client.space, id, digest, Grant(role=Role.READER), None)
    signed = f"{client.space}.b.c"

    callers = {ADMIN_TOKEN: "admin token", text: f"token {id}", signed: "sub ada", "guess": None}
    for token, caller in callers.items():
        for path in ("events", "records"):
            client.get(path, headers={"Authorization": f"Bearer {token}"})
            assert lines[-1].get("caller") == caller
    client.get("events")
    assert "caller" not in lines[-1]
    assert not any(token in str(lines) for token in (ADMIN_TOKEN, text, signed))
    assert redacted(json.dumps(lines)) == json.dumps(lines)


def test_a_fault_of_ours_is_logged_with_its_traceback(app_with, lines):
    """
    The client gets an id, the log gets the story.
    """

    class Broken:
        def cached_range(self, *_):
            return None

        def range_after(self, *_):
            raise RuntimeError("what happened")

    answer = app_with(store=Broken()).get("events")

    fault, line = lines
    assert (fault["event"], fault["log_level"]) == ("unexpected-error", "error")
    assert str(fault["exc_info"]) == "what happened"
    assert fault["request_id"] == line["request_id"] == answer.json["request_id"]
    assert (line["status"], line["problem"]) == (500, "internal-error")


def test_why_the_storage_is_away_is_logged(app_with, lines):
    """
    The client only learns that it is.
    """

    class Away:
        def cached_range(self, *_):
            return None

        def range_after(self, *_):
            raise StorageUnavailable from OSError("no route to host")

    app_with(store=Away()).get("events")

    assert lines[0]["event"] == "unavailable"
    assert str(lines[0]["exc_info"].__cause__) == "no route to host"


@pytest.fixture
def configured(monkeypatch):
    """Sets logging up as a process does, and puts it back."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    # The clients of other tests leave tasks behind, of which it tells whenever they are collected.
    monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", True)
    level = root.level
    yield configure_logging
    structlog.reset_defaults()
    root.setLevel(level)


def test_lines_are_json(configured, capsys):
    """
    Ours, and those of the libraries; a traceback without the values of variables.
    """
    configured("json")
    secret = "hunter2"  # noqa: F841

    try:
        raise RuntimeError("broken")
    except RuntimeError:
        structlog.get_logger("test.json").exception("fault", n=1)
    logging.getLogger("some.library").warning("theirs %s", 2)

    ours, theirs = map(json.loads, capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["n"], ours["level"]) == ("fault", 1, "error")
    assert ours["exception"][0]["exc_value"] == "broken"
    assert "hunter2" not in str(ours)
    assert (theirs["event"], theirs["logger"]) == ("theirs 2", "some.library")
    assert theirs["timestamp"].endswith("Z")


def test_lines_can_be_for_people(configured, capsys):
    """
    On a developer's terminal.
    """
    configured("console")

    structlog.get_logger("test.console").info("request", status=200)

    (line,) = capsys.readouterr().err.splitlines()
    assert "request" in line and "200" in line
