"""Mutants with a name: faults that once survived the tests, or that a reader asked about.

python tests/mutation/named.py            # prints one line for each, exit code 1 if one survives
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from run import ROOT, copy, preload, tested, write

SECONDS_MAX = 600


class Named(NamedTuple):
    fault: str
    module: str
    old: str
    new: str
    tests: tuple[str, ...]


PAGES = ("tests/contract/test_filtered_pages.py",)
APPEND = ("tests/integration/test_append.py",)
PROJECTOR = ("tests/integration/test_projector.py", "-k", "forgotten")
FORGED = ("tests/unit/test_forged_forms.py",)
ACCESS = ("tests/unit/test_access.py",)
LOG = "infrastructure/postgres/"

NAMED = [
    Named(
        "the mark of a filtered page stays that of its last event after the scan limit",
        f"{LOG}log/ranges",
        "mark = _check_scanned(conn, space, query.after, through)",
        "_check_scanned(conn, space, query.after, through)",
        PAGES,
    ),
    Named(
        "a filtered page scans one event more than its limit",
        f"{LOG}log/ranges",
        "min(query.after + scan, INTEGER_MAX)",
        "min(query.after + scan + 1, INTEGER_MAX)",
        PAGES,
    ),
    Named(
        "the pattern of an erased operation loses its end",
        "domain/proofs",
        "_ERASED.fullmatch(operation)",
        "_ERASED.match(operation)",
        FORGED,
    ),
    Named(
        "a commitment within the fields of an operation passes as erased",
        "domain/proofs",
        "_ERASED.fullmatch(operation)",
        "_ERASED.search(operation)",
        FORGED,
    ),
    Named(
        "an erasure by value misses a value that stands in `expect` only",
        "domain/erasure",
        "(op.fields, op.expect)",
        "(op.fields,)",
        ("tests/contract/test_erasure.py", "-k", "not postgres"),
    ),
    Named(
        "the time of the log goes back",
        "domain/space_state",
        "return max(self.received_at, now_ms)",
        "return now_ms",
        APPEND,
    ),
    Named(
        "the time of the log goes back on the quick path only",
        "domain/space_state",
        "self.head, self.mark, self.received_at = last.seq, last.mark, last.received_at",
        "self.head, self.mark = last.seq, last.mark",
        APPEND,
    ),
    Named(
        "a base may name an event of the same group",
        "domain/push_decider",
        "        head = self.state.head\n",
        "        head = self.head\n",
        ("tests/unit/test_push_decider.py", *APPEND),
    ),
    Named(
        "the records of a rolled-back savepoint stay in memory",
        f"{LOG}rebuild/batches",
        "to.cache.reset(start)",
        "pass",
        PROJECTOR,
    ),
    Named(
        "the records of a rolled-back transaction stay in memory",
        f"{LOG}rebuild/projector",
        # Two guards: the cache is taken out, and its position is compared. One alone is enough.
        "self._caches.pop(space, (0, None))\n"
        "        if cache is None or (of, cache.position) != (number, position):",
        "self._caches.get(space, (0, None))\n        if cache is None or of != number:",
        PROJECTOR,
    ),
    Named(
        "a revocation that arrives during a look-up is dated after it",
        "api/http/access",
        "_CachedCaller(caller, looked_up_at, head)",
        "_CachedCaller(caller, self._clock(), head)",
        ACCESS,
    ),
    Named(
        "the head that a look-up answers for is read after it",
        "api/http/access",
        "_CachedCaller(caller, looked_up_at, head)",
        "_CachedCaller(caller, looked_up_at, self._store.cached_head(space))",
        ACCESS,
    ),
]


def main() -> int:
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="foldlog-mutants-") as folder:
        there = Path(folder).resolve()
        copy(there)
        preload()
        for named in NAMED:
            path = there / f"foldlog/{named.module}.py"
            source = (ROOT / f"foldlog/{named.module}.py").read_text()
            if source.count(named.old) != 1:
                sys.exit(f"{named.module} has {named.old!r} {source.count(named.old)} times")
            write(path, source.replace(named.old, named.new))
            has_survived = tested(there, list(named.tests), SECONDS_MAX) == 0
            write(path, source)
            survivors += has_survived
            print("SURVIVED" if has_survived else "killed  ", named.fault, flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
