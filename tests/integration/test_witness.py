"""Two services witness each other and refuse a forked log."""

from __future__ import annotations

from base64 import b64encode

import httpx
import pytest

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.domain.errors import InvalidRequest
from foldlog.domain.notes import (
    COSIGNATURE,
    Checkpoint,
    Note,
    Signer,
    Verifier,
    log_of,
    open_checkpoint,
    origin_of,
)
from foldlog.domain.ports import RangeQuery
from foldlog.domain.witness import AddCheckpoint
from foldlog.infrastructure.postgres.append.transfer import Importer
from foldlog.infrastructure.postgres.connection.datastore import Datastore
from foldlog.infrastructure.postgres.proofs.signers import Signers
from foldlog.infrastructure.signing.keys import make_keys, read_keys
from foldlog.infrastructure.signing.signer import CheckpointSigner
from foldlog.infrastructure.signing.witness import Witness, Witnesses
from tests.conftest import PostgresStores, create_database
from tests.helpers import changeset, push_of, put


class Party:
    """A service that signs its own log and is the witness of the other one."""

    def __init__(self, name: str, stores: PostgresStores, folder, client_of):
        self.name, self.stores, self.folder = name, stores, folder
        self.is_away, self.times_asked = False, 0
        make_keys(folder / "keys")
        self.keys = read_keys(folder / "keys")
        self.trusted: list[Verifier] = []
        cosigner = self.keys.cosigner(f"{name}/witness")
        self.verifier = cosigner.verifier(COSIGNATURE)
        signers = Signers(stores.datastore, "witness")
        witness = Witness(folder / "witness", cosigner, self.trusted, signers)
        app = create_app(
            store=stores.log,
            master=stores.master,
            ready=dict,
            add_checkpoint=witness.add_checkpoint,
            access=OpenAccess(),
        )
        self.client = client_of(app)
        self.push(3)

    def push(self, count: int) -> None:
        self.stores.push("s", push_of(*[changeset(put(str(n))) for n in range(count)]))
        self.stores.grow_trees()

    @property
    def log(self) -> Verifier:
        origin = origin_of(self.name, "s", self.stores.proofs.tree("s").log)
        return self.keys.verifiers(origin)[0]

    def post(self, url: str, content: bytes) -> tuple[int, bytes]:
        if self.is_away:
            raise httpx.ConnectError("nobody is there")
        self.times_asked += 1
        answer = self.client.post(f"/v1/witness/{url.rpartition('/')[2]}", data=content)
        return answer.status_code, answer.data

    def sign(self, *witnesses: Party, stores: PostgresStores | None = None) -> Witnesses:
        tree = (stores or self.stores).proofs
        asked = asking(tree, *witnesses)
        CheckpointSigner(
            tree,
            keys=self.folder / "keys",
            last=self.folder / "checkpoints",
            origin=self.name,
            on_signed=asked.submit,
        ).sign_all()
        asked.ask_all()
        return asked

    def cosigned_by(self, party: Party) -> int | None:
        """Returns the size of the published checkpoint, if that party has cosigned it."""
        checkpoint, note = open_checkpoint(self.stores.proofs.checkpoint("s"), [self.log])
        return checkpoint.size if note.verified_by([party.verifier]) else None


def asking(tree, *parties: Party, clock=lambda: 0.0) -> Witnesses:
    by_url = {f"http://{party.name}/v1/witness": party for party in parties}

    def post(url: str, content: bytes) -> tuple[int, bytes]:
        return by_url[url.rpartition("/")[0]].post(url, content)

    asked = [(party.verifier, url) for url, party in by_url.items()]
    return Witnesses(tree, asked, post=post, clock=clock)


@pytest.fixture
def parties(cluster, tmp_path, client_of):
    stores = [Datastore(create_database(cluster)[0]) for _ in range(2)]
    with stores[0], stores[1]:
        ada, bob = (
            Party(name, PostgresStores(datastore), tmp_path / name, client_of)
            for name, datastore in zip(("ada.test", "bob.test"), stores, strict=True)
        )
        ada.trusted.append(bob.log)
        bob.trusted.append(ada.log)
        yield ada, bob


