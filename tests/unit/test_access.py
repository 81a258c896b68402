"""Who passes as an admin."""

from __future__ import annotations

import pytest

from foldlog.api.access import admin_only
from foldlog.domain.errors import Forbidden, Unauthenticated
from foldlog.infrastructure.settings import InvalidSettings, read_settings

TOKEN = "correct-horse-battery"


class Call:
    def __init__(self, authorization=""):
        self.authorization = authorization

    def header(self, name):
        assert name == "authorization"
        return self.authorization


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN} "])
def test_the_token_lets_pass(given):
    admin_only(TOKEN)(Call(given))


@pytest.mark.parametrize(
    "given",
    [
        "",
        TOKEN,
        "Bearer",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        "Bearer \xe4",
        f"Bearer {TOKEN[:-1]}",
    ],
)
def test_nothing_else_does(given):
    with pytest.raises(Unauthenticated):
        admin_only(TOKEN)(Call(given))


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_nobody_does(token):
    with pytest.raises(Forbidden, match="FOLDLOG_ADMIN_TOKEN"):
        admin_only(token)(Call("Bearer "))


@pytest.mark.parametrize("token", ["short", "with a \n line break", "not-ascii-äöüäöüäöü"])
def test_a_token_that_could_not_be_sent_is_refused_and_not_told(token):
    with pytest.raises(InvalidSettings) as refused:
        read_settings({"FOLDLOG_ADMIN_TOKEN": token})
    assert "FOLDLOG_ADMIN_TOKEN" in str(refused.value) and token not in str(refused.value)
