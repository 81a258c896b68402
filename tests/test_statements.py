"""docs/reference/statements.sql shows the statements that the code builds."""

from __future__ import annotations

from tests.statements import FILE, rendered


def test_the_printed_statements_are_those_of_the_code():
    """Run `python -m tests.statements` after a change of a statement."""
    assert FILE.read_text("utf-8") == rendered()
