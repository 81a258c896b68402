"""Rights, tokens, and who is remembered for how long."""

from __future__ import annotations

import asyncio

import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import (
    CALLER_SECONDS_MAX,
    CALLERS_KEPT_MAX,
    IDLE_CALLER_SECONDS_MAX,
    OpenAccess,
    TokenAccess,
)
from foldlog.api.http.rates import NO_RATES, Rates, RateSubject
from foldlog.domain.access import (
    EVERY_SPACE,
    RIGHTS,
    Caller,
    Claims,
    Grant,
    Right,
    Role,
    check_name,
    digest_of,
    is_revocation,
)
from foldlog.domain.errors import (
    DeviceRevoked,
    Forbidden,
    InvalidRequest,
    OutcomeUnknown,
    RateLimited,
    StorageUnavailable,
    Unauthenticated,
)
from foldlog.domain.names import check_reason, is_loopback
from foldlog.infrastructure.jwts import SECONDS_MAX
from foldlog.infrastructure.memory.store import MemoryStore
from foldlog.infrastructure.settings import InvalidSettings, read_settings
from tests.helpers import A, B, a_token, changeset, push_of, put

TOKEN = "correct-horse-battery"


class Call:
    """A request with these headers; a look-up runs at once."""

    rates = NO_RATES

    def __init__(self, authorization="", host="localhost", **headers):
        self.headers = {"authorization": authorization, "host": host, **headers}
        self.caller = None
        self.subject = RateSubject("192.0.2.1")

    def header(self, name):
        return self.headers.get(name, "")

    async def look_up(self, function, *args):
        return function(*args)


class Counting(MemoryStore):
    """Counts how often it was asked who somebody is."""

    looks = 0

    def token(self, space, digest):
        self.looks += 1
        return super().token(space, digest)


class World:
    """A store, and access to it by a clock that stands still."""

    def __init__(self, **parts):
        self.store, self.now = Counting(), 1_000.0
        self.rates = NO_RATES
        self.access = TokenAccess(
            self.store,
            self.store,
            clock=lambda: self.now,
            now=lambda: self.now,
            sleep=self._sleep,
            **parts,
        )

    async def _sleep(self, seconds):
        self.now += seconds

    def grant(self, role, space="s", **members):
        text, digest = a_token()
        id = f"{self.store.cached_head(space) or 0:08d}-0000-4000-8000-000000000000"
        self.store.grant(space, id, digest, Grant(role=Role(role), **members), "ada")
        return text, id

    def admit(self, token, right=Right.READ, space="s", **how) -> Caller:
        call = Call(f"Bearer {token}")
        call.rates = self.rates
        return asyncio.run(self.access.admit(call, space, right, **how))


@pytest.fixture
def world():
    return World()


def test_every_role_reads_and_nobody_but_a_device_writes():
    """So that the log says whose a change is."""
    assert set(RIGHTS) == set(Role)
    assert all(Right.READ in rights for rights in RIGHTS.values())
    assert [role for role, rights in RIGHTS.items() if Right.WRITE in rights] == [Role.DEVICE]
    assert [role for role, rights in RIGHTS.items() if Right.ADMIN in rights] == [Role.ADMIN]


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN} "])
@pytest.mark.parametrize("access", [OpenAccess(TOKEN), World(admin_token=TOKEN).access])
def test_the_token_of_the_settings_is_an_admin_s(access, given):
    caller = asyncio.run(access.admit(Call(given), "s", Right.ADMIN))
    assert Right.ADMIN in caller.rights and caller.is_of_every_space


@pytest.mark.parametrize(
    "given",
    [
        "",
        TOKEN,
        "Bearer",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        "Bearer \xe4",
        "Bearer \udc80",
        f"Bearer {TOKEN[:-1]}",
        "Bearer " + "a" * 100_000,
        "Bearer a.b.c",
    ],
)
@pytest.mark.parametrize("access", [OpenAccess(TOKEN), World(admin_token=TOKEN).access])
def test_nothing_else_is(access, given):
    with pytest.raises(Unauthenticated):
        asyncio.run(access.admit(Call(given), "s", Right.ADMIN))


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_nobody_is(token):
    with pytest.raises(Forbidden, match="FOLDLOG_ADMIN_TOKEN"):
        asyncio.run(OpenAccess(token).admit(Call("Bearer "), "s", Right.ADMIN))
    with pytest.raises(Unauthenticated):
        asyncio.run(World(admin_token=token).access.admit(Call("Bearer "), "s", Right.ADMIN))


