"""Foldlog is an event-sourced changeset log service, with a client library for offline-first apps.

This module exports the client library, which works without the packages that the service needs.

import foldlog

with foldlog.open("app.db", server="http://localhost:3653", space="home") as replica:
    tasks = replica.collection("tasks")
    milk = tasks.create(title="Buy milk", done=False)
"""

from __future__ import annotations

from foldlog.client.callbacks import Callbacks, Change, Loss, Refusal
from foldlog.client.collection import Collection
from foldlog.client.errors import (
    BadArgument,
    BadToken,
    ClientError,
    ConnectionBroke,
    FileUnusable,
    IncompletePage,
    LimitExceeded,
    NotARecord,
    NotFoldlog,
    RecordExists,
    RecordNotFound,
    ReplicaClosed,
    ServerProblem,
    Unreachable,
    WrongReplica,
)
from foldlog.client.record import SYNCED, TEMPORARY, WAITING, Record
from foldlog.client.replica import Replica, open
from foldlog.client.status import Status
from foldlog.client.sync.results import SyncResult
from foldlog.client.transport.enrolment import Secrets

__version__ = "0.1.0"

__all__ = [
    "SYNCED",
    "TEMPORARY",
    "WAITING",
    "BadArgument",
    "BadToken",
    "Callbacks",
    "Change",
    "ClientError",
    "Collection",
    "ConnectionBroke",
    "FileUnusable",
    "IncompletePage",
    "LimitExceeded",
    "Loss",
    "NotARecord",
    "NotFoldlog",
    "Record",
    "RecordExists",
    "RecordNotFound",
    "Refusal",
    "Replica",
    "ReplicaClosed",
    "Secrets",
    "ServerProblem",
    "Status",
    "SyncResult",
    "Unreachable",
    "WrongReplica",
    "open",
]
