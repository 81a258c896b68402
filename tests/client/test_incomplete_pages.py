"""The client never passes over a missing event, and never asks for ever."""

from __future__ import annotations

import pytest

from foldlog.client.errors import IncompletePage
from foldlog.client.sync.synchroniser import _check_page


def answer(seqs, through, more=False):
    return {"events": [{"seq": seq} for seq in seqs], "through": through, "more": more}


@pytest.mark.parametrize(
    ("seqs", "through", "more"),
    [
        ([4, 6], 6, False),
        ([5], 5, True),
        ([4, 5], 6, True),
        ([], 9, False),
        ([], 3, True),
        ([4, 4], 5, False),
        ([5, 4], 5, False),
        ([4], 3, True),
    ],
)
def test_a_page_with_a_hole_is_refused(seqs, through, more):
    with pytest.raises(IncompletePage):
        _check_page(answer(seqs, through, more), 3)


@pytest.mark.parametrize("more", [False, True])
def test_a_whole_page_passes(more):
    _check_page(answer([4, 5], 5, more), 3)
    _check_page(answer([], 3), 3)
