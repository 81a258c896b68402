"""Contains the examples of the OpenAPI document.

All examples belong to the same situation: a device creates a task offline, and the service stores
the device's changeset as event 42. Tests check the examples against the schemas.
"""

from __future__ import annotations

from typing import Any

SPACE = "family-list"
LOG = "0b7f6a52-3a0e-4a87-9d2b-6f1f0c3f3a11"
DEVICE = "5d0e9d0c-6d8e-4a3e-8f57-0d1f2b3c4d5e"
OTHER_DEVICE = "9a1c2f4e-0b7d-4c55-a3d1-7e6f5a4b3c2d"
CHANGESET_ID = "0198a3c2-7b11-7c3e-9a54-2f6d8e0b1c4a"
MARK = "9f86d081884c7d65"

OPERATIONS: list[dict[str, Any]] = [
    {
        "op": "put",
        "collection": "tasks",
        "id": "8f0c1d2e-3b4a-4c5d-8e6f-7a8b9c0d1e2f",
        "fields": {"title": "Buy milk", "done": False},
    }
]

CHANGESET: dict[str, Any] = {
    "id": CHANGESET_ID,
    "counter": 7,
    "base": 41,
    "made_at": "2026-11-23T09:00:00.123Z",
    "ops": OPERATIONS,
}

OWN_EVENT: dict[str, Any] = {
    "seq": 42,
    "kind": "changeset",
    "verdict": "stored",
    "id": CHANGESET_ID,
    "device": DEVICE,
    "counter": 7,
    "base": 41,
    "made_at": "2026-11-23T09:00:00.123Z",
    "received_at": "2026-11-23T09:00:02.481Z",
    "time": 1795424402481,
}

EVENT: dict[str, Any] = {**OWN_EVENT, "ops": OPERATIONS}

VERDICT: dict[str, Any] = {
    "id": CHANGESET_ID,
    "verdict": "stored",
    "seq": 42,
    "received_at": "2026-11-23T09:00:02.481Z",
    "time": 1795424402481,
}

RECORD: dict[str, Any] = {
    "collection": "tasks",
    "id": "8f0c1d2e-3b4a-4c5d-8e6f-7a8b9c0d1e2f",
    "fields": {"title": "Buy milk", "done": False},
    "is_deleted": False,
    "last_modified": "2026-11-23T09:00:02.481Z",
    "seq": 42,
    "created_seq": 42,
}

LOSS: dict[str, Any] = {
    "seq": 42,
    "op": "put",
    "collection": "tasks",
    "id": "8f0c1d2e-3b4a-4c5d-8e6f-7a8b9c0d1e2f",
    "field": "title",
    "rule": "concurrent",
    "lost": {"value": "Buy oat milk", "seq": 40, "device": OTHER_DEVICE},
    "won": {"value": "Buy milk", "seq": 42, "device": DEVICE},
}

OTHER_HAND: dict[str, Any] = {
    "changeset": "0198a3c1-02aa-7d10-8c3b-5e4f3a2b1c0d",
    "made_at": "2026-11-23T08:58:11.020Z",
    "received_at": "2026-11-23T08:59:30.777Z",
}
HAND: dict[str, Any] = {
    "changeset": CHANGESET_ID,
    "made_at": "2026-11-23T09:00:00.123Z",
    "received_at": "2026-11-23T09:00:02.481Z",
}
CONFLICT: dict[str, Any] = {
    **LOSS,
    "lost": {**LOSS["lost"], **OTHER_HAND},
    "won": {**LOSS["won"], **HAND},
    "restore": {
        "base": 42,
        "ops": [
            {
                "op": "put",
                "collection": "tasks",
                "id": "8f0c1d2e-3b4a-4c5d-8e6f-7a8b9c0d1e2f",
                "fields": {"title": "Buy oat milk"},
            }
        ],
    },
}

