"""`foldlog pg pg_dump` and `pg_restore` have the major version of an external server."""

from __future__ import annotations

import psycopg
import pytest
from click.testing import CliRunner

from foldlog.domain.errors import OperatorError
from foldlog.scripts.commands import pg
from foldlog.scripts.main import cli


@pytest.fixture
def programs(tmp_path):
    """Makes a folder with a `pg_dump` that prints a version."""

    def make(printed: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        program = folder / "pg_dump"
        program.write_text(f"#!/bin/sh\necho '{printed}'\n")
        program.chmod(0o755)
        return str(folder)

    return make


def test_the_program_of_the_servers_version_is_chosen(programs):
    folders = [
        programs("pg_dump (PostgreSQL) 16.4"),
        programs("something else"),
        programs("pg_dump (PostgreSQL) 15.8 (Debian 15.8-1)"),
    ]
    assert pg._of_version("pg_dump", 15, folders) == f"{folders[2]}/pg_dump"
    assert pg._of_version("pg_dump", 16, folders) == f"{folders[0]}/pg_dump"


def test_a_missing_version_is_told_with_what_was_found(programs):
    folder = programs("pg_dump (PostgreSQL) 16.4")
    with pytest.raises(OperatorError, match=r"pg_dump 17 is needed.*16"):
        pg._of_version("pg_dump", 17, [folder])
    with pytest.raises(OperatorError, match="none found"):
        pg._of_version("pg_dump", 17, [])


def test_the_version_of_the_server_decides(database, monkeypatch):
    with psycopg.connect(database) as conn:
        major = conn.info.server_version // 10_000
    words = ["pg", "--database-url", database, "pg_dump", "--version"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    monkeypatch.setattr(pg, "_version_of_server", lambda url: major + 50)
    refused = CliRunner().invoke(cli, words)
    assert refused.exit_code == 3 and f"pg_dump {major + 50} is needed" in refused.stderr
