"""`foldlog erase` asks for confirmation, erases, and prints a summary."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from foldlog.scripts.main import cli
from tests.helpers import changeset, pull_all, push_of, put


@pytest.fixture
def erase(stores):
    """Runs the command on a space with three records, with the rights of the service's role."""
    stores.push("s", push_of(changeset(put("a", mail="x", n=1), put("b", mail="x"))))
    stores.push("s", push_of(changeset(put("a", mail="y"), put("c", mail="z"), base=1)))

    def run(*arguments: str, input: str | None = None, code: int = 0):
        command = ["erase", "s", *arguments, "--database-url", stores.datastore.url]
        result = CliRunner().invoke(cli, command, input=input)
        assert result.exit_code == code, result.output
        return result

    return run


def left(stores) -> set[str]:
    said = b"".join(pull_all(stores, "s")).decode()
    return {mail for mail in "xyz" if f'"mail":"{mail}"' in said}


def test_a_dry_run_lists_and_erases_nothing(erase, stores):
    result = erase("tasks", "--where", "mail=x", "--dry-run")
    assert result.stdout == "tasks\ta\t2\ntasks\tb\t1\n"
    assert left(stores) == {"x", "y", "z"}


def test_it_asks_for_confirmation(erase, stores):
    erase("tasks", "a", "--reason", "asked to", input="n\n", code=1)
    assert left(stores) == {"x", "y", "z"}
    erase("tasks", "a", "b", "--reason", "asked to", input="y\n")
    assert left(stores) == {"z"}


def test_ids_from_a_file_and_a_value_as_json(erase, stores):
    erase("tasks", "--ids-file", "-", "--reason", "why", "--yes", "--by", "me", input="c\n\n")
    assert left(stores) == {"x", "y"}
    result = erase("tasks", "--where", "n=1", "--where", "mail=x", "--reason", "why", "--yes")
    assert result.stdout == "tasks\ta\t2\n"
    assert "erased 1 records in 2 events" in result.stderr
    assert "record-erased" in result.stderr and "docs/explanation/erasure.md" in result.stderr


def test_erasing_again_exits_with_1(erase):
    """The second run finds no values left and exits with 1."""
    erase("tasks", "c", "--reason", "why", "--yes", "--no-vacuum")
    result = erase("tasks", "c", "--reason", "why", "--yes", code=1)
    assert "nothing to erase; 1 records were erased before" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "tells"),
    [
        (("tasks", "a"), 2, "--reason"),
        (("tasks", "--reason", "why"), 2, "--where"),
        (("tasks", "a", "--where", "n=1", "--reason", "why"), 2, "--where"),
        (("tasks", "--where", "n", "--reason", "why"), 2, "FIELD=VALUE"),
        (("tasks", "never", "--reason", "why", "--yes"), 3, "unknown-record"),
        (("ta/sks", "a", "--reason", "why", "--yes"), 3, "invalid-request"),
        (("tasks", "a", "--reason", " ", "--yes"), 3, "invalid-request"),
    ],
)
def test_errors_are_printed(erase, stores, arguments, code, tells):
    assert tells in erase(*arguments, code=code).output
    assert left(stores) == {"x", "y", "z"}