def test_two_services_witness_each_other(parties):
    """They cosign repeatedly, also after one of them has lost its cache of the other's state."""
    ada, bob = parties
    for size in (3, 5, 300):
        for one, other in ((ada, bob), (bob, ada)):
            if size > 3:
                one.push(size - one.stores.proofs.tree("s").size)
            one.sign(other)
            assert one.cosigned_by(other) == size


def test_a_fork_is_refused(parties, cluster):
    """The witness refuses it too, when the log's signer has lost its files."""
    ada, bob = parties
    page = ada.stores.range_after("s", RangeQuery(0, 1))
    with Datastore(create_database(cluster)[0]) as datastore:
        forked = PostgresStores(datastore)
        entries = list(ada.stores.entries("s", through=2))
        Importer(datastore).run("s", page.log, entries)
        forked.push("s", push_of(*[changeset(put("other")) for _ in range(5)]))
        forked.grow_trees()
        ada.sign(bob)
        for file in (ada.folder / "checkpoints" / "s").iterdir():
            file.unlink()
        ada.sign(bob, stores=forked)
        _, note = open_checkpoint(forked.proofs.checkpoint("s"), [ada.log])
        assert note.verified_by([bob.verifier]) == []
    assert ada.cosigned_by(bob) == 3


def test_an_unreachable_witness_is_asked_again(parties):
    """The same checkpoint is sent again, less and less often, also by the next process."""
    ada, bob = parties
    bob.is_away = True
    ada.sign(bob)
    assert ada.cosigned_by(bob) is None
    now = 0.0
    asked = asking(ada.stores.proofs, bob, clock=lambda: now)
    asked._submit_published()
    tries = []
    asked._post = lambda *_: tries.append(now) or ada.post("never", b"")
    ada.is_away = True
    while now < 200:
        asked.ask_all()
        now += 0.5
    assert tries == [0, 1, 3, 7, 15, 31, 63, 123, 183]
    ada.is_away = bob.is_away = False
    asked._post = bob.post
    now = 243
    asked.ask_all()
    assert ada.cosigned_by(bob) == 3
    asked.ask_all()
    assert bob.times_asked == 1, "it has said what it has to say"


def test_a_newer_checkpoint_replaces_a_pending_one(parties):
    """A late cosignature of the older one leaves the newer one published."""
    ada, bob = parties
    bob.is_away = True
    late = ada.sign(bob)
    ada.push(2)
    bob.is_away = False
    ada.sign(bob)
    assert ada.cosigned_by(bob) == 5
    late._unreachable.clear()
    late.ask_all()
    assert ada.cosigned_by(bob) == 5


def test_a_checkpoint_of_a_forked_log_is_dropped(parties):
    """The checkpoint of the old log leaves the one of the new log published."""
    ada, bob = parties
    bob.is_away = True
    late = ada.sign(bob)
    before = ada.stores.proofs.checkpoint("s")
    with ada.stores.datastore.committed() as cursor:
        cursor.execute("UPDATE spaces SET log = gen_random_uuid() RETURNING log")
    ada.sign()
    forked = ada.stores.proofs.checkpoint("s")
    log = log_of(Checkpoint.parse(Note.parse(before).text).origin)
    ada.stores.proofs.publish("s", log, 99, before)
    assert ada.stores.proofs.checkpoint("s") == forked != before
    bob.is_away = False
    late._unreachable.clear()
    late.ask_all()
    assert bob.times_asked == 0 and not late._pending


