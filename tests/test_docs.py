"""The docs are complete: routes, errors, settings, limits, metrics, commands, options, links."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

import foldlog
from docs.generate import commands
from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.api.http.problems import statuses_of
from foldlog.domain.errors import FoldlogError
from foldlog.domain.limits import FIXED, LIMITS
from foldlog.infrastructure.memory.store import MemoryStore
from foldlog.infrastructure.postgres import status
from foldlog.infrastructure.settings import VARIABLES
from foldlog.scripts.main import COMMANDS, cli

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT / "docs").as_posix(): path.read_text("utf-8")
    for path in (ROOT / "docs").rglob("*.md")
}
ALL_PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
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


def service_errors() -> set[type[FoldlogError]]:
    return {error for error in all_errors() if not issubclass(error, foldlog.ClientError)}


ERRORS = PAGES["reference/errors.md"]


def test_every_error_code_is_explained():
    codes = {error.code for error in all_errors()} - ABSTRACT
    missing = [code for code in sorted(codes) if f"`{code}`" not in ERRORS]
    assert not missing


def test_codes_are_unique():
    """A code names one error, for ever. The client library may raise the same error at the call,
    with the code and the class name of the service's.
    """
    names = {error.code: error.__name__ for error in service_errors()}
    assert len(names) == len(service_errors())
    ours = all_errors() - service_errors()
    assert len({error.code for error in ours}) == len(ours)
    shared = {error.code: error.__name__ for error in ours if error.code in names}
    assert shared.items() <= names.items()


def test_each_documented_code_exists():
    codes = {error.code for error in all_errors()}
    rows = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \| (?:\d|[^|`]|`[A-Z])", ERRORS, re.MULTILINE)
    assert len(rows) > 60
    assert {code for row in rows for code in re.findall(r"[\w-]+", row)} <= codes


def test_the_documented_statuses_are_the_real_ones():
    by_code = {error.code: error for error in service_errors()}
    rows = re.findall(r"^\| ((?:`[\w-]+`(?:, )?)+) \| (\d{3}) \|", ERRORS, re.MULTILINE)
    assert len(rows) > 30
    for codes, number in rows:
        for code in re.findall(r"[\w-]+", codes):
            assert int(number) in statuses_of(by_code[code]), code


@pytest.mark.parametrize("name", VARIABLES)
def test_every_setting_is_explained(name):
    variable, default, _ = VARIABLES[name]
    page = PAGES["reference/settings.md"]
    assert f"| `{variable}` |" in page
    if default and name != "web_workers":
        assert f"| `{variable}` | `{default}` |" in page


def test_every_documented_setting_exists():
    known = {variable for variable, _, _ in VARIABLES.values()}
    rows = re.findall(r"^\| `(\w+)` \|", PAGES["reference/settings.md"], re.MULTILINE)
    assert set(rows) == known


def test_every_limit_is_in_the_table_with_its_default():
    """The table has the limits and their defaults, no others. A star marks a fixed limit."""
    rows = re.findall(
        r"^\| ((?:`\w+`(?:, )?)+)( \*)? \| ([\d, ]+) \|", PAGES["reference/limits.md"], re.MULTILINE
    )
    documented, fixed = {}, set()
    for names, star, defaults in rows:
        documented |= dict(
            zip(re.findall(r"\w+", names), map(int, defaults.split(",")), strict=True)
        )
        fixed |= {names.strip("`")} if star else set()

    assert documented == msgspec.structs.asdict(LIMITS)
    assert fixed == FIXED


def test_every_metric_is_in_the_table():
    """The names are literals of `status.py`, where the gauges are made."""
    code = inspect.getsource(status)
    rows = re.findall(r"^\| `(\w+)` \|", PAGES["reference/metrics.md"], re.MULTILINE)
    assert set(rows) == set(re.findall(r'"(foldlog_\w+)"', code))


def all_commands() -> Iterator[tuple[str, click.Command]]:
    for name, command, _ in commands(cli):
        if name != "foldlog":
            yield name, command


@pytest.mark.parametrize(("name", "command"), list(all_commands()))
def test_every_command_is_explained_with_all_its_options(name, command):
    """`make docs` writes this part of the page anew."""
    page = PAGES["reference/commands.md"]
    part = page.partition(f"### `{name}`\n")[2].partition("\n### ")[0]
    assert part, f"{name} is missing: run `make docs`"
    for option in command.params:
        if isinstance(option, click.Option):
            assert f"`{option.opts[0]}" in part or "--help" in option.opts, option.opts


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_table(command):
    assert f"| `foldlog {command}" in PAGES["reference/commands.md"]


def test_every_route_is_in_the_docs():
    """A path below a space may be written as `.../events`, or `events` in a table of such paths."""
    store = MemoryStore()
    app = create_app(
        store=store,
        master=store,
        ready=dict,
        tree=store,
        registry=store,
        add_checkpoint=lambda body: "",
        access=OpenAccess(),
    )
    text = "\n".join(PAGES.values())
    rules = [rule.rule for rule in app.url_map.iter_rules()]
    assert len(rules) > 35
    for rule in rules:
        path = re.escape(re.sub(r"<[^>]*>", "PARAMETER", rule))
        path = path.replace("PARAMETER", r"(?:[{<][^/ `]*[}>]|\w+)")
        below = path.partition(r"\w+)/")[2] if rule.startswith("/v1/spaces/") else path
        forms = rf"{path}|\.\.\./{below}|`{below}"
        assert re.search(rf"(?:{forms})(?![\w/{{])", text), rule


LINK = re.compile(r"\]\(([^)#\s]*)(#[^)]*)?\)")


@pytest.mark.parametrize("page", sorted(ALL_PAGES))
def test_links_lead_somewhere(page):
    """Each file exists, and each anchor is a heading of its page."""
    path = ROOT / page
    for target, anchor in LINK.findall(ALL_PAGES[page]):
        if "://" in target:
            continue
        found = Path(os.path.normpath(path.parent / target)) if target else path
        assert found.exists(), f"{page} links to {target}"
        if anchor and found.suffix == ".md":
            assert anchor[1:] in anchors_of(found), f"{page} links to {target}{anchor}"


def anchors_of(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
    return {re.sub(r"\s", "-", heading.strip()) for heading in plain}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_page_is_in_the_navigation(page):
    """A page of a decision is in the index of decisions."""
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    if page.startswith("decisions/0"):
        assert f"({page.partition('/')[2]})" in PAGES["decisions/index.md"]
    else:
        assert re.search(rf"^ +- (?:\w+: )?{re.escape(page)}$", config, re.MULTILINE)


def test_the_readme_and_the_architecture_are_short():
    assert len(ALL_PAGES["README.md"].split()) <= 600
    assert len(ALL_PAGES["ARCHITECTURE.md"].split()) <= 1_600


def test_the_two_commands_of_the_readme_are_targets_of_make():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"^make (\w+)", ALL_PAGES["README.md"], re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
