"""Docs are complete: each route, error code, setting and command is there, in its page."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import msgspec
import pytest

import foldlog
from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.problems import statuses_of
from foldlog.domain.errors import FoldlogError
from foldlog.domain.limits import FIXED, LIMITS
from foldlog.infrastructure.memory.store import MemoryStore
from foldlog.infrastructure.settings import VARIABLES
from foldlog.scripts.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT / "docs").as_posix(): path.read_text("utf-8")
    for path in (ROOT / "docs").rglob("*.md")
}
#: bases that are never raised themselves
ABSTRACT = {"error", "push-conflict", "unavailable", "definition-conflict"}


def all_errors() -> set[type[FoldlogError]]:
    for module in pkgutil.walk_packages(foldlog.__path__, "foldlog."):
        # Importing these runs or configures something.
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(error: type[FoldlogError]) -> set[type[FoldlogError]]:
        return {error}.union(*(below(child) for child in error.__subclasses__()))

    return below(FoldlogError)


def test_every_error_code_is_explained():
    """In the protocol, or among the commands."""
    codes = {error.code for error in all_errors()} - ABSTRACT
    told = (
        PAGES["reference/protocol.md"]
        + PAGES["reference/commands.md"]
        + PAGES["how-to/use-the-client-library.md"]
    )
    missing = [code for code in sorted(codes) if f"`{code}`" not in told]
    assert not missing


def test_codes_are_unique():
    """A code names one error, for ever."""
    codes = [error.code for error in all_errors()]
    assert len(codes) == len(set(codes))


def test_the_statuses_in_the_protocol_are_the_real_ones():
    by_code = {error.code: error for error in all_errors()}
    rows = re.findall(r"^\| `([\w-]+)` \| (\d{3}) \|", PAGES["reference/protocol.md"], re.MULTILINE)
    assert len(rows) > 15
    for code, status in rows:
        assert int(status) in statuses_of(by_code[code]), code


@pytest.mark.parametrize("name", VARIABLES)
def test_every_setting_is_explained(name):
    variable, default, _ = VARIABLES[name]
    assert f"`{variable}`" in PAGES["reference/commands.md"]
    if default and name != "web_workers":
        assert f"| `{variable}` | `{default}` |" in PAGES["reference/commands.md"]


def test_every_limit_is_in_the_table_with_its_default():
    """And nothing else; those with a star cannot be set."""
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+)( \*)? \| ([\d, ]+) \|", PAGES["reference/limits.md"], re.MULTILINE
    )
    told, fixed = {}, set()
    for names, star, defaults in rows:
        told |= dict(zip(re.findall(r"\w+", names), map(int, defaults.split(",")), strict=True))
        fixed |= {names.strip("`")} if star else set()

    assert told == msgspec.structs.asdict(LIMITS)
    assert fixed == FIXED


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_explained(command):
    assert f"`foldlog {command}" in PAGES["reference/commands.md"]


def test_every_route_is_told_in_its_page_or_by_the_service():
    """What a client needs is in the protocol; /docs itself is proven complete elsewhere."""
    app = create_app(
        store=MemoryStore(),
        master=MemoryStore(),
        ready=dict,
        tree=MemoryStore(),
        access=OpenAccess(),
    )
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/v1/spaces"):
            last = [part for part in rule.rule.split("/") if part and "<" not in part][-1]
            assert re.search(
                rf"\b{last}\b", PAGES["reference/protocol.md"] + PAGES["explanation/merge.md"]
            ), rule.rule


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", PAGES[page]):
        if "://" not in target:
            assert (ROOT / "docs" / page).parent.joinpath(target).exists(), (
                f"{page} links to {target}"
            )
