"""Coverage-guided fuzzing of the code that reads untrusted bytes: decoder, push decider and fold.

    make fuzz
    FUZZ_SECONDS=1800 make fuzz

The input is either the bytes of a push's changesets, or the seed of pushes of several devices. A
refusal must have a code of ours. Accepted changesets are stored, and the log is folded twice: by
the fold, and by the oracle of the tests. The same pushes again must be duplicates, and leave the
log unchanged.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["foldlog.domain"]):
    import msgspec

    from foldlog.domain.changesets import Push, array_in, decode_changesets
    from foldlog.domain.errors import InvalidRequest, PushConflict
    from foldlog.domain.events import decode_event
    from foldlog.domain.limits import Limits
    from foldlog.domain.merge import conflict_document, fold, view_of
    from foldlog.infrastructure.memory.store import MemoryStore
from tests.helpers import A, B, C
from tests.oracle import Oracle, canonical

SPACE = "fuzzed"
NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
LIMITS = Limits(changesets_per_push_max=20)
DEVICES = [A, B, C]
#: in JSON: values that merge, and odd or invalid ones
NUMBERS = ["0", "1", "2.5", "-1"]
VALUES = [*NUMBERS, '"x"', "null"]
ODD_VALUES = [
    *("true", "1.0", "-0.0", "1e308", "-1e308", "5e-324", "9007199254740991", '""', '"1"', '"é"'),
    *(r'"\u0000"', "[]", "[1]", "[1.0]", "{}", '{"k":1}', '{"k":[{}]}'),
    *("9007199254740992", "1e999", "NaN", r'"\ud83d"', "[" * 33 + "]" * 33),
]
NAMES = ["a", "b"]
ODD_NAMES = ["", "__proto__", "a/b~c", r"\u0000", "_type_", "x" * 257]
IDS = ["r", "s"]
ODD_IDS = ["a/b", "..", "é", "x" * 128, "x" * 129, "", r"\u0000", r"\ud800"]
MEMBERS = ["", ',"guard":"unchanged"', ',"counter":1', ',"counter":2', ',"guard":null', ',"x":1']


def fuzz(data: bytes) -> None:
    given = atheris.FuzzedDataProvider(data[1:])
    if data[:1] < b"\x40":
        array_in(data[1:], b'"changesets"')
        pushes = [(A, data[1:])]
    else:
        ids = (f"00000000-0000-4000-8000-{n:012x}" for n in count())
        pushes = [_push(given, ids) for _ in range(given.ConsumeIntInRange(1, 6))]
    check(pushes)


def check(pushes: list[tuple[str, bytes]]) -> None:
    clock = count(1_795_424_400_000, 1_000)
    store = MemoryStore(now_ms=lambda: next(clock), limits=LIMITS)
    stored: list[tuple[Push, list[Any]]] = []
    for device, raw in pushes:
        try:
            push = Push(device, NOW, decode_changesets(raw, device, LIMITS))
            stored.append((push, store.push(SPACE, push).verdicts))
        except (InvalidRequest, PushConflict) as exc:
            str(exc).encode()
    if not any(push.changesets for push, _ in stored):
        return
    states = [entry.state for entry in store.entries(SPACE, through=10_000)]
    records: dict[Any, Any] = {}
    lost = [conflict for state in states for conflict in fold(records, decode_event(state))]
    oracle = Oracle().fold(*map(msgspec.json.decode, states))
    views = {key: view_of(record) for key, record in sorted(records.items()) if record.exists}
    assert _texts(msgspec.to_builtins(views)) == _texts(oracle.views())
    assert sorted(canonical(conflict_document(c)) for c in lost) == sorted(
        map(canonical, oracle.ledger)
    )
    for push, verdicts in stored:
        again = store.push(SPACE, push).verdicts
        assert [(v.seq, v.verdict) for v in again] == [(v.seq, v.verdict) for v in verdicts]
        assert all(v.duplicate for v in again)
    assert [entry.state for entry in store.entries(SPACE, through=10_000)] == states


def _texts(documents: dict[Any, Any]) -> dict[Any, str]:
    return {key: canonical(document) for key, document in documents.items()}


def _push(given: Any, ids: Any) -> tuple[str, bytes]:
    device = given.PickValueInList(DEVICES)
    made = [_changeset(given, next(ids)) for _ in range(given.ConsumeIntInRange(1, 3))]
    text = f"[{','.join(made)}]"
    if given.ConsumeProbability() > 0.98:  # as if cut on the way
        text = text[: given.ConsumeIntInRange(0, len(text))]
    return device, text.encode()


def _changeset(given: Any, id: str) -> str:
    ops = [_operation(given) for _ in range(given.ConsumeIntInRange(1, 3))]
    made_at = f"2026-11-23T0{given.ConsumeIntInRange(7, 9)}:00:00Z"
    members = given.PickValueInList(MEMBERS) if given.ConsumeProbability() > 0.8 else ""
    base = given.PickValueInList([0, 0, 0, 1, 2, 3, 5])
    return f'{{"id":"{id}","base":{base},"made_at":"{made_at}","ops":[{",".join(ops)}]{members}}}'


def _operation(given: Any) -> str:
    kind = given.PickValueInList(["put", "put", "put", "add", "add", "delete"])
    member = given.PickValueInList(["id", "id", "id", "local_id"])
    collection = given.PickValueInList(["tasks", "tasks", "tasks", "stats"])
    id = _one(given, IDS, ODD_IDS)
    text = f'"op":"{kind}","collection":"{collection}","{member}":"{id}"'
    if kind != "delete":
        values = NUMBERS if kind == "add" else VALUES
        text += f',"fields":{_fields(given, given.ConsumeIntInRange(1, 2), values)}'
    if kind == "put" and given.ConsumeProbability() > 0.7:
        text += f',"unset":["{_name(given)}"]'
    if given.ConsumeProbability() > 0.9:
        text += f',"if_seq":{given.ConsumeIntInRange(0, 5)}'
    if given.ConsumeProbability() > 0.9:
        text += ',"expect":' + given.PickValueInList(["null", _fields(given, 1, VALUES)])
    return f"{{{text}}}"


def _one(given: Any, usual: list[str], odd: list[str]) -> str:
    return str(given.PickValueInList(odd if given.ConsumeProbability() > 0.95 else usual))


def _name(given: Any) -> str:
    return _one(given, NAMES, ODD_NAMES)


def _fields(given: Any, how_many: int, usual: list[str]) -> str:
    fields = (f'"{_name(given)}":{_one(given, usual, ODD_VALUES)}' for _ in range(how_many))
    return f"{{{','.join(fields)}}}"


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
