"""A projection that stands still is visible to an operator and to each reader."""

from __future__ import annotations

from functools import partial

import pytest
from click.testing import CliRunner
from msgspec.json import decode

from foldlog.api.app import create_app
from foldlog.api.http.access import OpenAccess
from foldlog.infrastructure.postgres.rebuild import projector as projector_module
from foldlog.infrastructure.postgres.status import ALARMS, alarms, gauges
from foldlog.scripts.main import cli
from tests.asgi_client import asgi_client
from tests.helpers import changeset, push_of, put
from tests.integration.test_projector import poison
from tests.integration.test_projector_faults import fault, rounds

READS = [
    "records",
    "records?changed_after=0",
    "records?as_of=2",
    "records/tasks/x",
    "history/tasks/x",
    "conflicts",
    "diff?from=1&to=2",
]


@pytest.fixture
def http(stores, datastore):
    app = create_app(
        store=stores.log,
        master=stores.master,
        ready=dict,
        alarms=partial(alarms, datastore),
        gauges=partial(gauges, datastore),
        access=OpenAccess(),
    )
    for space in ("s", "fine"):
        stores.push(space, push_of(*(changeset(put("x", n=n)) for n in range(2))))
    stores.project()
    return asgi_client(app)


def halted(http, space: str = "s", projected: int = 2) -> set[int | None]:
    """The member `halted_at` of all reads of a space: one value for all of them."""
    found = set()
    for read in READS:
        answer = http.get(f"/v1/spaces/{space}/{read}")
        assert answer.status_code == 200, (read, answer.json)
        assert answer.json["projected"] == projected
        found.add(answer.json.get("halted_at"))
    snapshot = http.get(f"/v1/spaces/{space}/snapshot").text
    found.add(decode(snapshot.splitlines()[0]).get("halted_at"))
    return found


def shown(http) -> dict[str, int]:
    """The alarms of `/readyz`, which are also those of the metrics."""
    ready = http.get("/readyz")
    assert ready.status_code == 200
    metrics = http.get("/metrics").text
    for alarm in ALARMS:
        assert f'foldlog_alarms{{alarm="{alarm}"}} {ready.json["alarms"].get(alarm, 0)}' in metrics
    found: dict[str, int] = ready.json["alarms"]
    return found


def test_a_halted_space_is_visible(http, stores, database):
    """`readyz`, metrics, status and each read say it. The other space has no sign of it."""
    assert (shown(http), halted(http)) == ({}, {None})
    poison(database, "s", 3)
    stores.project()

    assert shown(http) == {"projection-halted": 1}
    assert halted(http) == {3}
    assert halted(http, "fine") == {None}
    assert "halted" not in http.get("/readyz").json["checks"]
    late = http.get("/v1/spaces/s/records?at_least=3")
    assert late.status_code == 503
    assert (late.json["code"], late.json["halted_at"]) == ("projection-behind", 3)

    stores.log.skip("s", 3, reason="written past the service")
    assert shown(http) == {}
    assert halted(http, projected=4) == {None}, "a read waits for the head again"


def test_a_failing_space_is_visible(http, stores, database):
    """A damaged index stops a space just as long, and no event is its cause."""
    with fault(database, "XX002", space="s"):
        stores.push("s", push_of(changeset(put("x", n=9))))
        rounds(stores.projector, projector_module.FAULTS_TOLD)
        assert shown(http) == {"projection-failing": 1}
        assert halted(http) == {3}
        status = CliRunner().invoke(cli, ["status", "--database-url", database])
        assert status.exit_code == 1 and "failing" in status.output
    stores.project()
    assert shown(http) == {}
    assert http.get("/v1/spaces/s/records").json["projected"] == 3
