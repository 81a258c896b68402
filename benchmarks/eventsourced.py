"""The same work for the application and projection of eventsourcing, in a separate process.

python -m benchmarks.eventsourced fill URL EVENTS | run URL SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from typing import Any
from uuid import UUID

import msgspec
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from .figures import Figure
from .workload import Workload

BATCH_EVENTS = 500
START_SECONDS_MAX = 60.0


class Task(Aggregate):
    """A record. Its events hold the same data as events of ours."""

    @event("Created")
    def __init__(self, record: str, device: str, counter: int, fields: dict[str, Any]):
        self.fields = fields

    @staticmethod
    def create_id(record: str) -> UUID:
        return UUID(record)

    @event("Put")
    def put(self, device: str, counter: int, fields: dict[str, Any]) -> None:
        self.fields = fields


class Tasks(Application[UUID]):
    name = "tasks"


class View(PostgresTrackingRecorder):
    """A table of the present records, written with the position in one transaction."""

    def __init__(self, datastore: PostgresDatastore, **given: Any):
        super().__init__(datastore, **given)
        schema = Identifier(datastore.schema)
        self.sql_create_statements.append(
            SQL("CREATE TABLE IF NOT EXISTS {0}.records (id uuid PRIMARY KEY, fields json)").format(
                schema
            )
        )
        self._upsert = SQL(
            "INSERT INTO {0}.records VALUES (%s, %s) "
            "ON CONFLICT (id) DO UPDATE SET fields = excluded.fields"
        ).format(schema)

    def put(self, record: UUID, fields: dict[str, Any], tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(self._upsert, (record, json.dumps(fields)), prepare=True)


class Records(Projection[View]):
    name = "records"
    done = 0

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.view.put(domain_event.originator_id, domain_event.fields, tracking)
        Records.done += 1


def settings(url: str) -> dict[str, str]:
    given = conninfo_to_dict(url)
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": str(given["dbname"]),
        "POSTGRES_HOST": str(given["host"]),
        "POSTGRES_PORT": str(given.get("port", 5432)),
        "POSTGRES_USER": str(given["user"]),
        "POSTGRES_PASSWORD": str(given.get("password", "-")),
    }


def fill(url: str, events: int) -> None:
    """Creates each record, then writes it once more."""
    app = Tasks(settings(url))
    history = Workload("eventsourced").history(events, 1)
    items = (item for items in history for item in items)
    made: dict[str, Task] = {}
    while batch := list(islice(items, BATCH_EVENTS)):
        changed = {}
        for item in batch:
            fields = json.loads(f"{{{item.fields}}}")
            if item.record in made:
                made[item.record].put(item.device, item.counter, fields)
            else:
                made[item.record] = Task(item.record, item.device, item.counter, fields)
            changed[item.record] = made[item.record]
        app.save(*changed.values())
    app.close()


def run(url: str, seconds: float) -> Figure:
    """Folds from the first event until all are folded, or the time is over."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as database:
        database.execute("DROP TABLE IF EXISTS records_tracking, records")
        [total] = database.execute("SELECT count(*) FROM tasks_events").fetchone() or [0]
    with ProjectionRunner(
        application_class=Tasks, projection_class=Records, view_class=View, env=settings(url)
    ):
        deadline = time.perf_counter() + START_SECONDS_MAX
        while not Records.done and time.perf_counter() < deadline:
            time.sleep(0.001)
        started, before = time.perf_counter(), Records.done
        while Records.done < total and time.perf_counter() < started + seconds:
            time.sleep(0.005)
        done, took = Records.done - before, time.perf_counter() - started
    if not done:
        sys.exit("the projection did not begin")
    return Figure(done / took, note=f"{done:,} events")


if __name__ == "__main__":
    what, url, number = sys.argv[1:]
    if what == "fill":
        fill(url, int(number))
    else:
        print(msgspec.json.encode(run(url, float(number))).decode())
