"""Known vulnerabilities among the versions of constraints.txt: `make audit`, and CI.

Fails if there is one. Where nobody can be asked (no network, no advisory service, a mirror without
one) it says so in one line and fails nothing: the build must not hang on somebody else's server.
pip-audit lives in a venv of its own, so that neither the service nor the tests are bound to what it
needs. With an argument that is used instead: `.ci/audit.py path/to/pip-audit`.
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
PATIENCE_SECONDS = 300
#: a request's; constraints.txt is all that is asked about, nothing is installed or resolved
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
    """pip-audit, installed if need be."""
    found = VENV / "bin" / "pip-audit"
    if not found.exists():
        venv.create(VENV, with_pip=True)
        pip = [VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, PIP_AUDIT]).check_returncode()
    return found


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


def not_audited(why: str) -> int:
    print(f"dependencies were not audited: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
