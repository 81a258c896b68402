"""A new device enrols with a code, over real sockets and with tokens on."""

from __future__ import annotations

import secrets
import shutil
import stat
import time

import httpx
import pytest

import foldlog
from foldlog.api.app import create_app
from foldlog.api.http.access import TokenAccess
from foldlog.api.http.rates import LimitedRates
from foldlog.client.errors import BadArgument, ServerProblem, Unreachable
from foldlog.domain.enrolment import CODE_BYTES, Enrolment, new_code
from foldlog.domain.events import decode_event
from foldlog.domain.limits import Limits
from tests.acceptance.live import served
from tests.client.proxy import Proxy
from tests.helpers import new_id

HOUR = 3_600_000


@pytest.fixture
def space() -> str:
    """A space of the test's own, because the stores are kept."""
    return f"test-{new_id()}"


@pytest.fixture
def kinds(store, space):
    """Returns the kinds of the events of the log."""
    return lambda: [decode_event(entry.state).kind for entry in store.entries(space, through=99)]


@pytest.fixture
def url(store):
    access = TokenAccess(store, store)
    rates = LimitedRates(Limits(wrong_tokens_per_second_per_address=5))
    app = create_app(
        store=store, master=store, registry=store, ready=dict, access=access, rates=rates
    )
    with served(store, app=app) as service:
        yield service.url


@pytest.fixture
def issue(store, space):
    """Issues a code, which is valid for an hour."""

    def issue() -> str:
        code, digest = new_code(secrets.token_bytes(CODE_BYTES))
        now = time.time_ns() // 1_000_000
        enrolment = Enrolment(
            id=new_id(), name="Phone", issued_at=now, issued_by="ada", expires_at=now + HOUR
        )
        store.issue_code(space, digest, enrolment)
        return code

    return issue


@pytest.fixture
def opened(url, space, tmp_path):
    """Opens a replica by name; each call is a new start of the app. Syncs only when told."""
    replicas = []

    def opened(name: str, *, at: str = url, **options) -> foldlog.Replica:
        path = tmp_path / f"{name}.db"
        replicas.append(foldlog.open(path, server=at, space=space, keep_syncing=False, **options))
        return replicas[-1]

    yield opened
    for replica in replicas:
        replica.close()


def titles(replica: foldlog.Replica) -> list[str]:
    return sorted(task["title"] for task in replica.collection("tasks"))


def test_a_code_is_all_that_a_new_device_needs(opened, issue, tmp_path, kinds):
    phone, tablet = opened("phone", enrol=issue()), opened("tablet", enrol=issue().lower())
    phone.collection("tasks").create(title="Milk")
    phone.sync()
    tablet.sync()
    assert titles(tablet) == ["Milk"]
    assert kinds().count("token-granted") == 2

    kept = tmp_path / "phone.db.token"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    token = kept.read_text().partition('"token":"')[2].partition('"')[0]
    assert token.startswith("foldlog_")
    phone.close()
    for file in tmp_path.glob("phone.db*"):
        assert file == kept or token.encode() not in file.read_bytes()

    # The next start of the app needs no code, and may still pass the old one.
    for options in ({}, {"enrol": issue()}):
        again = opened("phone", **options)
        again.collection("tasks").create(title="Bread")
        again.sync()
    assert kinds().count("token-granted") == 2


def test_writes_before_the_enrolment_are_kept(opened, issue, kinds):
    phone = opened("phone")
    phone.collection("tasks").create(title="Milk")
    with pytest.raises(ServerProblem, match="unauthenticated"):
        phone.sync()
    phone.close()
    phone = opened("phone", enrol=issue())
    phone.sync()
    assert phone.status().unsent == 0
    assert kinds() == ["device-registered", "token-granted", "changeset"]


def test_a_code_that_is_used_or_wrong_keeps_the_queue(opened, issue):
    code = issue()
    opened("phone", enrol=code).sync()
    thief = opened("thief", enrol=code)
    thief.collection("tasks").create(title="Milk")
    with pytest.raises(ServerProblem) as refused:
        thief.sync()
    assert (refused.value.status, refused.value.problem) == (403, "enrolment-refused")
    assert code not in str(refused.value) and code not in str(thief.status())
    assert thief.status().unsent == 1
    thief.close()
    thief = opened("thief", enrol=issue())
    thief.sync()
    assert thief.status().unsent == 0


