"""Defines the operations that list the collections of a space, read the schema of a collection, and
define a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from flask import Blueprint

from foldlog.api.http.json_body import JsonBody
from foldlog.api.http.replies import Reply, json_reply
from foldlog.api.operation import operation
from foldlog.api.shapes import examples
from foldlog.api.shapes.admin_bodies import DefineBody
from foldlog.api.shapes.answers import Collections, Definition
from foldlog.api.shapes.queries import CollectionQuery
from foldlog.domain.access import Caller, Right
from foldlog.domain.collections import Outcome, Proposal
from foldlog.domain.errors import (
    InvalidSchema,
    LimitExceeded,
    ProjectionBehind,
    SchemaNotAdditive,
    SchemaViolated,
    UnknownCollection,
    VersionConflict,
)
from foldlog.domain.json_schema import JsonSchema
from foldlog.domain.limits import Limits
from foldlog.domain.ports import EventStore

from .problems import READ_PROBLEMS, WRITE_PROBLEMS, Problems

DEFINE_PROBLEMS: Problems = (
    *WRITE_PROBLEMS,
    InvalidSchema,
    LimitExceeded,
    SchemaNotAdditive,
    SchemaViolated,
    VersionConflict,
    ProjectionBehind,
)


def collections_blueprint(store: EventStore, limits: Limits) -> Blueprint:
    bp = Blueprint("collections", __name__)

    @bp.get("/v1/spaces/<space>/collections")
    @operation(
        Right.READ,
        answer=Collections,
        example=examples.COLLECTIONS,
        problems=READ_PROBLEMS,
    )
    def collections(space: str) -> Reply:
        """List the defined collections.

        A collection is defined if it has a schema. The response has the number of the latest schema
        version of each defined collection. Records of all other collections may have any fields.
        """
        return json_reply(Collections(store.collections(space)))

    @bp.get("/v1/spaces/<space>/collections/<collection>")
    @operation(
        Right.READ,
        query=CollectionQuery(),
        answer=Definition,
        example=examples.COLLECTION,
        problems=(*READ_PROBLEMS, UnknownCollection),
    )
    def collection(space: str, collection: str, query: Mapping[str, Any]) -> Reply:
        """Read the schema of a collection.

        The response has the latest version of the schema, or the requested `version`. It also has a
        list of all versions.
        """
        definition, versions = store.collection(space, collection, query.get("version"))
        members = msgspec.structs.asdict(definition)
        return json_reply(Definition(**members, versions=versions))

    @bp.put("/v1/admin/spaces/<space>/collections/<collection>")
    @operation(
        Right.ADMIN,
        body=JsonBody(DefineBody(), limits),
        body_example=examples.DEFINING,
        answer=Outcome,
        example=examples.DEFINED,
        problems=DEFINE_PROBLEMS,
    )
    def define(space: str, collection: str, caller: Caller, body: dict[str, Any]) -> Reply:
        """Define the schema of a collection, or a new version of the schema.

        From then on, the service refuses changesets that violate the schema. A new version must
        allow everything that the previous version allowed, so that older versions of an app
        continue to work. If the schema equals the latest version, nothing is stored, and the
        response has the number of that version. With `dry_run`, the service stores nothing and only
        reports the problems of the new schema.
        """
        wanted = Proposal(
            JsonSchema.checked(body["schema"], limits),
            by=caller.attribution(body.get("by")),
            is_dry_run=body["dry_run"],
            force=body["force"],
            if_version=body.get("if_version"),
        )
        seconds_max = limits.schema_check_seconds_max
        return json_reply(store.define(space, collection, wanted, seconds_max=seconds_max))

    return bp