VERSION: dict[str, Any] = {
    "seq": 42,
    "changeset": CHANGESET_ID,
    "device": DEVICE,
    "made_at": "2026-11-23T09:00:00.123Z",
    "received_at": "2026-11-23T09:00:02.481Z",
    "is_deleted": False,
    "changed": {"title": {"from": "Buy oat milk", "to": "Buy milk"}, "done": {"to": False}},
    "lost": [LOSS],
}
DIFFERENCE: dict[str, Any] = {
    "collection": "tasks",
    "id": "8f0c1d2e-3b4a-4c5d-8e6f-7a8b9c0d1e2f",
    "before": None,
    "after": RECORD,
    "changed": {"title": {"to": "Buy milk"}, "done": {"to": False}},
}

PUSH = {"device": DEVICE, "sent_at": "2026-11-23T09:00:02.300Z", "changesets": [CHANGESET]}
RECEIPT = {"log": LOG, "head": 42, "verdicts": [VERDICT]}

SYNC = {**PUSH, "after": 41, "mark": "6b86b273ff34fce1", "limit": 500}
RANGE: dict[str, Any] = {
    "log": LOG,
    "head": 42,
    "events": [EVENT],
    "through": 42,
    "mark": MARK,
    "more": False,
}
SYNC_ANSWER = {"log": LOG, "head": 42, "verdicts": [VERDICT], **RANGE, "events": [OWN_EVENT]}

RECORDS_PAGE = {"log": LOG, "head": 42, "projected": 42, "records": [RECORD], "cursor": None}
RECORD_ANSWER = {"log": LOG, "head": 42, "projected": 42, "record": RECORD}
SNAPSHOT_HEADER = {"log": LOG, "seq": 42, "mark": MARK, "records": 1}
SNAPSHOT_RECORD = {
    **RECORD,
    "writes": [[42, DEVICE, 1795424402481, 0, ["done", "title"]]],
    "deleted": None,
}
SNAPSHOT_PAGE_END = {"at": 42, "mark": "9f86d081884c7d65", "cursor": None}
CONFLICTS_PAGE = {"log": LOG, "head": 42, "projected": 42, "conflicts": [CONFLICT], "cursor": None}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 200}, "done": {"type": "boolean"}},
    "required": ["title"],
    "additionalProperties": False,
}
COLLECTION_VERSION = {
    "collection": "tasks",
    "version": 1,
    "seq": 43,
    "defined_at": "2026-11-23T09:05:00.000Z",
    "by": "ada",
}
COLLECTIONS = {"collections": [COLLECTION_VERSION]}
COLLECTION = {**COLLECTION_VERSION, "schema": SCHEMA, "versions": [COLLECTION_VERSION]}
DEFINING = {"schema": SCHEMA, "if_version": 0, "by": "ada"}
DEFINED = {
    "collection": "tasks",
    "version": 1,
    "seq": 43,
    "reasons": [],
    "check": {"checked": 1, "violating": 0, "first": [], "is_complete": True},
}
HISTORY_PAGE = {"log": LOG, "head": 42, "projected": 42, "versions": [VERSION], "cursor": None}
DIFF_PAGE = {
    "log": LOG,
    "head": 42,
    "projected": 42,
    "from": 0,
    "to": 42,
    "differences": [DIFFERENCE],
    "cursor": None,
}
LOCAL_IDS: dict[str, Any] = {
    "ids": {"tasks": {"local-17": "3f0a6c1e-52a7-5f0e-9a4b-1c2d3e4f5a6b"}},
    "cursor": None,
}

ERASE = {
    "records": [{"collection": "tasks", "id": "8f0c1d2e-3b4a-4c5d-8e6f-7a8b9c0d1e2f"}],
    "reason": "request 2026-117",
    "by": "data protection officer",
}
ERASURE_ANSWER: dict[str, Any] = {
    "dry_run": False,
    "records": [{**ERASE["records"][0], "events": 1, "seq": 43}],  # type: ignore[dict-item]
}

