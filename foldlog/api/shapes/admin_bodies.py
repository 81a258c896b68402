"""Defines the schemas of the request bodies of admin operations. A body with an unknown member is
refused."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields
from marshmallow.validate import Length, OneOf, Regexp

from foldlog.domain.access import NAME_LENGTH_MAX, Role
from foldlog.domain.limits import Limits
from foldlog.domain.names import BY_LENGTH_MAX, REASON_LENGTH_MAX, UNPRINTABLE

from .bodies import Body, values
from .fields import (
    Flag,
    MomentField,
    Whole,
    about,
    collection_name,
    device_id,
    record_id,
    space_name,
)


def _line(text: str, length_max: int, **kwargs: Any) -> fields.String:
    """Returns a field for one line of text.

    The field itself does not check the text; the domain does this later with `check_text`. The JSON
    Schema keywords only describe that check in the OpenAPI document.
    """
    keywords = {
        "minLength": 1,
        "maxLength": length_max,
        "pattern": rf"^[^{UNPRINTABLE}]*[^\s{UNPRINTABLE}][^{UNPRINTABLE}]*$",
    }
    return fields.String(metadata=about(text, **keywords), **kwargs)


def _reason() -> fields.String:
    text = "The reason. It stays in the log permanently, so name no person."
    return _line(text, REASON_LENGTH_MAX, required=True)


def _name() -> fields.String:
    return _line("A name for people. It stays in the log permanently.", NAME_LENGTH_MAX)


class _Signed(Body):
    by = _line(
        "The person or program that decided this. It stays in the log, next to the caller.",
        BY_LENGTH_MAX,
    )


class DefineBody(Body):
    """The body of a request that defines a schema: the schema for a collection's records, and
    options such as `dry_run`."""

    schema = fields.Dict(required=True, metadata=about("JSON Schema, draft 2020-12, of `fields`."))
    dry_run = Flag(load_default=False, metadata=about("Report the result, and store nothing."))
    force = Flag(
        load_default=False,
        metadata=about(
            "Define it although it may refuse changesets that were allowed, or stored records "
            "that do not fit."
        ),
    )
    if_version = Whole(metadata=about("Refuse unless this is the present version; 0: none."))
    by = fields.String(
        validate=[Length(1, 200), Regexp(r"[^\x00-\x1f\x7f]+\Z")],
        metadata=about("The person or program that defines it."),
    )


class SkipBody(_Signed):
    """The body of a request to skip an event: the seq of the event, and the reason for the skip."""

    seq = Whole(1, required=True, metadata=about("The event at which the master table is halted."))
    reason = _reason()


def grant_body(limits: Limits) -> Schema:
    class GrantBody(_Signed):
        """The body of a request to grant a token: the role of the new token and its other
        properties."""

        role = fields.String(required=True, validate=OneOf([role.value for role in Role]))
        device = device_id(
            metadata=about("Of the role `device`: the device that the token may write as.")
        )
        name = _name()
        expires_at = MomentField(metadata=about("The time at which the token expires, if any."))
        also = fields.List(
            space_name(),
            validate=Length(max=limits.token_spaces_max),
            load_default=list,
            metadata=about(
                "More spaces that the token is for. Only an admin of every space may name them."
            ),
        )

    return GrantBody()


class IssueCodeBody(_Signed):
    """The body of a request to issue an enrolment code: the name of the device, and the time at
    which the code expires."""

    name = _name()
    expires_at = MomentField(
        metadata=about("The time at which the code expires: within 30 days. Default: in an hour.")
    )


class RegisterBody(_Signed):
    """The body of a request to register a device: the id of the device, and its name."""

    device = device_id(required=True)
    name = _name()


class RevokeBody(_Signed):
    """The body of a request to revoke a device or a token: the reason for the revocation."""

    reason = _reason()


def erase_body(limits: Limits) -> Schema:
    class NamedRecord(Body):
        """The collection and the id of a record to erase."""

        collection = collection_name(required=True)
        id = record_id(required=True)

    class EraseBody(_Signed):
        """The body of a request to erase records. It names records in `records`, or selects records
        by their values with `collection` and `where`, or does both."""

        records = fields.List(
            fields.Nested(NamedRecord),
            validate=Length(1, limits.erase_records_max),
            load_default=list,
        )
        collection = collection_name(metadata=about("The collection of the records in `where`."))
        where = values(
            "Fields and values. It selects each record with an operation that has all of them.",
            {"minProperties": 1, "maxProperties": limits.fields_per_operation_max},
            validate=Length(1, limits.fields_per_operation_max),
            load_default=dict,
        )
        reason = _reason()
        dry_run = Flag(load_default=False, metadata=about("List the records, and erase nothing."))

    return EraseBody()
