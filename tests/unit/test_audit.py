"""CI's dependency audit: a known vulnerability fails, and so does a service that is unreachable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAFE = {"name": "flask", "version": "3.1.3", "vulns": []}
SKIPPED = {"name": "flask", "skip_reason": "Dependency not found on PyPI"}
VULNERABLE = {
    "name": "flask",
    "version": "0.5",
    "vulns": [{"id": "PYSEC-2019-179", "fix_versions": ["1.0"], "aliases": [], "description": ""}],
}


@pytest.fixture
def audit(tmp_path):
    """Runs the audit with a pip-audit that prints this. Returns the exit code and the output."""

    def audit(said: str | None) -> tuple[int, str]:
        pip_audit = tmp_path / "pip-audit"
        if said is not None:
            pip_audit.write_text(f"#!{sys.executable}\nimport sys\nprint({said!r})\nsys.exit(1)\n")
            pip_audit.chmod(0o700)
        command = [sys.executable, ROOT / ".ci" / "audit.py", pip_audit]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not done.stderr
        return done.returncode, done.stdout

    return audit


def said(*dependencies: dict) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


def test_a_known_vulnerability_fails(audit):
    code, line = audit(said(SAFE, SKIPPED, VULNERABLE))
    assert code == 1
    assert "flask 0.5: PYSEC-2019-179, fixed in 1.0" in line
    assert "audited 2 of 3 packages: 1 are vulnerable" in line


def test_none_passes(audit):
    assert audit(said(SAFE)) == (0, "audited 1 of 1 packages: 0 are vulnerable\n")


@pytest.mark.parametrize("answer", [None, "", "Connection refused", "{}", said(SKIPPED), said()])
def test_an_unreachable_service_is_reported_in_one_line(audit, answer):
    """The audit fails without network, without pip-audit, or if the service knows none of the
    packages."""
    code, told = audit(answer)
    assert code == 0
    assert told.startswith("dependencies were not audited: ") and told.count("\n") == 1