@pytest.mark.parametrize("token", ["short", "with a \n line break", "not-ascii-äöüäöüäöü"])
def test_a_token_that_could_not_be_sent_is_refused_and_not_told(token):
    with pytest.raises(InvalidSettings) as refused:
        read_settings({"FOLDLOG_ADMIN_TOKEN": token})
    assert "FOLDLOG_ADMIN_TOKEN" in str(refused.value) and token not in str(refused.value)


def test_open_to_all_is_open_on_this_machine_alone():
    read_settings({"FOLDLOG_ACCESS": "open"}).check_open_is_local()
    read_settings({"FOLDLOG_ACCESS": "open", "FOLDLOG_HOST": "::1"}).check_open_is_local()
    read_settings({"FOLDLOG_HOST": "0.0.0.0"}).check_open_is_local()
    for host in ("0.0.0.0", "::", "10.0.0.7", "foldlog.example"):
        with pytest.raises(InvalidSettings, match="FOLDLOG_ACCESS"):
            read_settings({"FOLDLOG_ACCESS": "open", "FOLDLOG_HOST": host}).check_open_is_local()
    with pytest.raises(InvalidSettings, match="FOLDLOG_ACCESS"):
        read_settings({"FOLDLOG_ACCESS": "opne"})


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:3653", "127.0.0.1", "127.8.9.1:80", "[::1]", "[::1]:3653"],
)
@pytest.mark.parametrize("right", [Right.PUBLIC, Right.READ])
def test_open_is_for_who_asks_for_this_machine(host, right):
    assert asyncio.run(OpenAccess().admit(Call(host=host), "s", right)).is_of_every_space


@pytest.mark.parametrize(
    "asked",
    [
        *(
            {"host": host}
            for host in ("evil.example", "evil.example:3653", "localhost.evil.example")
        ),
        *(
            {"host": host}
            for host in ("10.0.0.7", "[fe80::1]", "0.0.0.0", "", "[::1", "\xff", "::1")
        ),
        {"x-forwarded-for": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"via": "1.1 proxy"},
    ],
)
def test_open_is_closed_to_pages_of_other_names_and_through_proxies(asked):
    """Whatever a name resolves to (DNS rebinding); an admin's token does not open it either."""
    for right in (Right.READ, Right.WRITE, Right.ADMIN):
        with pytest.raises(Forbidden, match="this machine alone"):
            asyncio.run(OpenAccess(TOKEN).admit(Call(f"Bearer {TOKEN}", **asked), "s", right))


def test_open_to_all_is_not_open_to_every_page():
    """Some pages may be named, as those of a developer's own app."""
    read_settings({"FOLDLOG_CORS_ORIGINS": "*"})
    read_settings({"FOLDLOG_ACCESS": "open", "FOLDLOG_CORS_ORIGINS": "http://localhost:5173"})
    with pytest.raises(InvalidSettings, match="FOLDLOG_CORS_ORIGINS"):
        read_settings({"FOLDLOG_ACCESS": "open", "FOLDLOG_CORS_ORIGINS": "*"})


def test_how_far_away_the_end_of_a_jwt_may_be_is_a_setting():
    assert read_settings({}).jwt_seconds_max == SECONDS_MAX
    assert read_settings({"FOLDLOG_JWT_SECONDS_MAX": "0"}).jwt_seconds_max == 0
    for text in ("-1", "a day"):
        with pytest.raises(InvalidSettings, match="FOLDLOG_JWT_SECONDS_MAX"):
            read_settings({"FOLDLOG_JWT_SECONDS_MAX": text})


def test_keys_of_a_sign_in_come_by_https_and_for_an_audience():
    ours = {"FOLDLOG_JWT_AUDIENCE": "foldlog"}
    for keys in ("https://id.example/jwks", "http://localhost:1/jwks", "keys.json"):
        assert read_settings({**ours, "FOLDLOG_JWT_KEYS": keys}).jwt_keys == keys
    with pytest.raises(InvalidSettings, match="plain HTTP can be forged"):
        read_settings({**ours, "FOLDLOG_JWT_KEYS": "http://id.example/jwks"})
    with pytest.raises(InvalidSettings, match="FOLDLOG_JWT_AUDIENCE"):
        read_settings({"FOLDLOG_JWT_KEYS": "keys.json"})
    assert not is_loopback("localhost.evil.example/jwks")


def test_tokens_are_random_and_kept_as_digests():
    text, digest = a_token()
    assert text.startswith("foldlog_") and len(text) == len("foldlog_") + 43
    assert digest == digest_of(text) and len(digest) == 32
    assert a_token()[0] != text


