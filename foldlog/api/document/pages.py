"""Renders the HTML pages for people: the API reference at `/docs`, and one page for each problem.

Each page is a single file and loads nothing else, so it also works in a network without access to
the internet.
"""

from __future__ import annotations

import json
import re
from typing import Any

from flask import Blueprint
from jinja2 import Environment
from markupsafe import Markup, escape

_REF = "#/components/schemas/"


def register_filters(bp: Blueprint) -> None:
    """Registers the filters that the HTML templates use. Their names begin with `foldlog_`, to
    avoid conflicts with the filters of other applications."""
    bp.add_app_template_filter(_prose, "foldlog_prose")
    bp.add_app_template_filter(_pretty, "foldlog_pretty")
    bp.add_app_template_filter(_type_of, "foldlog_type")


def docs_page(
    templates: Environment, document: dict[str, Any], problems: list[dict[str, Any]]
) -> str:
    operations = [
        {"method": method.upper(), "path": path, **described}
        for path, methods in document["paths"].items()
        for method, described in methods.items()
    ]
    return templates.get_template("docs.html").render(
        document=document,
        groups=[
            (tag, [op for op in operations if tag["name"] in op["tags"]])
            for tag in document["tags"]
        ],
        problems=problems,
    )


def problem_page(templates: Environment, problem: dict[str, Any]) -> str:
    return templates.get_template("problem.html").render(problem=problem)


def _prose(text: str) -> Markup:
    """Converts plain text to HTML: text in backticks becomes a `<code>` element, and an empty line
    starts a new paragraph."""
    if not text:
        return Markup("")
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    # The text was escaped above, and only these tags were added.
    return Markup("".join(f"<p>{part}</p>" for part in marked.split("\n\n")))  # noqa: S704


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _type_of(schema: dict[str, Any]) -> Markup:
    """Returns a short HTML text for the type of a JSON Schema, for example `array of string`. If
    the schema is a `$ref`, the text is a link to the description of the referenced schema."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return Markup('<a href="#schema-{0}">{0}</a>').format(name)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return Markup(" or ").join(_type_of(part) for part in schema[several])
    if "enum" in schema:
        return Markup(" or ").join(
            Markup("<code>{}</code>").format(json.dumps(value)) for value in schema["enum"]
        )
    kind = schema.get("type", "any value")
    kinds = kind if isinstance(kind, list) else [kind]
    return Markup(" or ").join(_named_type(name, schema) for name in kinds)


def _named_type(name: str, schema: dict[str, Any]) -> Markup:
    if name == "array":
        return Markup("array of ") + _type_of(schema.get("items", {}))
    if name == "object" and schema.get("additionalProperties"):
        return Markup("object of ") + _type_of(schema["additionalProperties"])
    return escape(
        f"{name} ({schema['format']})" if name == "string" and "format" in schema else name
    )