SKIP = {"seq": 42, "reason": "written past the service", "by": "on call"}
SKIPPED = {"seq": 42, "by_seq": 57}

GRANT = {"role": "device", "device": DEVICE, "name": "Anna's phone"}
TOKEN_ID = "0198a3c2-9d20-4f6b-8c11-5a4b3c2d1e0f"
TOKEN = {
    "id": TOKEN_ID,
    "role": "device",
    "device": DEVICE,
    "name": "Anna's phone",
    "granted_by": "admin token",
    "granted_at": "2026-11-23T08:55:00.000Z",
}
GRANTED = {
    "token": "foldlog_Zm9sZGxvZyBpcyBhIGxvZyB0aGF0IGZvbGRzLi4u",
    "spaces": [SPACE],
    **TOKEN,
}
CODE = "7K2QM-9XW4T-0HZ5B-C8RDP-N3V6J"
TOKEN_DIGEST = "d5c8f0a1b2e3948576a1b2c3d4e5f60718293a4b5c6d7e8f9a0b1c2d3e4f5061"
ISSUE_CODE = {"name": "Anna's phone"}
ISSUED_CODE = {
    "id": TOKEN_ID,
    "code": CODE,
    "name": "Anna's phone",
    "expires_at": "2026-11-23T09:55:00.000Z",
}
ENROL = {"code": CODE, "device": DEVICE, "digest": TOKEN_DIGEST}
TRADE = {"device": DEVICE, "digest": TOKEN_DIGEST}
TOKENS = {"tokens": [TOKEN], "cursor": None}
REVOKE = {"reason": "lost on a train", "by": "support"}
REVOKED_TOKEN = {
    **TOKEN,
    "revoked_at": "2026-12-01T10:00:00.000Z",
    "revoked_by": "support (admin token)",
    "revoked_reason": "lost on a train",
}
REGISTER = {"device": DEVICE, "name": "Anna's phone"}
REGISTERED_DEVICE = {
    "device": DEVICE,
    "counter": 7,
    "name": "Anna's phone",
    "registered_at": "2026-11-23T08:55:00.000Z",
    "last_seen": "2026-11-23T09:00:02.481Z",
}
DEVICES = {"devices": [REGISTERED_DEVICE], "cursor": None}
REVOKED_DEVICE = {**REGISTERED_DEVICE, "revoked_at": "2026-12-01T10:00:00.000Z"}

ROOT = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="
HASH = "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw="
INCLUSION_PROOF = {"log": LOG, "seq": 42, "size": 42, "root": ROOT, "inclusion_path": [HASH]}
EVENT_PROOF = {
    **INCLUSION_PROOF,
    "leaf_hash": HASH,
    "ops_hash": "3e544d0abc07a6a846aeea6e7b42fb8316e36cc88a03db5e9afb996430e991ac",
    "salt": "0ac5186a91863e8e1d90c808014aa89bf5da8e3ee1d9f07630f0378f68f1ab62",
    "event": EVENT,
}
CONSISTENCY_PROOF = {
    "log": LOG,
    "from": 41,
    "to": 42,
    "from_root": HASH,
    "to_root": ROOT,
    "consistency_path": [HASH],
}
KEYS = {
    "log": LOG,
    "keys": ["foldlog.local/spaces/family-list/0b7f6a52-3a0e-4a87-9d2b-6f1f0c3f3a11+0d4cf7a8+AQ=="],
}
EXPORT_HEADER = {"foldlog": "export", "version": 1, "space": SPACE, "log": LOG, "head": 42}
EXPORT_LINE = {"salt": EVENT_PROOF["salt"], "event": EVENT}
EXPORT_PROBLEM = {
    "problem": {
        "type": "/problems/log-incomplete",
        "title": "Events are missing in the log of this space; nothing was stored.",
        "status": 503,
        "detail": "the log of 'family-list' is incomplete: missing: seq 40",
        "code": "log-incomplete",
    }
}
