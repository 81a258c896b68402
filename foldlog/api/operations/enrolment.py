"""Defines the operations by which a device gets its token: with a code, or for an earlier token."""

from __future__ import annotations

import secrets
import time
import uuid
from functools import partial
from typing import Any

from flask import Blueprint

from foldlog.api.http.access import token_of
from foldlog.api.http.json_body import JsonBody
from foldlog.api.http.replies import Reply, json_reply
from foldlog.api.http.requests import Request
from foldlog.api.operation import operation
from foldlog.api.shapes import answers, examples
from foldlog.api.shapes.admin_bodies import IssueCodeBody
from foldlog.api.shapes.enrolment_bodies import EnrolBody, TradeBody
from foldlog.domain.access import Caller, Right, digest_of
from foldlog.domain.enrolment import (
    CODE_BYTES,
    CODE_SECONDS,
    Enrolment,
    claim_of,
    digest_of_code,
    new_code,
)
from foldlog.domain.errors import DeviceRevoked, DeviceTaken, EnrolmentRefused, RateLimited
from foldlog.domain.limits import Limits
from foldlog.domain.ports import Registry
from foldlog.domain.times import format_time, to_ms

from .problems import WRITE_PROBLEMS
from .tokens import if_known, rendered_token


def enrolment_blueprint(registry: Registry, limits: Limits) -> Blueprint:
    bp = Blueprint("enrolment", __name__)

    @bp.post("/v1/admin/spaces/<space>/enrolments")
    @operation(
        Right.ADMIN,
        body=JsonBody(IssueCodeBody(), limits),
        body_example=examples.ISSUE_CODE,
        answer=answers.IssuedCode,
        example=examples.ISSUED_CODE,
        problems=WRITE_PROBLEMS,
    )
    def issue_code(space: str, caller: Caller, body: dict[str, Any]) -> Reply:
        """Issue an enrolment code.

        Give the code to the user of one new device. The device claims it with `POST .../enrol`, and
        gets a token of the role `device`. Only this response contains the code, because the service
        stores only a hash of it. Until a device claims it, the log stays unchanged.
        """
        now_ms = time.time_ns() // 1_000_000
        expires_at = body.get("expires_at")
        enrolment = Enrolment(
            id=str(uuid.uuid4()),
            name=body.get("name"),
            issued_at=now_ms,
            issued_by=caller.attribution(body.get("by")),
            expires_at=now_ms + CODE_SECONDS * 1_000 if expires_at is None else to_ms(expires_at),
        )
        code, digest = new_code(secrets.token_bytes(CODE_BYTES))
        registry.issue_code(space, digest, enrolment)
        return json_reply(
            answers.IssuedCode(
                id=enrolment.id,
                code=code,
                name=if_known(enrolment.name),
                expires_at=format_time(enrolment.expires_at),
            )
        )

    @bp.post("/v1/spaces/<space>/enrol")
    @operation(
        Right.PUBLIC,
        body=JsonBody(EnrolBody(), limits),
        body_example=examples.ENROL,
        answer=answers.Token,
        example=examples.TOKEN,
        problems=(*WRITE_PROBLEMS, EnrolmentRefused, DeviceTaken, DeviceRevoked, RateLimited),
    )
    async def enrol(request: Request, space: str, body: dict[str, Any]) -> Reply:
        """Enrol a device with a code.

        The device makes the secret of its token by itself, saves it, and sends its SHA-256 digest
        with the code. From then on it sends the secret as its token. The service stores a
        `device-registered` event and a `token-granted` event.

        A device that got no answer sends the same request again, and gets the same answer. Every
        other use of the code is refused. Requests with wrong codes have the same rate limit as
        requests with wrong tokens.
        """
        request.rates.check_unknown_caller(request.subject)
        claim = claim_of(body["device"], body["digest"])
        try:
            code = digest_of_code(body["code"])
            token = await request.run_change(partial(registry.enrol, space, code, claim))
        except EnrolmentRefused:
            request.rates.count_wrong_token(request.subject)
            raise
        return json_reply(rendered_token(token))

    @bp.post("/v1/spaces/<space>/trade")
    @operation(
        Right.WRITE,
        body=JsonBody(TradeBody(), limits),
        body_example=examples.TRADE,
        answer=answers.Token,
        example=examples.TOKEN,
        problems=(*WRITE_PROBLEMS, EnrolmentRefused, DeviceTaken, DeviceRevoked),
    )
    async def trade(request: Request, space: str, body: dict[str, Any]) -> Reply:
        """Trade a token for one of another device id.

        A device must take another id if a copy of its file uses the old one (`device-forked`). It
        sends this request with the token of the old id, which stays valid for the other copy. A
        token can be traded once. The events and the repetition are those of `POST .../enrol`.
        """
        claim = claim_of(body["device"], body["digest"])
        earlier = digest_of(token_of(request))
        token = await request.run_change(partial(registry.trade, space, earlier, claim))
        return json_reply(rendered_token(token))

    return bp
