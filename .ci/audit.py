"""Audits the versions of constraints.txt for known vulnerabilities: `make audit`, and CI.

Exit code 1 if a version is vulnerable. Without network or advisory service the script prints one
line and exits with 0, so that a foreign server cannot break the build. pip-audit has its own
venv, so that its dependencies bind neither the service nor the tests. An argument names another
pip-audit to run: `.ci/audit.py path/to/pip-audit`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP_AUDIT = "pip-audit==2.10.1"
VENV = ROOT / "build" / "audit-venv"
TIMEOUT_SECONDS = 300
#: `--timeout` is that of one request; pip-audit only looks up the versions of constraints.txt
OPTIONS = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "10"]


def main(arguments: list[str]) -> int:
    try:
        pip_audit = Path(arguments[0]) if arguments else installed()
        asked = ["-r", ROOT / "constraints.txt", "-f", "json", *OPTIONS]
        done = run([pip_audit, *asked])
    except (OSError, subprocess.SubprocessError) as exc:
        return not_audited(type(exc).__name__)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return not_audited((done.stderr.strip().splitlines() or ["no answer"])[-1])
    audited = [one for one in found if "vulns" in one]
    vulnerable = [one for one in audited if one["vulns"]]
    for one in vulnerable:
        for vuln in one["vulns"]:
            fixed = ", ".join(vuln["fix_versions"]) or "no version yet"
            print(f"{one['name']} {one['version']}: {vuln['id']}, fixed in {fixed}")
    if not audited:
        return not_audited(f"the advisory service knows none of {len(found)} packages")
    print(f"audited {len(audited)} of {len(found)} packages: {len(vulnerable)} are vulnerable")
    return 1 if vulnerable else 0


def installed() -> Path:
    """Installs pip-audit if necessary, and returns its path."""
    found = VENV / "bin" / "pip-audit"
    if not found.exists():
        venv.create(VENV, with_pip=True)
        pip = [VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, PIP_AUDIT]).check_returncode()
    return found


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


def not_audited(why: str) -> int:
    print(f"dependencies were not audited: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
