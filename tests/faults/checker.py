"""Rules for a history of requests and answers. They hold during any fault.

The checker compares the answers that clients saw with the log at the end.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set

from .history import History, Push, Read

#: (seq, id) of each event of a space at the end
Log = Sequence[tuple[int, str]]

#: ten seconds for the database, and the rest for a busy machine
ANSWER_SECONDS_MAX = 13.0


def problems(history: History, logs: Mapping[str, Log]) -> list[str]:
    """Returns the broken rules, a line each."""
    found: list[str] = []
    for attempt in history.attempts:
        found += _refusals(attempt)
    for space, log in logs.items():
        pushes = [push for push in history.pushes if push.space == space]
        found += _holes(space, log)
        found += _acknowledged(space, log, pushes, history.granted)
        found += _order(space, pushes)
        by_reader: dict[str, list[Read]] = defaultdict(list)
        for read in history.reads:
            if read.space == space and read.status == 200:
                by_reader[read.reader].append(read)
        for reader, reads in by_reader.items():
            found += _reading(reader, log, reads)
    return found


def _refusals(attempt) -> Iterator[str]:
    where = f"{attempt.space}: an answer {attempt.status} {attempt.code}"
    if attempt.status not in (0, 200, 503):
        yield f"{where} to a valid request"
    if attempt.status == 503 and not attempt.retry_after:
        yield f"{where} without Retry-After"
    if attempt.seconds > ANSWER_SECONDS_MAX:
        yield f"{where} after {attempt.seconds:.1f} s"


def _holes(space: str, log: Log) -> Iterator[str]:
    if [seq for seq, _ in log] != list(range(1, len(log) + 1)):
        yield f"{space}: the log has a hole, or is out of order"
    for id, count in Counter(id for _, id in log).items():
        if count > 1:
            yield f"{space}: {id} is in the log {count} times"


def _acknowledged(space: str, log: Log, pushes: Sequence[Push], granted: Set[str]) -> Iterator[str]:
    seqs = {id: seq for seq, id in log}
    sent = {id for push in pushes for id in push.ids}
    for id in seqs.keys() - sent - granted:
        yield f"{space}: {id} is in the log and was never sent"
    for push in pushes:
        if push.status == 200 and {id for id, _ in push.verdicts} != set(push.ids):
            yield f"{space}: a push was not answered changeset by changeset"
        for id, seq in push.verdicts:
            if id not in seqs:
                yield f"{space}: {id} was acknowledged and is lost"
            elif seqs[id] != seq:
                yield f"{space}: {id} was acknowledged at {seq} and is at {seqs[id]}"


def _order(space: str, pushes: Sequence[Push]) -> Iterator[str]:
    """A changeset that is sent after another was acknowledged gets a greater seq."""
    sent: dict[str, float] = {}
    known: dict[str, tuple[int, float]] = {}
    for push in sorted(pushes, key=lambda push: push.began):
        for id in push.ids:
            sent.setdefault(id, push.began)
        for id, seq in push.verdicts:
            if id not in known or push.ended < known[id][1]:
                known[id] = seq, push.ended
    earliest_answer_after = float("inf")
    for id, (seq, answered) in sorted(known.items(), key=lambda item: item[1], reverse=True):
        if sent[id] > earliest_answer_after:
            yield f"{space}: {id} at {seq} was sent after a later one had been acknowledged"
        earliest_answer_after = min(earliest_answer_after, answered)


def _reading(reader: str, log: Log, reads: Sequence[Read]) -> Iterator[str]:
    """Checks one reader's answers, in the order of their arrival."""
    ids = dict(log)
    head = through = 0
    records: dict[str, int] = {}
    for read in reads:
        if read.through < through:
            yield f"{reader}: was at {through}, and then at {read.through}"
        if read.head < head:
            yield f"{reader}: the head was {head}, and then {read.head}"
        head, through = read.head, read.through
        if read.after >= 0:
            if [seq for seq, _ in read.events] != list(range(read.after + 1, through + 1)):
                yield f"{reader}: events are missing between {read.after} and {through}"
            for seq, id in read.events:
                if ids.get(seq) != id:
                    yield f"{reader}: saw {id} at {seq}, where now is {ids.get(seq)}"
        for id, seq in read.records:
            if seq < records.get(id, 0):
                yield f"{reader}: record {id} was of {records[id]}, and then of {seq}"
            records[id] = seq
