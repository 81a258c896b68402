"""Defines the operations that list, register and revoke devices."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from flask import Blueprint

from foldlog.api.http.access import Access
from foldlog.api.http.json_body import JsonBody
from foldlog.api.http.replies import Reply, json_reply
from foldlog.api.http.requests import Request
from foldlog.api.operation import operation
from foldlog.api.shapes import answers, examples
from foldlog.api.shapes.admin_bodies import RegisterBody, RevokeBody
from foldlog.api.shapes.queries import devices_query
from foldlog.domain.access import Caller, Device, Right
from foldlog.domain.errors import DeviceRevoked, UnknownSpace
from foldlog.domain.limits import Limits
from foldlog.domain.ports import Registry

from .problems import READ_PROBLEMS, WRITE_PROBLEMS
from .tokens import if_known, time_if_known


def devices_blueprint(registry: Registry, access: Access, limits: Limits) -> Blueprint:
    bp = Blueprint("devices", __name__)

    @bp.get("/v1/spaces/<space>/devices")
    @operation(
        Right.AUDIT,
        query=devices_query(limits),
        answer=answers.Devices,
        example=examples.DEVICES,
        problems=READ_PROBLEMS,
    )
    def devices(space: str, query: Mapping[str, Any]) -> Reply:
        """List the devices of a space, in the order of their ids.

        The list has every device that has pushed changesets, and every device that an admin has
        registered or revoked. To read the next page, repeat the request with the `cursor` of this
        page. On the last page `cursor` is null.
        """
        page = registry.devices_page(space, limit=query["limit"], cursor=query.get("cursor"))
        return json_reply(answers.Devices(list(map(rendered_device, page.items)), page.cursor))

    @bp.post("/v1/spaces/<space>/devices")
    @operation(
        Right.ADMIN,
        body=JsonBody(RegisterBody(), limits),
        body_example=examples.REGISTER,
        answer=answers.Device,
        example=examples.REGISTERED_DEVICE,
        problems=(*WRITE_PROBLEMS, DeviceRevoked),
    )
    def register_device(space: str, caller: Caller, body: dict[str, Any]) -> Reply:
        """Register a device, or change its name.

        The service stores a `device-registered` event in the log. You do not need this request for
        a device to which you grant a token, because the grant registers the device too. Devices
        that use tokens of the app's own sign-in can push without registration. If the space does
        not exist, the service creates it.
        """
        by = caller.attribution(body.get("by"))
        device = registry.register(space, body["device"], name=body.get("name"), by=by)
        return json_reply(rendered_device(device))

    @bp.post("/v1/spaces/<space>/devices/<device>/revoke")
    @operation(
        Right.ADMIN,
        body=JsonBody(RevokeBody(), limits),
        body_example=examples.REVOKE,
        answer=answers.Device,
        example=examples.REVOKED_DEVICE,
        problems=(*WRITE_PROBLEMS, UnknownSpace),
    )
    async def revoke_device(
        request: Request, space: str, device: str, caller: Caller, body: dict[str, Any]
    ) -> Reply:
        """Revoke a device permanently.

        The service then refuses every request of the device in this space, with any token, and ends
        the device's streams. The changesets of the device stay in the log. The response takes about
        a second, because it is sent when every process of the service refuses the device. A revoked
        device can be used again only with a new device id.
        """
        by = caller.attribution(body.get("by"))
        revoke = partial(registry.revoke_device, space, device, reason=body["reason"], by=by)
        try:
            revoked = await request.run_change(revoke)
        finally:
            await access.forget()  # also if the outcome of the revocation is unknown
        return json_reply(rendered_device(revoked))

    return bp


def rendered_device(device: Device) -> answers.Device:
    return answers.Device(
        device=device.device,
        counter=device.counter,
        name=if_known(device.name),
        registered_at=time_if_known(device.registered_at),
        last_seen=time_if_known(device.last_seen),
        revoked_at=time_if_known(device.revoked_at),
    )
