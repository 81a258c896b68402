"""Defines the operations that grant, list and revoke tokens."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from flask import Blueprint
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict

from foldlog.api.http.access import Access
from foldlog.api.http.json_body import JsonBody
from foldlog.api.http.replies import Reply, json_reply
from foldlog.api.http.requests import Request
from foldlog.api.operation import operation
from foldlog.api.shapes import answers, examples
from foldlog.api.shapes.admin_bodies import RevokeBody, grant_body
from foldlog.api.shapes.queries import tokens_query
from foldlog.domain.access import TOKEN_BYTES, Caller, Grant, Right, Role, Token, new_token
from foldlog.domain.errors import (
    DeviceRevoked,
    Forbidden,
    SpaceImporting,
    StorageUnavailable,
    UnknownSpace,
    UnknownToken,
)
from foldlog.domain.limits import Limits
from foldlog.domain.ports import Registry
from foldlog.domain.times import format_time, to_ms

from .problems import WRITE_PROBLEMS


def tokens_blueprint(registry: Registry, access: Access, limits: Limits) -> Blueprint:
    bp = Blueprint("tokens", __name__)

    @bp.post("/v1/admin/spaces/<space>/tokens")
    @operation(
        Right.ADMIN,
        body=JsonBody(grant_body(limits), limits),
        body_example=examples.GRANT,
        answer=answers.Granted,
        example=examples.GRANTED,
        problems=(*WRITE_PROBLEMS, DeviceRevoked),
    )
    def grant_token(space: str, caller: Caller, body: dict[str, Any]) -> Reply:
        """Grant a token.

        The token is valid in this space, and in the spaces that `also` lists. Only an admin of
        every space may use `also`. Keep the secret of the token: only this response contains it,
        because the service stores only a hash of it.

        The service stores a `token-granted` event in the log of each space, and a
        `device-registered` event if the device is new. If a space does not exist, the service
        creates it. If the grant fails in one of the spaces, nothing is stored in any of them.
        """
        spaces = list(dict.fromkeys([space, *body["also"]]))
        if len(spaces) > 1 and not caller.is_of_every_space:
            raise Forbidden("only an admin of every space may grant a token for several spaces")
        grant = Grant(
            role=Role(body["role"]),
            device=body.get("device"),
            name=body.get("name"),
            expires_at=None if body.get("expires_at") is None else to_ms(body["expires_at"]),
        )
        id, (text, digest) = str(uuid.uuid4()), new_token(secrets.token_bytes(TOKEN_BYTES))
        by = caller.attribution(body.get("by"))
        [token, *_] = registry.grant_all(spaces, id, digest, grant, by)
        return json_reply(
            answers.Granted(**asdict(rendered_token(token)), token=text, spaces=spaces)
        )

    @bp.get("/v1/admin/spaces/<space>/tokens")
    @operation(
        Right.AUDIT,
        query=tokens_query(limits),
        answer=answers.Tokens,
        example=examples.TOKENS,
        problems=(SpaceImporting, StorageUnavailable),
    )
    def tokens(space: str, query: Mapping[str, Any]) -> Reply:
        """List the tokens of this space, in the order of their grants.

        The list includes revoked tokens. Tokens that are valid in every space are left out, because
        they belong to the operator of the service. To read the next page, repeat the request with
        the `cursor` of this page. On the last page `cursor` is null.
        """
        page = registry.tokens_page(space, limit=query["limit"], cursor=query.get("cursor"))
        return json_reply(answers.Tokens(list(map(rendered_token, page.items)), page.cursor))

    @bp.post("/v1/admin/spaces/<space>/tokens/<token>/revoke")
    @operation(
        Right.ADMIN,
        body=JsonBody(RevokeBody(), limits),
        body_example=examples.REVOKE,
        answer=answers.Token,
        example=examples.REVOKED_TOKEN,
        problems=(*WRITE_PROBLEMS, UnknownSpace, UnknownToken),
    )
    async def revoke_token(
        request: Request, space: str, token: str, caller: Caller, body: dict[str, Any]
    ) -> Reply:
        """Revoke a token in this space.

        The service then refuses the token in this space and ends the streams that use it. The
        response takes about a second, because it is sent when every process of the service refuses
        the token. If you repeat the request, the token stays revoked.
        """
        by = caller.attribution(body.get("by"))
        revoke = partial(registry.revoke_token, space, token, reason=body["reason"], by=by)
        try:
            revoked = await request.run_change(revoke)
        finally:
            await access.forget()  # also if the outcome of the revocation is unknown
        return json_reply(rendered_token(revoked))

    return bp


def rendered_token(token: Token) -> answers.Token:
    return answers.Token(
        id=token.id,
        role=token.role,
        device=if_known(token.device),
        name=if_known(token.name),
        granted_by=if_known(token.granted_by),
        revoked_by=if_known(token.revoked_by),
        revoked_reason=if_known(token.revoked_reason),
        granted_at=format_time(token.granted_at),
        expires_at=time_if_known(token.expires_at),
        revoked_at=time_if_known(token.revoked_at),
    )


def if_known(text: str | None) -> str | UnsetType:
    return UNSET if text is None else text


def time_if_known(ms: int | None) -> str | UnsetType:
    return UNSET if ms is None else format_time(ms)