@pytest.mark.parametrize(
    "grant",
    [
        Grant(role=Role.DEVICE),
        Grant(role=Role.DEVICE, device="not a uuid"),
        Grant(role=Role.READER, device=A),
        Grant(role=Role.READER, name=""),
        Grant(role=Role.READER, name="x" * 101),
        Grant(role=Role.READER, name="\udc80"),
        Grant(role=Role.READER, expires_at=1_000),
    ],
)
def test_a_grant_that_makes_no_sense_is_refused(grant):
    with pytest.raises(InvalidRequest):
        grant.check(now_ms=1_000)


def test_who_did_something_is_who_calls_whatever_they_say():
    caller = Caller("token 1", RIGHTS[Role.ADMIN])
    assert caller.attribution("ada") == "ada (token 1)"
    assert caller.attribution(None) == "token 1"
    assert len(Caller("x" * 500, frozenset()).attribution("y" * 200) or "") <= 200
    assert Caller("", frozenset()).attribution("ada") == "ada"
    assert Caller("", frozenset()).attribution(None) is None


def test_who_calls_stands_in_brackets_that_nobody_else_writes():
    """Neither whom they name, nor a sign-in's subject, looks like another caller."""
    caller = Caller("token 1", RIGHTS[Role.ADMIN])
    assert caller.attribution("eve (token 2)") == "eve [token 2] (token 1)"
    assert Caller("", frozenset()).attribution("eve (token 2)") == "eve [token 2]"
    assert Caller("sub eve (token 2)", frozenset()).attribution(None) == "sub eve [token 2]"
    assert Caller("sub \x1b[2J\n\0", frozenset()).attribution("ada") == "ada (sub ?[2J??)"


@pytest.mark.parametrize(
    "text", ["\x1b[31m", "two\nlines", "\t-", "\u202etxt", "\x9b2J", "\udc80", "-\0"]
)
def test_what_stays_for_ever_does_nothing_to_who_shows_it(text):
    for check in (
        lambda: check_name(text),
        lambda: check_reason(text, None),
        lambda: check_reason("-", text),
    ):
        with pytest.raises(InvalidRequest, match="printable"):
            check()


@pytest.mark.parametrize(
    "text", ["Anna's phone", "Ünïcödé", "日本\u3000語", "👩\u200d🚀", "e\u0301", "می\u200cخواهم"]
)
def test_all_letters_are_text(text):
    check_name(text)
    check_reason(text, text)


