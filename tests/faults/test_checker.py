"""The checker finds planted errors, and accepts a correct history."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .checker import ANSWER_SECONDS_MAX, problems
from .history import History, Push, Read

SPACE = "north"
LOG = [(1, "a"), (2, "b"), (3, "c")]


def push(id: str, seq: int, began: float, *, status: int = 200) -> Push:
    verdicts = ((id, seq),) if status == 200 else ()
    retry_after = "1" if status == 503 else None
    return Push(
        space=SPACE,
        device="d",
        ids=(id,),
        verdicts=verdicts,
        began=began,
        ended=began + 0.5,
        status=status,
        retry_after=retry_after,
    )


def poll(after: int, *ids: str, began: float) -> Read:
    events = tuple(enumerate(ids, start=after + 1))
    through = after + len(ids)
    return Read(
        space=SPACE,
        reader="poller",
        after=after,
        head=through,
        through=through,
        events=events,
        began=began,
        ended=began + 0.1,
        status=200,
    )


def table(projected: int, began: float, **seqs: int) -> Read:
    return Read(
        space=SPACE,
        reader="table",
        head=3,
        through=projected,
        records=tuple(seqs.items()),
        began=began,
        ended=began + 0.1,
        status=200,
    )


def right() -> list:
    """Three pushes, one of them repeated, a follower, and a reader of the master table."""
    return [
        push("a", 1, 0.0),
        push("b", 2, 1.0, status=503),
        push("b", 2, 2.0),
        push("c", 3, 3.0),
        poll(0, "a", began=0.6),
        poll(1, "b", "c", began=4.0),
        table(1, 1.0, r=1),
        table(3, 5.0, r=3),
    ]


def found(attempts: list, log=LOG) -> str:
    return "\n".join(problems(History(attempts), {SPACE: log}))


def test_a_correct_history_has_no_problems():
    assert found(right()) == ""


def test_a_repeated_equal_answer_is_correct():
    assert found([*right(), push("a", 1, 6.0)]) == ""


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ([(1, "a"), (2, "b")], "c was acknowledged and is lost"),
        ([(1, "a"), (2, "b"), (3, "c"), (4, "b")], "b is in the log 2 times"),
        ([(1, "a"), (2, "b"), (4, "c")], "a hole"),
        ([(2, "b"), (1, "a"), (3, "c")], "out of order"),
        ([(1, "b"), (2, "a"), (3, "c")], "acknowledged at 1 and is at 2"),
        ([(1, "a"), (2, "b"), (3, "c"), (4, "x")], "x is in the log and was never sent"),
    ],
)
def test_a_wrong_log_is_found(log, says):
    assert says in found(right(), log)


@pytest.mark.parametrize(
    ("number", "members", "says"),
    [
        (0, {"status": 500, "verdicts": ()}, "an answer 500"),
        (0, {"status": 404, "verdicts": ()}, "an answer 404"),
        (1, {"retry_after": None}, "without Retry-After"),
        (0, {"ended": ANSWER_SECONDS_MAX + 1}, "after 14.0 s"),
        (0, {"verdicts": ()}, "not answered changeset by changeset"),
        # "c" was answered long before
        (2, {"began": 4.0, "ended": 4.5}, None),
        (5, {"events": ((2, "b"),)}, "events are missing between 1 and 3"),
        (5, {"events": ((2, "x"), (3, "c"))}, "saw x at 2"),
        (5, {"through": 0, "events": (), "after": 0}, "was at 1, and then at 0"),
        (5, {"head": 0}, "the head was 1, and then 0"),
        (7, {"through": 0}, "was at 1, and then at 0"),
        (7, {"records": (("r", 0),)}, "record r was of 1, and then of 0"),
    ],
)
def test_a_wrong_answer_is_found(number, members, says):
    attempts = right()
    attempts[number] = replace(attempts[number], **members)
    if says is None:
        attempts[1] = replace(attempts[1], began=3.6, ended=3.9)
        says = "b at 2 was sent after a later one had been acknowledged"
    assert says in found(attempts)