def test_an_unreachable_witness_delays_no_other(parties, tmp_path, client_of):
    """An unreachable witness is asked once for all spaces, and the others cosign."""
    ada, bob = parties
    ada.stores.push("t", push_of(changeset(put())))
    ada.stores.grow_trees()
    away = Party("away.test", ada.stores, tmp_path / "away", client_of)
    away.is_away = True
    tried = []
    asked = asking(ada.stores.proofs, away, bob)
    post = asked._post
    asked._post = lambda url, content: tried.append(url) or post(url, content)
    signing = CheckpointSigner(
        ada.stores.proofs,
        keys=ada.folder / "keys",
        last=ada.folder / "checkpoints",
        origin=ada.name,
        on_signed=asked.submit,
    )
    assert signing.sign_all() == 2
    asked.ask_all()
    assert len([url for url in tried if "away" in url]) == 1
    assert ada.cosigned_by(bob) == ada.stores.proofs.tree("s").size


def ask(ada: Party, bob: Party, old: int, size: int, **changed) -> tuple[int, str]:
    """Sends a request to bob by hand; returns status and body."""
    signer = ada.keys.signer(changed.get("origin", ada.log.name))
    found = ada.stores.proofs.consistency("s", old, size)
    root = changed.get("root", found.new_root)
    text = Checkpoint(signer.name, size, root).text
    note = Note(text, [changed.get("signer", signer).sign(text)])
    body = AddCheckpoint(old, changed.get("proof", found.path), note).encoded
    answer = bob.client.post("/v1/witness/add-checkpoint", data=body)
    if answer.status_code == 409:
        assert answer.content_type == "text/x.tlog.size"
    return answer.status_code, answer.text


def test_every_answer_of_a_witness(parties):
    """The statuses are those of tlog-witness, in its order."""
    ada, bob = parties
    ada.push(7)
    stranger = Signer(ada.log.name, b"x" * 32)
    assert ask(ada, bob, 0, 4, origin="unknown.test/log")[0] == 404
    assert ask(ada, bob, 0, 4, signer=stranger)[0] == 403
    assert ask(ada, bob, 3, 4) == (409, "0\n")
    assert ask(ada, bob, 0, 4, proof=[b"x" * 32])[0] == 422
    status, line = ask(ada, bob, 0, 4)
    assert status == 200 and line.startswith("— bob.test/witness ") and line.endswith("\n")
    assert ask(ada, bob, 0, 8) == (409, "4\n")
    assert ask(ada, bob, 4, 8, proof=[])[0] == 422
    assert ask(ada, bob, 4, 4)[0] == 200, "the same again"
    assert ask(ada, bob, 4, 4, root=b"x" * 32) == (409, "4\n")
    assert ask(ada, bob, 4, 8)[0] == 200
    assert ask(ada, bob, 4, 8) == (409, "8\n")
    note = Note("x.test\n1\n" + b64encode(b"r" * 32).decode() + "\n", [stranger.sign("x")])
    too_old = AddCheckpoint(9, [], Note(Checkpoint(ada.log.name, 4, b"r" * 32).text, []))
    for body in (b"", b"old 1\n", b"old 01\n\n" + note.encoded, b"old 1\nAAAA\n\n" + note.encoded):
        assert bob.client.post("/v1/witness/add-checkpoint", data=body).status_code == 400
    assert too_old.encoded.startswith(b"old 9\n\n")
    signer = ada.keys.signer(ada.log.name)
    text = too_old.note.text
    signed = AddCheckpoint(9, [], Note(text, [signer.sign(text)])).encoded
    assert bob.client.post("/v1/witness/add-checkpoint", data=signed).status_code == 400
    assert bob.client.post("/v1/witness/add-checkpoint", data=b"x" * 100_000).status_code == 413


def test_a_request_is_what_the_specification_shows():
    """The example of the specification is read and written byte for byte."""
    body = (
        "old 20852014\n"
        "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n"
        "jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n"
        "\n"
        "example.com/behind-the-sofa\n"
        "20852163\n"
        "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
        "\n"
        "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/"
        "Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    ).encode()
    asked = AddCheckpoint.parse(body)
    assert (asked.old, len(asked.proof)) == (20852014, 2)
    assert asked.encoded == body
    with pytest.raises(InvalidRequest):
        AddCheckpoint.parse(body.replace(b"old ", b"old  "))