@pytest.mark.parametrize("what", ["tokens", "devices"])
def test_callers_are_forgotten_also_if_nobody_can_tell_what_became_of_it(what, client_of):
    """The answer to the commit was lost: it may have been one."""
    forgotten: list[bool] = []

    class Lost(MemoryStore):
        def revoke_token(self, *args, **kwargs):
            raise OutcomeUnknown

        revoke_device = revoke_token

    class Noting(OpenAccess):
        async def forget(self):
            forgotten.append(True)

    app = create_app(
        store=(store := Lost()), master=store, ready=dict, access=Noting(TOKEN), registry=store
    )
    path = {"tokens": f"admin/spaces/s/tokens/{A}", "devices": f"spaces/s/devices/{A}"}[what]
    answer = client_of(app).post(
        f"/v1/{path}/revoke",
        json={"reason": "gone"},
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    assert answer.status_code == 503 and forgotten == [True]


@pytest.mark.parametrize(
    ("state", "takes"),
    [
        (b'{"seq":7,"kind":"device-revoked","id"', True),
        (b'{"seq":123456789012,"kind":"token-revoked","id"', True),
        (b'{"seq":7,"kind":"token-granted","id"', False),
        (b'{"seq":7,"kind":"changeset","verdict":"stored"', False),
    ],
)
def test_an_event_that_takes_a_right_away_is_known_by_its_first_bytes(state, takes):
    assert is_revocation(state) is takes


def test_the_store_s_own_events_are_known_so(world):
    _, id = world.grant("reader")
    world.store.revoke_token("s", id, reason="gone")
    world.store.revoke_device("s", A, reason="gone")
    taken = [is_revocation(entry.state) for entry in world.store.entries("s", through=3)]
    assert taken == [False, True, True]


def test_a_token_is_for_its_space(world):
    token, _ = world.grant("reader", space="s")
    assert world.admit(token, space="s").id.startswith("token ")
    for other in ("t", EVERY_SPACE):
        with pytest.raises(Unauthenticated):
            world.admit(token, space=other)
    of_all, _ = world.grant("reader", space=EVERY_SPACE)
    for space in ("s", "t", EVERY_SPACE):
        assert world.admit(of_all, space=space).is_of_every_space


def test_who_lacks_the_right_is_told_which(world):
    token, _ = world.grant("reader")
    with pytest.raises(Forbidden, match="`write`"):
        world.admit(token, Right.WRITE)


def test_a_device_writes_as_itself(world):
    token, _ = world.grant("device", device=A)
    caller = world.admit(token, Right.WRITE)
    caller.check_writes_as(A)
    with pytest.raises(Forbidden):
        caller.check_writes_as(B)


def test_a_caller_is_remembered_for_a_moment(world):
    token, _ = world.grant("reader")
    for _ in range(3):
        world.admit(token)
    assert world.store.looks == 1
    world.now += CALLER_SECONDS_MAX
    world.admit(token)
    assert world.store.looks == 2


def test_who_asks_for_nothing_new_is_remembered_until_something_is_appended(world):
    token, _ = world.grant("device", device=A)
    world.admit(token, from_cache=True)
    world.now += IDLE_CALLER_SECONDS_MAX - 1
    world.admit(token, from_cache=True)
    assert world.store.looks == 1
    world.admit(token)  # asks for more
    assert world.store.looks == 2
    world.now += CALLER_SECONDS_MAX
    world.store.push("s", push_of(changeset(put("x"))))
    world.admit(token, from_cache=True)
    assert world.store.looks == 3
    world.now += IDLE_CALLER_SECONDS_MAX + 1
    world.admit(token, from_cache=True)
    assert world.store.looks == 4


def test_a_token_of_every_space_is_in_no_log_and_so_not_remembered_by_it(world):
    token, _ = world.grant("reader", space=EVERY_SPACE)
    world.store.push("s", push_of(changeset(put("x"))))
    world.admit(token, from_cache=True)
    world.now += CALLER_SECONDS_MAX
    world.admit(token, from_cache=True)
    assert world.store.looks == 2


def test_after_a_revocation_was_answered_nobody_remembers(world):
    """Another process remembers for `CALLER_SECONDS_MAX`: `forget` waits for it, too."""
    token, id = world.grant("reader")
    world.admit(token)
    looked_at = world.now
    world.store.revoke_token("s", id, reason="gone")
    asyncio.run(world.access.forget())
    assert world.now - looked_at >= CALLER_SECONDS_MAX
    with pytest.raises(Unauthenticated):
        world.admit(token)


@pytest.mark.parametrize("seconds", [0.4, 0.9, 5.0])
def test_a_slow_look_up_is_as_old_as_its_question(world, monkeypatch, seconds):
    """The registry answers late, and a revocation comes meanwhile. `forget` waits only for look-ups
    that began before the revocation, so a caller is cached from the question, not the answer."""
    token, id = world.grant("reader")
    find = world.store.token

    def slow(space, digest):
        found = find(space, digest)
        world.store.revoke_token("s", id, reason="gone")
        world.now += seconds
        return found

    monkeypatch.setattr(world.store, "token", slow)
    asked_at = world.now
    world.admit(token)
    monkeypatch.undo()
    world.now = max(world.now, asked_at + CALLER_SECONDS_MAX)
    for from_cache in (True, False):
        with pytest.raises(Unauthenticated):
            world.admit(token, from_cache=from_cache)


def test_a_revocation_during_the_look_up_is_newer_than_the_caller(world, monkeypatch):
    """A stream that sends the revocation asks for a look-up after it, at once."""
    token, id = world.grant("reader")
    find = world.store.token

    def slow(space, digest):
        found = find(space, digest)
        world.store.revoke_token("s", id, reason="gone")
        return found

    monkeypatch.setattr(world.store, "token", slow)
    world.admit(token)
    monkeypatch.undo()
    with pytest.raises(Unauthenticated):
        world.admit(token, since=world.store.cached_head("s"))


def test_a_revoked_device_is_told_so(world):
    token, _ = world.grant("device", device=A)
    world.store.revoke_device("s", A, reason="gone")
    with pytest.raises(DeviceRevoked):
        world.admit(token)
    with pytest.raises(DeviceRevoked):
        world.store.push("s", push_of(changeset(put("x")), device=A))
    with pytest.raises(DeviceRevoked):
        world.grant("device", device=A)


def test_a_token_ends_when_it_expires_also_while_it_is_remembered(world):
    world.now = 4_000_000_000.0
    token, _ = world.grant("reader", expires_at=4_000_000_000_500)
    world.admit(token)
    world.now += 0.4
    world.admit(token)
    assert world.store.looks == 1
    world.now += 0.2
    with pytest.raises(Unauthenticated):
        world.admit(token)


def test_what_is_remembered_is_bounded_and_strangers_are_not(world):
    token, _ = world.grant("reader", space=EVERY_SPACE)
    for number in range(CALLERS_KEPT_MAX + 10):
        world.admit(token, space=f"s{number}")
    assert len(world.access._cache) == CALLERS_KEPT_MAX
    known = set(world.access._cache)
    for number in range(10):
        with pytest.raises(Unauthenticated):
            world.admit(f"guess-{number}")
    assert set(world.access._cache) == known


class Away(MemoryStore):
    """A database that cannot be reached, whoever is looked for."""

    def token(self, *_):
        raise StorageUnavailable

    def is_revoked(self, *_):
        raise StorageUnavailable


@pytest.mark.parametrize("token", ["foldlog_" + "x" * 43, "a.b.c"])
def test_a_database_that_is_away_says_nothing_of_who_calls(token):
    """Neither that they are known, nor that they are not: a device would sign out."""
    store = Away()
    access = TokenAccess(store, store, jwts=Jwts(claims_of("ada")))
    for right in (Right.READ, Right.WRITE, Right.ADMIN):
        with pytest.raises(StorageUnavailable):
            asyncio.run(access.admit(Call(f"Bearer {token}"), "s", right))
    assert not access._cache


class Jwts:
    def __init__(self, claims):
        self.claims = claims
        self.reads = 0

    def read(self, text):
        self.reads += 1
        return self.claims


def claims_of(subject: str, expires_at: float = 2_000_000.0) -> Claims:
    return Claims(
        subject=subject,
        spaces=frozenset({"s"}),
        rights=RIGHTS[Role.DEVICE],
        device=A,
        expires_at=expires_at,
    )


def test_a_sign_in_s_token_is_for_the_spaces_that_it_names():
    world = World(jwts=Jwts(claims_of("ada")))
    caller = world.admit("a.b.c", Right.WRITE)
    assert (caller.id, caller.device) == ("sub ada", A)
    for other in ("t", EVERY_SPACE):
        with pytest.raises(Forbidden):
            world.admit("a.b.c", space=other)
    world.store.push("s", push_of(changeset(put("x"))))
    world.store.revoke_device("s", A, reason="gone")
    asyncio.run(world.access.forget())
    with pytest.raises(DeviceRevoked):
        world.admit("a.b.c")


@pytest.mark.parametrize("from_cache", [False, True])
def test_a_sign_in_s_token_ends_when_it_expires_also_while_it_is_remembered(from_cache):
    """Within the second that everybody is remembered for, and within the minute of the idle."""
    seconds = IDLE_CALLER_SECONDS_MAX / 2 if from_cache else CALLER_SECONDS_MAX / 2
    jwts = Jwts(claims_of("ada", expires_at=(1_000.0 + seconds) * 1_000))
    world = World(jwts=jwts)
    world.store.push("s", push_of(changeset(put("x"))))
    assert world.admit("a.b.c", from_cache=from_cache).expires_at == jwts.claims.expires_at
    world.now += seconds * 0.9
    world.admit("a.b.c", from_cache=from_cache)
    assert jwts.reads == 1
    world.now += seconds * 0.2
    world.admit("a.b.c", from_cache=from_cache)  # it would be refused by who reads it
    assert jwts.reads == 2


class Guarded(Rates):
    """Of an address that has guessed too often."""

    def check_unknown_caller(self, request):
        raise RateLimited("wrong_tokens_per_second_per_address", 1)


def test_who_was_found_good_is_looked_up_whatever_strangers_do(world):
    """Also long after; in another space, and for another token, they are strangers."""
    token, _ = world.grant("reader")
    other, _ = world.grant("reader", space="t")
    world.admit(token)
    world.now += 10 * IDLE_CALLER_SECONDS_MAX
    world.rates = Guarded()
    assert world.admit(token).id.startswith("token ")
    for stranger, space in ((token, "t"), (other, "t"), ("guess", "s")):
        with pytest.raises(RateLimited):
            world.admit(stranger, space=space)
    assert world.store.looks == 2


def test_a_revocation_makes_nobody_a_stranger_but_whom_it_is_of(world):
    """While strangers are held up, all others are looked up again, and go on."""
    token, _ = world.grant("reader")
    revoked, id = world.grant("reader")
    world.admit(token)
    world.admit(revoked)
    world.store.revoke_token("s", id, reason="gone")
    asyncio.run(world.access.forget())
    with pytest.raises(Unauthenticated):
        world.admit(revoked)
    world.rates = Guarded()
    assert world.admit(token).id.startswith("token ")
    with pytest.raises(RateLimited):
        world.admit(revoked)
