"""`foldlog token`, and the admin token of the first start, on a real database."""

from __future__ import annotations

import getpass
import time
from threading import Barrier, Thread
from types import SimpleNamespace

import psycopg
import pytest

from foldlog.domain.access import EVERY_SPACE, FIRST_TOKEN, Grant, Role, digest_of
from foldlog.infrastructure.settings import read_settings
from foldlog.scripts.commands import serve, token
from tests.conftest import as_service
from tests.helpers import A, a_token, new_id
from tests.integration.test_commands import run

__all__ = ["run"]

STARTS = 8


@pytest.fixture
def waited(monkeypatch):
    """Counts how often a command waited until the caches of all processes had expired."""
    times: list[float] = []
    clock = SimpleNamespace(sleep=times.append, time_ns=time.time_ns)
    monkeypatch.setattr(token, "time", clock)
    return times


@pytest.fixture
def grant(stores):
    def grant(*spaces: str) -> str:
        id = new_id()
        stores.grant_all(spaces, id, a_token()[1], Grant(role=Role.READER), "ada")
        return id

    return grant


@pytest.mark.parametrize("where", [[], ["--every-space", "--space", "s"]])
def test_a_new_token_needs_its_spaces(stores, run, where):
    """Without this rule, a forgotten option would grant the widest token."""
    result = run("token", "new", "--role", "admin", *where, code=2)
    assert "either --space or --every-space" in result.stderr
    run("token", "new", "--role", "admin", "--space", "", code=3)
    assert stores.tokens(EVERY_SPACE) == stores.tokens("s") == []
    run("token", "new", "--role", "admin", "--every-space")
    assert len(stores.tokens(EVERY_SPACE)) == 1


def test_a_repeated_space_counts_once(stores, run):
    result = run("token", "new", "--role", "reader", *("--space", "s", "--space", "t") * 2)
    assert "for s, t\n" in result.stderr
    assert len(stores.tokens("s")) == len(stores.tokens("t")) == 1


def test_a_token_is_granted_in_all_spaces_or_in_none(stores, run):
    stores.register("t", A)
    stores.revoke_device("t", A, reason="stolen")
    new = ("token", "new", "--role", "device", "--device", A)
    assert run(*new, "--space", "s", "--space", "t", code=3).stdout == ""
    assert stores.tokens("s") == []


def test_a_token_is_revoked_in_all_its_spaces(stores, run, grant, waited):
    id, other = grant("s", "t", EVERY_SPACE), grant("s")
    result = run("token", "revoke", id, "--reason", "lost")
    assert f"revoked {id} for every space, s, t\n" in result.stderr
    assert len(waited) == 1
    for space in ("s", "t", EVERY_SPACE):
        states = {each.id: each.revoked_reason for each in stores.tokens(space)}
        assert states[id] == "lost" and states.get(other) is None


def test_a_space_without_the_token_is_skipped(
    stores,
    run,
    grant,
    waited,
):
    id = grant("t", "u")
    spaces = ("--space", "s", "--space", "t")
    result = run("token", "revoke", id, *spaces, "--reason", "lost")
    assert f"revoked {id} for t\n" in result.stderr and len(waited) == 1
    assert [stores.tokens(space)[0].revoked_reason for space in "tu"] == ["lost", None]


@pytest.mark.parametrize("where", [[], ["--space", "s"]])
def test_an_unknown_token_is_an_error(stores, run, grant, waited, where):
    grant("s")
    for id in (new_id(), "not a uuid"):
        result = run("token", "revoke", id, *where, "--reason", "lost", code=3)
        assert "(unknown-token)" in result.stderr
    assert len(waited) == 2


def test_the_list_shows_the_reason_of_a_revocation(run, grant, waited):
    """The list is the only place for it, because a token for every space is in no log."""
    run("token", "revoke", grant(EVERY_SPACE), "--reason", "lost on a train", "--by", "bob")
    names, row = (line.split("\t") for line in run("token", "list").stdout.splitlines())
    assert names[-2:] == ["revoked by", "why"] and row[-2:] == ["bob", "lost on a train"]


def test_the_author_is_by_default_the_system_user(stores, run):
    run("token", "new", "--role", "reader", "--space", "s")
    run("device", "register", "t", A, "--by", "bob")
    assert stores.tokens("s")[0].granted_by == getpass.getuser()


def test_a_user_without_a_name_is_an_operator(stores, run, monkeypatch):
    def unknown():
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", unknown)
    run("token", "new", "--role", "reader", "--space", "s")
    assert stores.tokens("s")[0].granted_by == "an operator"


def test_control_characters_in_stored_names_are_escaped(database, run, grant):
    """The triggers of the table would refuse this name, so the owner switches them off."""
    grant("s")
    with psycopg.connect(database) as conn:
        conn.execute("ALTER TABLE tokens DISABLE TRIGGER USER")
        conn.execute("UPDATE tokens SET name = %s", ["a\x1b[2J\n\tb\u202e"])
    printed = run("token", "list", "s").stdout
    assert r"a\u001b[2J b\u202e" in printed and "\x1b" not in printed


def test_one_of_several_first_starts_grants_a_token(cluster, database, stores, capsys, tmp_path):
    """Parallel first starts grant only one admin token."""
    url, settings, together = (
        as_service(cluster, database),
        read_settings({}, data=str(tmp_path)),
        Barrier(STARTS),
    )
    made = serve.new_token

    def start():
        serve._make_first_token(url, settings)

    def at_once(random: bytes):
        together.wait(30)
        return made(random)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "new_token", at_once)
        threads = [Thread(target=start) for _ in range(STARTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    told = capsys.readouterr().err
    assert told.count("admin-token") == 1 and "foldlog_" not in told
    text = (tmp_path / "admin-token").read_text().strip()
    assert stores.token("s", digest_of(text)) is not None
    [first] = stores.tokens(EVERY_SPACE)
    assert (first.id, first.role) == (FIRST_TOKEN, Role.ADMIN)
