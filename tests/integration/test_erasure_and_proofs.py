"""Erasing and proofs: old signatures stay valid, and only erasures in the log excuse missing
values.
"""

from __future__ import annotations

import json

import pytest

from foldlog.domain.audit import Evidence, LogAudit, WrongEvent
from foldlog.domain.erasure import erased_entry
from tests.helpers import changeset, push_of, put
from tests.integration.test_independent import small
from tests.integration.test_verify import audited  # noqa: F401


@pytest.fixture
def erased(audited):  # noqa: F811
    """A record in the verified part of the log, and a late changeset made before its erasure."""
    stores = audited.stores
    page = next(entry for entry in stores.entries("s", through=40) if entry.collections)
    op = next(iter(json.loads(page.state)["ops"]))
    audited.key = op["collection"], op["id"]
    stores.erase("s", [audited.key], reason="asked to")
    stores.push("s", push_of(changeset(put(op["id"], op["collection"], late="secret"))))
    audited.sign()
    return audited


def test_every_check_passes_after_an_erasure(erased):
    """With a checkpoint from before the erasure, from the database and from an archive."""
    assert "442 events" in erased.verify()
    file = erased.archive()
    assert "442 events" in erased.verify("--file", file)
    done = small(erased, file, "--checkpoint", str(erased.folder / "kept"))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_it_passes_when_it_was_interrupted(erased):
    """A resumed verification has the erased events of its first part."""
    audit = LogAudit()
    for entry in erased.stores.entries("s", through=442):
        audit.check([Evidence(entry.state, entry.salt, entry.ops_hash)])
        audit = LogAudit(audit.cursor)
    audit.check_erasures()


def test_values_that_are_gone_without_an_event_are_found(erased):
    """The commitments and all hashes are right, but the log has no erasure of them."""
    entries = list(erased.stores.entries("s", through=442))
    at, op = next(
        (n, op)
        for n, entry in enumerate(entries)
        for op in json.loads(entry.state).get("ops", ())
        if (op["collection"], op["id"]) != erased.key
    )
    entries[at] = erased_entry(entries[at], {(op["collection"], op["id"])})
    audit = LogAudit()
    audit.check(Evidence(entry.state, entry.salt, entry.ops_hash) for entry in entries)
    with pytest.raises(WrongEvent, match="no event erased it") as found:
        audit.check_erasures()
    assert found.value.seq == at + 1


def test_an_erasure_says_nothing_of_what_was_written_by_who_had_seen_it(erased):
    """The record was created anew. Only a second erasure would excuse the missing new values."""
    stores, (collection, id) = erased.stores, erased.key
    anew = changeset(put(id, collection, anew="value"), base=442)
    stores.push("s", push_of(anew))
    entries = list(stores.entries("s", through=443))
    entries[-1] = erased_entry(entries[-1], {erased.key})
    audit = LogAudit()
    audit.check(Evidence(entry.state, entry.salt, entry.ops_hash) for entry in entries)
    with pytest.raises(WrongEvent, match=r"seq 443: values of .* no event erased it"):
        audit.check_erasures()
    stores.erase("s", [erased.key], reason="again")
    erased.sign()
    assert "444 events" in erased.verify()
