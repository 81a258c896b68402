"""The layers, as a test. An import that points outward fails with its line number."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "foldlog"

#: Imports that a layer must avoid: outer layers, and libraries that belong to other layers.
FORBIDDEN = {
    "domain": {
        *("foldlog.infrastructure", "foldlog.api", "foldlog.client", "foldlog.scripts"),
        *("psycopg", "eventsourcing", "flask", "marshmallow", "httpx", "click", "uvicorn"),
        *("time", "random", "secrets", "os", "socket", "pathlib", "threading"),
    },
    "infrastructure": {"foldlog.api", "foldlog.client", "foldlog.scripts", "flask", "marshmallow"},
    "api": {
        *("foldlog.infrastructure", "foldlog.client", "foldlog.scripts"),
        *("psycopg", "eventsourcing", "uvicorn"),
    },
    "client": {
        *("foldlog.infrastructure", "foldlog.api", "foldlog.scripts"),
        *("psycopg", "eventsourcing", "flask", "marshmallow", "uvicorn"),
    },
}
MODULES = [path for layer in FORBIDDEN for path in sorted((PACKAGE / layer).rglob("*.py"))]


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, absolute name of the module) of each import, relative ones resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.append((node.lineno, module))
            # `from .. import infrastructure` names a layer as well
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def is_or_is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_inward(path):
    """scripts -> api -> domain <- infrastructure <- scripts, and client -> domain."""
    layer = path.relative_to(PACKAGE).parts[0]
    outward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imported(path)
        for module in FORBIDDEN[layer]
        if is_or_is_in(name, module)
    ]
    assert not outward, "\n".join(outward)


def test_the_rule_would_catch_an_outward_import(tmp_path, monkeypatch):
    """The check itself works: relative and absolute imports are both resolved."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    module = tmp_path / "foldlog" / "domain" / "bad.py"
    module.parent.mkdir(parents=True)
    module.write_text("from ..infrastructure.postgres import log\nfrom foldlog import api\n")

    names = {name for _, name in imported(module)}

    assert any(is_or_is_in(name, "foldlog.infrastructure") for name in names)
    assert any(is_or_is_in(name, "foldlog.api") for name in names)


#: The parts that wiring joins, besides every class `Postgres...` in infrastructure/postgres.
PARTS = {
    *("EmbeddedPostgres", "Datastore", "Follower", "Announcer", "Wakeups", "Importer"),
    *("Projector", "Rebuilder", "CheckpointSigner", "Witness", "Witnesses", "Jwts"),
}
#: Parts that another part makes for itself: the caller of that part cannot choose them.
OWN_PARTS = {
    ("infrastructure/postgres/log/following.py", "Wakeups"),
    ("infrastructure/postgres/service_events/collections.py", "PostgresMasterTable"),
}


def calls(names: set[str]) -> set[tuple[str, str]]:
    """Returns (file, name) of each call of one of these names, as `Name()` or `module.Name()`."""
    return {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and (name := getattr(node.func, "id", getattr(node.func, "attr", ""))) in names
    }


def postgres_classes() -> set[str]:
    return {
        node.name
        for path in (PACKAGE / "infrastructure" / "postgres").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.startswith("Postgres")
    }


#: The parts of the API, from the lowest to the highest. Each imports only lower ones.
API_PARTS = ["shapes", "http", "operation", "document", "operations", "app", "routing", "server"]


def test_parts_of_the_api_import_lower_parts_alone():
    """server -> app -> operations -> document -> operation -> http -> shapes."""
    api, height = PACKAGE / "api", API_PARTS.index
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted(api.rglob("*.py"))
        for line, name in imported(path)
        if path != api / "__init__.py" and name.startswith("foldlog.api.")
        if height(name.split(".")[2]) > height(path.relative_to(api).with_suffix("").parts[0])
    ]
    assert not upward, "\n".join(upward)


def test_only_one_place_joins_the_parts():
    """Stores, projectors, signers and the embedded server are constructed in wiring alone."""
    parts = PARTS | postgres_classes()
    makers = calls(parts) - OWN_PARTS
    assert {"PostgresEventStore", "PostgresMasterTable"} < parts
    assert {file for file, _ in makers} == {"infrastructure/wiring.py"}, sorted(makers)
    assert {name for _, name in makers} >= PARTS


def test_only_one_place_makes_the_app_and_its_server():
    """One module of scripts/server joins the app, its event loop's server, and the services."""
    [file] = {file for file, _ in calls({"create_app", "AsgiServer"})}
    assert file.startswith("scripts/server/")


def import_graph(package: Path) -> dict[str, set[str]]:
    """For each module of a package, the modules of the package that it imports.

    Imports in functions and under `TYPE_CHECKING` count as well.
    """
    paths = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        paths[".".join(part for part in parts if part != "__init__")] = path
    graph = {}
    for module, path in paths.items():
        found = {(line, name) for line, name in imported(path) if name in paths}
        # `from package import module` names both, and needs the module alone.
        packages = {(line, name.rpartition(".")[0]) for line, name in found}
        graph[module] = {name for _, name in found - packages} - {module}
    return graph


def test_no_import_circles():
    """Modules import each other in one direction only. A failure names one circle."""
    circle: list[str] = []
    try:
        TopologicalSorter(import_graph(PACKAGE)).prepare()
    except CycleError as exc:
        circle = exc.args[1]
    assert not circle, " <- ".join(circle)


def test_the_check_finds_a_circle(tmp_path, monkeypatch):
    """A circle counts even if one of its imports is in a function."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    package = tmp_path / "foldlog"
    package.mkdir()
    (package / "a.py").write_text("from .b import x\n")
    (package / "b.py").write_text("def x():\n    from . import a\n")

    with pytest.raises(CycleError, match=r"foldlog\.a"):
        TopologicalSorter(import_graph(package)).prepare()
