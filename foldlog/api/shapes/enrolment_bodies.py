"""Defines the schemas of the bodies with which a device enrols or trades its token."""

from __future__ import annotations

from marshmallow import fields
from marshmallow.validate import Length

from .bodies import Body
from .fields import about, device_id

#: a code with separators, as people type it
TYPED_LENGTH_MAX = 100


class TradeBody(Body):
    """The body of a request to trade a token: the new device, and the digest of its token."""

    device = device_id(required=True)
    digest = fields.String(
        required=True,
        metadata=about(
            "The SHA-256 digest of the token that the device has made, in hex. The token is a text "
            "of ASCII characters with at least 128 random bits.",
            pattern="^[0-9a-f]{64}$",  # checked by `claim_of`
        ),
    )


class EnrolBody(TradeBody):
    """The body of a request to enrol: the code, the device, and the digest of its token."""

    code = fields.String(
        required=True,
        validate=Length(1, TYPED_LENGTH_MAX),
        metadata=about("The enrolment code. Case, hyphens and spaces are ignored."),
    )
