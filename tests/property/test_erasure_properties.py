"""After any pushes and erasures, in any order, proofs are valid and the values are gone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foldlog.domain.erasure import erase_keys
from foldlog.domain.events import decode_event, restored_entry
from foldlog.infrastructure.memory.store import MemoryStore
from tests.erasing import KEYS, Life, check_log, check_records
from tests.examples import examples


@examples(75)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_old_checkpoints_hold_and_values_are_gone(seed, steps):
    life = Life(MemoryStore(), "s", seed).live(steps)
    check_log(life)
    check_records(life)


@examples(50)
@given(st.integers(0, 2**32), st.permutations(KEYS))
def test_the_order_of_erasures_does_not_matter(seed, keys):
    """Any order of erasures leaves the same bytes and the same salts."""
    life = Life(MemoryStore(), "s", seed)
    life.push()
    [entry] = life.store.entries("s", through=1)
    named = {op.key for op in decode_event(entry.state).ops}
    state, salt = entry.state, entry.salt
    for key in keys:
        erased = erase_keys(state, salt, {key})
        assert (erased is not None) == (key in named)
        state, salt = erased or (state, salt)
        assert restored_entry(state, salt).mark == entry.mark
    assert (state, salt) == erase_keys(entry.state, entry.salt, named)
