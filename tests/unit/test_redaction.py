"""Messages of libraries quote their input; secrets are removed from them."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from foldlog.api.http.logging import configure_logging
from foldlog.domain.notes import Signer
from foldlog.domain.redaction import redacted
from foldlog.infrastructure.settings import InvalidSettings, read_settings
from foldlog.infrastructure.signing.keys import Key
from foldlog.infrastructure.supervisor import Child
from foldlog.infrastructure.wiring import Database

SECRET = "planted-S3cret"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.c2ln_bmF0-dXJl"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"postgresql://user:{SECRET}@host:5432/db", "postgresql://user:***@host:5432/db"),
        (f"postgresql://user:a@{SECRET}@host/db", "postgresql://user:***@host/db"),
        (f"at redis://:{SECRET}@host, twice", "at redis://:***@host, twice"),
        (f'{{"u":"http://x:80/p","s":"s://u:{SECRET}@h"}}', '{"u":"http://x:80/p","s":"s://u:***@h"}'),
        (f"host=h password={SECRET} user=u", "host=h password=*** user=u"),
        (f"host=h password='it\\'s {SECRET}' user=u", "host=h password=*** user=u"),
        (f"?sslmode=x&password={SECRET}&user=u", "?sslmode=x&password=***&user=u"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        (f"authorization: bearer  {SECRET}", "authorization: bearer  ***"),
        (f"BEARER {SECRET}", "BEARER ***"),
        (f"PASSWORD={SECRET} user=u", "PASSWORD=*** user=u"),
        (f"b'authorization', b'Basic {SECRET}'", "b'authorization', b'Basic ***'"),
        (f"the token {JWT} has expired", "the token *** has expired"),
        (f"there is no token 'foldlog_{'x' * 43}'", "there is no token '***'"),
    ],
)  # fmt: skip
def test_secrets_are_hidden(text, left):
    assert redacted(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://127.0.0.1:3653/v1/spaces/home?after=1",
        "mail to a@b.example, see https://example.com:443/a/b@c",
        'connection to server at "db", port 5432 failed: FATAL:  password authentication failed',
        "basic idea; the bearer of it",
        "/v1/spaces/{space}/events",
    ],
)
def test_other_text_is_unchanged(text):
    assert redacted(text) == text


@pytest.mark.parametrize("format", ["json", "console"])
def test_log_lines_are_free_of_secrets(format, monkeypatch, capsys):
    """Our own lines, lines of libraries, and tracebacks hide secrets in both log formats."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers[:])
    level = root.level
    try:
        configure_logging(format)
        try:
            raise RuntimeError(f"cannot use postgresql://u:{SECRET}@h/d")
        except RuntimeError:
            structlog.get_logger("test.redaction").exception("fault", why=f"Bearer {SECRET}")
            logging.getLogger("some.library").exception("theirs password=%s %s", SECRET, JWT)
    finally:
        structlog.reset_defaults()
        root.setLevel(level)
    told = capsys.readouterr().err
    assert "fault" in told and "theirs" in told and "RuntimeError" in told
    assert SECRET not in told and JWT not in told
    if format == "json":
        assert all(json.loads(line) for line in told.splitlines())


def test_objects_with_secrets_hide_them():
    """A secret's object may appear in any message: assertions, tracebacks, a debugger's output."""
    settings = read_settings(
        {"FOLDLOG_DATABASE_URL": f"postgresql://u:{SECRET}@h/d", "FOLDLOG_ADMIN_TOKEN": SECRET * 2}
    )
    assert settings.database_url and settings.admin_token
    holders = [
        settings,
        Database(url=SECRET, owner_url=SECRET, embedded=None, migrated=[]),
        Child(name="web", argv=["foldlog"], env={"FOLDLOG_DATABASE_URL": SECRET}),
        Key(public="p", made_at="now", private=SECRET),
        [Signer("name", SECRET.encode())],
    ]
    for holder in holders:
        assert SECRET not in repr(holder) and SECRET not in str(holder)


@pytest.mark.parametrize(
    "url",
    [
        f"postgres//user:{SECRET}@host/db",
        f"postgresql://user:{SECRET}%zz@host/db",
        f"host=h password='{SECRET}",
        f"postgresql://user:{SECRET}@host/db?pasword={SECRET}",
    ],
)
def test_a_url_that_cannot_be_read_is_not_quoted(url):
    """libpq's own messages quote all of it."""
    with pytest.raises(InvalidSettings, match="FOLDLOG_DATABASE_URL") as refused:
        read_settings({"FOLDLOG_DATABASE_URL": url})
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