@pytest.mark.parametrize("code", ["", "ABC", "foldlog_abc", "U" * 25, "é"])
def test_a_text_that_is_no_code_fails_at_the_call(opened, code, tmp_path):
    with pytest.raises(BadArgument, match="no code"):
        opened("phone", enrol=code)
    assert list(tmp_path.iterdir()) == []


def test_a_code_and_a_token_exclude_each_other(opened, issue):
    with pytest.raises(BadArgument, match="token"):
        opened("phone", enrol=issue(), token="foldlog_x")


def test_a_lost_answer_burns_no_code(opened, issue, url, kinds):
    """The proxy lets the request through and cuts the answer. The app then starts again."""
    code, proxy = issue(), Proxy(url)
    proxy.cut_down_after = 0
    phone = opened("phone", at=proxy.url, enrol=code)
    phone.collection("tasks").create(title="Milk")
    with pytest.raises(Unreachable):
        phone.sync()
    phone.close()
    proxy.close()
    assert "device-registered" in kinds()
    phone = opened("phone", enrol=code)
    phone.sync()
    assert kinds() == ["device-registered", "token-granted", "changeset"]


def test_a_copy_trades_its_token_and_the_original_goes_on(opened, issue, tmp_path, kinds):
    """A second device gets a copy of both files, as by a backup of the phone."""
    phone = opened("phone", enrol=issue())
    tasks = phone.collection("tasks")
    tasks.create(title="Milk")
    phone.sync()
    phone.close()
    for suffix in ("", ".token"):
        shutil.copy(tmp_path / f"phone.db{suffix}", tmp_path / f"copy.db{suffix}")

    phone, copy = opened("phone"), opened("copy")
    phone.collection("tasks").create(title="Bread")
    phone.sync()
    copy.collection("tasks").create(title="Eggs")
    copy.sync()
    assert copy.device != phone.device
    for one in (phone, copy):
        one.collection("tasks").create(title=f"from {one.device}")
        one.sync()
        one.sync()
    phone.sync()
    assert titles(phone) == titles(copy) and len(titles(copy)) == 5
    assert kinds().count("token-granted") == 2


def test_a_token_is_traded_once(opened, issue, tmp_path):
    phone = opened("phone", enrol=issue())
    phone.collection("tasks").create(title="Milk")
    phone.sync()
    phone.close()
    for name in ("one", "two"):
        for suffix in ("", ".token"):
            shutil.copy(tmp_path / f"phone.db{suffix}", tmp_path / f"{name}.db{suffix}")
    phone = opened("phone")
    phone.collection("tasks").create(title="Bread")
    phone.sync()
    one, two = opened("one"), opened("two")
    for copy in (one, two):
        copy.collection("tasks").create(title="Eggs")
    one.sync()
    with pytest.raises(ServerProblem, match="enrolment-refused"):
        two.sync()
    assert two.status().unsent == 1
    two.close()
    two = opened("two", enrol=issue())
    two.sync()
    assert two.status().unsent == 0
    assert len({replica.device for replica in (phone, one, two)}) == 3


def test_a_device_that_had_a_token_enrols_with_a_new_id(opened, issue, store, space):
    """The code claims no device that the space knows, so the replica takes a new id."""
    phone = opened("phone")
    store.register(space, phone.device)
    before = phone.device
    phone.collection("tasks").create(title="Milk")
    phone.close()
    phone = opened("phone", enrol=issue())
    phone.sync()
    assert phone.status().unsent == 0 and phone.device != before


def test_an_app_keeps_the_secret_in_its_own_place(opened, issue, tmp_path):
    class KeyStore(foldlog.Secrets):
        text: str | None = None

        def load(self):
            return self.text

        def save(self, secret):
            self.text = secret

    kept = KeyStore()
    opened("phone", enrol=issue(), secrets=kept).sync()
    assert kept.text is not None
    assert not (tmp_path / "phone.db.token").exists()
    opened("phone", secrets=kept).sync()


def test_guesses_are_limited(opened, url, space):
    """The limit of wrong tokens holds for wrong codes too."""
    body = {"device": new_id(), "digest": "0" * 64}
    answers = []
    with httpx.Client(base_url=f"{url}/v1/spaces/{space}/") as http:
        for _ in range(500):
            code = new_code(secrets.token_bytes(CODE_BYTES))[0]
            answers.append(http.post("enrol", json={**body, "code": code}).status_code)
            if answers[-1] == 429:
                break
    assert set(answers[:-1]) == {403} and answers[-1] == 429
