"""Prints the SQL statements that the code builds from parts: `python -m tests.statements`.

Most statements stand in the code as they are sent, and are read there. The others share long parts,
such as the limit of bytes of a page. docs/reference/statements.sql has those in full.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "foldlog/infrastructure/postgres"
FILE = ROOT / "docs/reference/statements.sql"
HEAD = """\
-- The SQL statements that the service builds from parts, in full. All other statements stand in the
-- code as they are sent. Written by `python -m tests.statements`; a test compares it with the code.
"""
VERBS = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "COPY")


def built_statements() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of each statement that the code builds."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in _built_names(path):
            value = getattr(importlib.import_module(module), name)
            several = value.items() if isinstance(value, dict) else [("", value)]
            for key, text in several:
                if isinstance(text, str) and "\n" in text and text.strip().startswith(VERBS):
                    yield f"{module}.{name}{f'[{key!r}]' if key else ''}", text.strip()


def _built_names(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        if not isinstance(node.value, ast.Constant):
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def rendered() -> str:
    parts = [HEAD, *(f"\n-- {name}\n{text};\n" for name, text in built_statements())]
    return "\n".join(line.rstrip() for line in "".join(parts).split("\n"))


if __name__ == "__main__":
    FILE.write_text(rendered(), "utf-8")
