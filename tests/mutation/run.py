"""Runs mutation tests: changes one place of a module, and expects that a test fails.

    python tests/mutation/run.py domain/erasure --seed 16 --sample 40
    python tests/mutation/run.py all --seed 16 --sample 3      # `make mutants`
    python tests/mutation/run.py domain/erasure --line 120     # every mutant of this line

The seed orders the mutants by the text of their change, so a sample stays nearly the same when
other lines of the module change. For each mutant the nearest tests run first, then the wider ones,
until a test fails. The mutants are made in a copy of the repository, so the work tree stays as it
is. A mutant is killed if a test fails, if the module cannot be imported, or if the tests take far
too long. The exit code is 1 if a mutant survives that `explained.txt` lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = [
    "foldlog",
    "tests",
    "docs",
    "fuzz",
    "benchmarks",
    "pyproject.toml",
    "README.md",
    "Makefile",
]
EXPLAINED = Path(__file__).with_name("explained.txt")
MEMORY_BYTES = 6 * 2**30
#: a mutant may take so many times the time of the unchanged module, and so many seconds more
SLOWER, SECONDS_MORE = 3, 30


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    ask.add_argument("modules", nargs="+", help="paths in foldlog/ without .py, or `all`")
    ask.add_argument("--seed", type=int, default=16)
    ask.add_argument("--sample", type=int, default=10**9, help="mutants of each module")
    ask.add_argument("--line", type=int, help="only the mutants of this line")
    ask.add_argument("--list", action="store_true", help="print the mutants without a test")
    ask.add_argument("--log", type=Path, help="append a line of JSON for each mutant")
    given = ask.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from nearest import NEAREST
    from operators import mutants_of

    explained = explanations()
    survivors = 0
    modules = list(NEAREST) if given.modules == ["all"] else given.modules
    with tempfile.TemporaryDirectory(prefix="foldlog-mutants-") as folder:
        there = Path(folder).resolve()
        if not given.list:
            copy(there)
            preload()
        for module in modules:
            source = (ROOT / f"foldlog/{module}.py").read_text()
            mutants = mutants_of(source)
            if given.line:
                mutants = [mutant for mutant in mutants if mutant.line == given.line]
            drawn = sample(module, source, mutants, given.seed)[: given.sample]
            if given.list:
                for mutant in sorted(drawn):
                    print(*shown(source, mutant), sep="\n")
                continue
            counts = {"killed": 0, "explained": 0, "survived": 0}
            limits: dict[int, float] = {}  # of the tests that were needed so far
            for mutant in drawn:
                path = there / f"foldlog/{module}.py"
                outcome = "survived"
                began = time.monotonic()
                for number, tests in enumerate(NEAREST[module]):
                    if number not in limits:
                        write(path, source)
                        limits[number] = limit_of(there, module, tests)
                    write(path, mutant.source)
                    if tested(there, tests, limits[number]) != 0:
                        outcome = "killed"
                        break
                write(path, source)
                told = shown(source, mutant)
                if (
                    outcome == "survived"
                    and key(module, shown(source, mutant, around=1)) in explained
                ):
                    outcome = "explained"
                counts[outcome] += 1
                if outcome == "survived":
                    survivors += 1
                    print(f"SURVIVED {module}:{mutant.line} {mutant.operator}", *told, sep="\n")
                    sys.stdout.flush()
                if given.log:
                    line = {
                        "module": module,
                        "line": mutant.line,
                        "operator": mutant.operator,
                        "outcome": outcome,
                        "seconds": round(time.monotonic() - began, 1),
                        "diff": told,
                    }
                    with given.log.open("a") as log:
                        log.write(json.dumps(line) + "\n")
            of = len(mutants)
            print(f"{module}: {counts} of {len(drawn)} drawn from {of}", flush=True)
    return 1 if survivors else 0


def sample(module: str, source: str, mutants: list, seed: int) -> list:
    """Orders the mutants of a module by a hash of the seed and the change."""

    def order(mutant) -> str:
        text = f"{seed} {mutant.operator} {key(module, shown(source, mutant))}"
        return hashlib.sha256(text.encode()).hexdigest()

    return sorted(mutants, key=order)


def limit_of(there: Path, module: str, tests: list[str]) -> float:
    """Runs the tests on the unchanged module, and returns the seconds that a mutant may take."""
    began = time.monotonic()
    if (code := tested(there, tests, 1_200)) != 0:
        sys.exit(f"{module}: the unchanged module fails {' '.join(tests)} ({code})")
    return SLOWER * (time.monotonic() - began) + SECONDS_MORE


def shown(source: str, mutant, *, around: int = 0) -> list[str]:
    """The changed lines, old and new, and so many lines before and after them."""
    old, new = source.splitlines(), mutant.source.splitlines()
    lines = difflib.unified_diff(old, new, lineterm="", n=around)
    return [line for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@"]


def key(module: str, told: list[str]) -> str:
    """Names a mutant by its text, because its line moves."""
    return f"{module} | " + " ".join(" ".join(told).split())


def explanations() -> set[str]:
    """The survivors of `explained.txt`. A line beginning with # explains the lines after it."""
    lines = EXPLAINED.read_text().splitlines() if EXPLAINED.exists() else []
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def copy(there: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--", *COPIED],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in tracked:
        if (ROOT / name).is_file():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, there / name)


def preload() -> None:
    """Imports the libraries once, so that each run only imports our own modules."""
    import uvicorn  # noqa: F401


_stamp = time.time() - 10_000_000


def write(path: Path, source: str) -> None:
    """Writes a module with a time of its own: Python must not take compiled code of another one."""
    global _stamp
    _stamp += 10
    path.write_text(source)
    os.utime(path, (_stamp, _stamp))


def tested(there: Path, tests: list[str], seconds: float) -> int:
    """Runs these tests in a child. Returns 0 if they pass, and another number if one fails."""
    pid = os.fork()
    if pid == 0:
        run_tests(there, tests)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            end_group(pid)
            code = os.waitstatus_to_exitcode(status)
            if code in (4, 5):  # pytest was called in a wrong way, or found no test
                sys.exit(f"pytest {' '.join(tests)} ended with {code}")
            return code
        time.sleep(0.02)
    end_group(pid)
    os.waitpid(pid, 0)
    return -1


def end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run_tests(there: Path, tests: list[str]) -> None:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    silent = os.open(os.devnull, os.O_WRONLY)
    if not os.environ.get("FOLDLOG_MUTANTS_SHOWN"):
        os.dup2(silent, 1)
        os.dup2(silent, 2)
    os.chdir(there)
    os.environ["PYTHONPATH"] = str(there)
    sys.path[:] = [str(there), *(p for p in sys.path if Path(p).resolve() != Path(__file__).parent)]
    code = 3
    try:
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-n0"]
        quick = ["-m", "not slow and not soak", "--hypothesis-seed=16", "--tb=no"]
        code = int(pytest.main([*options, *quick, *tests]))
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
