"""A push whose check would take gigabytes is refused as an event, and the other devices go on."""

from __future__ import annotations

import httpx

from foldlog.api.app import create_app
from foldlog.api.http.access import TokenAccess
from foldlog.domain.access import Grant, Role
from foldlog.domain.collections import TOO_MANY_STEPS, Proposal
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import LIMITS
from tests.helpers import A, B, a_token, changeset, new_id, put

from .conftest import SENT_AT
from .live import served


def test_a_hostile_push_is_refused_as_an_event(store):
    space = new_id()
    consts = [{"const": f"v{n}"} for n in range(900)]
    schema = {"properties": {"a": {"items": {"anyOf": consts}}}}
    store.define(space, "tasks", Proposal(JsonSchema.checked(schema, LIMITS)))
    headers = {}
    for device in (A, B):
        text, digest = a_token()
        store.grant(space, new_id(), digest, Grant(role=Role.DEVICE, device=device), None)
        headers[device] = {"Authorization": f"Bearer {text}"}
    access = TokenAccess(store, store)
    app = create_app(store=store, master=store, registry=store, ready=dict, access=access)
    with served(store, app=app) as here:
        spaces = f"{here.url}/v1/spaces/{space}"

        def verdict(device, made):
            body = {"device": device, "sent_at": SENT_AT, "changesets": [made]}
            answer = httpx.post(
                f"{spaces}/changesets",
                json=body,
                headers=headers[device],
                timeout=60,
            )
            assert answer.status_code == 200, answer.text
            return answer.json()["verdicts"][0]

        refused = verdict(A, changeset(put("x", a=["v"] * 50_000)))
        assert refused["verdict"] == "refused"
        assert refused["refusal"] == {"code": "schema", "detail": TOO_MANY_STEPS}
        assert verdict(B, changeset(put("y", a=["v1"])))["verdict"] == "stored"
        assert verdict(A, changeset(put("x", a=["v2"])))["verdict"] == "stored"
        page = httpx.get(f"{spaces}/events", headers=headers[B]).json()
    verdicts = [event.get("verdict") for event in page["events"]]
    assert verdicts[-3:] == ["refused", "stored", "stored"]
