"""Generates the OpenAPI document of the API. The sources are the routes of the Flask application,
and the `Operation` object of each route."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from flask import Flask
from marshmallow import fields
from werkzeug.routing import Rule

from foldlog import __version__
from foldlog.api.http.logging import path_template
from foldlog.api.http.problems import MEDIA_TYPE, InternalError, statuses_of
from foldlog.api.operation import Lines, Operation
from foldlog.api.shapes.answers import Problem
from foldlog.api.shapes.fields import CommaList
from foldlog.api.shapes.reading import PATH_PARAMETERS
from foldlog.domain.access import Right
from foldlog.domain.errors import (
    DeviceRevoked,
    FoldlogError,
    Forbidden,
    InvalidRequest,
    RateLimited,
    SignInUnavailable,
    StorageUnavailable,
    Unauthenticated,
)

from .answer_schemas import AnswerSchemas, shape_of
from .catalogue import example_of

ABOUT = """\
Offline apps queue changesets. This service stores each changeset as an immutable event, folds the \
events into the current records, and sends each device the events after the last one that the \
device saw.

Every error is a problem document (RFC 9457) with a stable `code`. The service refuses unknown \
members and parameters of a request. Clients must ignore unknown members of a response. Request \
bodies may be compressed with gzip or zstd.\
"""

TAGS = {
    "sync": "Send changesets, and receive new events.",
    "events": "The log: every event, in order.",
    "snapshot": "The start of a new device, without the whole log.",
    "records": "The master table: the current records.",
    "collections": "The schemas of the records.",
    "history": "Past states, and the changes of each device.",
    "erasure": "For an admin: erase values, as a person's right.",
    "tokens": "For an admin: the rights of callers.",
    "enrolment": "How a new device gets its token.",
    "devices": "For an admin: the devices of a space.",
    "skipping": "For an admin: skip an event that cannot be folded.",
    "proofs": "The proofs of the log: checkpoints, tiles, proofs of events.",
    "witness": "Cosign the checkpoints of other logs.",
    "meta": "The service itself.",
}


TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "description": "A granted token, or a JWT of the app's own sign-in. Each operation names the "
    "right that the token must give.",
}


class _Converter(OpenAPIConverter):
    def schema2jsonschema(self, schema: Any) -> dict[str, Any]:
        described: dict[str, Any] = super().schema2jsonschema(schema)  # type: ignore[no-untyped-call]
        return {"description": (type(schema).__doc__ or "").strip(), **described}


class _Plugin(MarshmallowPlugin):
    Converter = _Converter


def openapi_document(app: Flask) -> dict[str, Any]:
    plugin = _Plugin(schema_name_resolver=_component_name)
    spec = APISpec(
        title="Foldlog",
        version=__version__,
        openapi_version="3.1.0",
        plugins=[plugin],
        info={"description": ABOUT, "license": {"name": "MIT", "identifier": "MIT"}},
        servers=[{"url": "/"}],
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    spec.components.security_scheme("token", TOKEN)
    assert plugin.converter is not None
    plugin.converter.add_parameter_attribute_function(_by_comma)
    answers = AnswerSchemas()
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        view = app.view_functions[rule.endpoint]
        assert isinstance(view, Operation), f"{rule.rule} is not an operation"
        (method,) = (rule.methods or set()) - {"HEAD", "OPTIONS"}
        described = _operation(view, rule, plugin.converter, answers)
        spec.path(path_template(rule.rule), operations={method.lower(): described})
    # A problem has further members, which its code decides.
    answers.components["Problem"]["additionalProperties"] = True
    for name, component in answers.components.items():
        spec.components.schema(name, component)
    return spec.to_dict()


def _operation(
    view: Operation, rule: Rule, converter: OpenAPIConverter, answers: AnswerSchemas
) -> dict[str, Any]:
    path = {name: field for name, field in PATH_PARAMETERS.items() if name in rule.arguments}
    described: dict[str, Any] = {
        "operationId": view.__name__,
        "tags": [rule.endpoint.partition(".")[0]],
        "summary": view.summary.rstrip("."),
        "description": view.description,
        "parameters": [
            *_parameters(path, "path", converter),
            *_parameters(view.query.fields, "query", converter),
        ],
        "responses": {"200": _answer(view, answers), **_refusals(_problems(view), answers)},
    }
    if view.right is not Right.PUBLIC:
        described["security"] = [{"token": [view.right.value]}]
    if view.body is not None:
        content = {"schema": view.body.schema, "example": view.body_example}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    return described


def _parameters(
    described: Mapping[str, fields.Field[Any]], location: str, converter: OpenAPIConverter
) -> list[dict[str, Any]]:
    return [
        converter._field2parameter(field, name=field.data_key or name, location=location)
        | ({"required": True} if location == "path" else {})
        for name, field in described.items()
    ]


def _component_name(schema: Any) -> str:
    kind: type[Any] = schema if isinstance(schema, type) else type(schema)
    return kind.__name__.removesuffix("Schema")


def _answer(view: Operation, answers: AnswerSchemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if isinstance(view.answer, Lines):
        # OpenAPI 3.1 cannot describe a sequence of documents, so the schema describes one line.
        kinds = view.answer.kinds
        content["schema"] = {"oneOf": [answers.reference(kind) for kind, _ in kinds.values()]}
        content["examples"] = {name: {"value": example} for name, (_, example) in kinds.items()}
        return {"description": view.answer.about, "content": {view.media_type: content}}
    if view.answer is not None:
        content["schema"] = answers.reference(view.answer)
    if view.example is not None:
        content["example"] = view.example
    text = shape_of(view.answer).about if view.answer is not None else view.summary
    return {"description": text, "content": {view.media_type: content}}


def _problems(view: Operation) -> tuple[type[FoldlogError], ...]:
    if view.right is Right.PUBLIC:
        return view.problems
    of_access = (Unauthenticated, Forbidden, DeviceRevoked, SignInUnavailable, StorageUnavailable)
    return tuple(dict.fromkeys((*of_access, *view.problems)))


def _refusals(problems: Iterable[type[FoldlogError]], answers: AnswerSchemas) -> dict[str, Any]:
    refusals: list[type[FoldlogError]] = [InvalidRequest, *problems, RateLimited, InternalError]
    by_status: dict[HTTPStatus, list[type[FoldlogError]]] = {}
    for error in refusals:
        for status in statuses_of(error):
            by_status.setdefault(status, []).append(error)
    return {
        str(status.value): {
            "description": ", ".join(f"`{error.code}`" for error in errors),
            "content": {
                MEDIA_TYPE: {
                    "schema": answers.reference(Problem),
                    "examples": {
                        error.code: {"value": example_of(error, status)} for error in errors
                    },
                }
            },
        }
        for status, errors in sorted(by_status.items())
    }


def _by_comma(_: Any, field: fields.Field[Any], **__: Any) -> dict[str, Any]:
    return {"explode": False, "style": "form"} if isinstance(field, CommaList) else {}
