"""The API's documentation as one HTML page, written from the OpenAPI document: no script, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from pathlib import Path
from typing import Any

from keystile.api.answers import Reply

Schema = dict[str, Any]

_STYLE = (Path(__file__).parent / "page.css").read_text()
_PLACE = re.compile(r"\{(\w+)\}")
_CODE = re.compile(r"`([^`]+)`")
_WORDS = {
    "default": "default",
    "pattern": "pattern",
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "minLength": "shortest",
    "maxLength": "longest",
    "minItems": "fewest",
    "maxItems": "most",
}
"""What JSON Schema calls a rule, and what people do."""
_METHODS = ("get", "post", "patch", "delete")


def reply(document: Schema) -> Reply:
    """The page, ready to send."""
    style = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    headers = {
        "content-type": "text/html; charset=utf-8",
        "cache-control": "no-cache",
        "content-security-policy": (
            f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        ),
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Reply(200, headers, html(document).encode())


def html(document: Schema) -> str:
    """The page of a document."""
    info = document["info"]
    operations = [
        (method, path, item[method])
        for path, item in document["paths"].items()
        for method in _METHODS
        if method in item
    ]
    tags = [tag["name"] for tag in document["tags"]]
    menu = "".join(
        f"<h2>{escape(tag)}</h2><ul>"
        + "".join(
            f'<li><a href="#{escape(row["operationId"])}">{escape(row["summary"])}</a></li>'
            for _, _, row in operations
            if tag in row["tags"]
        )
        + "</ul>"
        for tag in tags
    )
    body = "".join(_operation(method, path, row) for method, path, row in operations)
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f"<nav><p class=brand>{escape(info['title'])} <small>{escape(info['version'])}</small></p>{menu}"
        '<h2>values</h2><ul><li><a href="#values">Schemas</a></li>'
        '<li><a href="openapi.json">openapi.json</a></li></ul></nav>'
        f"<main><h1>The {escape(info['title'])} API</h1><p class=lead>{_prose(info['summary'])}</p>"
        f"<p>{_prose(info['description'])}</p>{body}<h1 id=values>Values</h1>{schemas}</main></body></html>"
    )


def _operation(method: str, path: str, row: Schema) -> str:
    body = row.get("requestBody")
    said = f"<h4>Body</h4><p>{_type(_content(body))}</p>" if body else ""
    parameters = "".join(
        f"<tr><td><code>{escape(item['name'])}</code><td>{escape(item['in'])}<td>{_type(item['schema'])}"
        f"<td>{_prose(item['description'])}{_rules(item['schema'])}</tr>"
        for item in row["parameters"]
    )
    if parameters:
        parameters = f"<h4>Parameters</h4><table>{parameters}</table>"
    answers = "".join(
        f"<tr><td><b>{status}</b><td>{_type(_content(answer))}<td>{_prose(answer['description'])}</tr>"
        for status, answer in row["responses"].items()
    )
    return (
        f'<section id="{escape(row["operationId"])}"><h3>{escape(row["summary"])}</h3>'
        f"<p class=route><span class={method}>{method.upper()}</span> <code>{escape(path)}</code></p>"
        f"{_about(row)}{parameters}{said}<pre><code>{escape(_curl(method, path, body))}</code></pre>"
        f"<details><summary>Answers</summary><table>{answers}</table></details></section>"
    )


def _schema(name: str, schema: Schema) -> str:
    needed = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code>{' <i>needed</i>' if field in needed else ''}<td>{_type(of)}"
        f"<td>{_prose(_described(of))}{_rules(of)}</tr>"
        for field, of in schema.get("properties", {}).items()
    )
    values = ", ".join(f"<code>{escape(str(value))}</code>" for value in schema.get("enum", ()))
    about = _prose(schema.get("description", ""))
    return (
        f'<section id="{escape(name)}"><h3>{escape(name)}</h3><p>{about} {values}</p>'
        f"{f'<table>{rows}</table>' if rows else ''}</section>"
    )


def _about(row: Schema) -> str:
    """What the summary does not say already."""
    more = str(row["description"]).removeprefix(str(row["summary"])).removeprefix(".").strip()
    return f"<p>{_prose(more)}</p>" if more else ""


def _prose(text: str) -> str:
    """Text with its `code` marked."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _rules(schema: Schema) -> str:
    """Default and limits of a value, wherever in its choices they stand."""
    choices = [schema, *schema.get("anyOf", ())]
    found = [
        f"{said} <code>{escape(json.dumps(choice[word], ensure_ascii=False).strip(chr(34)))}</code>"
        for choice in choices
        for word, said in _WORDS.items()
        if choice.get(word) is not None
    ]
    return f" <small>{', '.join(found)}</small>" if found else ""


def _curl(method: str, path: str, body: Schema | None) -> str:
    """The call, as it is typed on the gateway's own machine."""
    lines = [f"curl -X {method.upper()}" if method != "get" else "curl"]
    lines[0] += " http://127.0.0.1:8080" + _PLACE.sub(lambda place: place[1].upper(), path)
    lines.append('  -H "Authorization: Bearer $KEYSTILE_API_KEY"')
    if body:
        lines.append('  -H "Content-Type: application/json" -d @body.json')
    return " \\\n".join(lines)


def _content(holder: Schema) -> Schema:
    """What a body or an answer holds; of a success, what stands in `data`."""
    schema: Schema = holder.get("content", {}).get("application/json", {}).get("schema", {})
    return schema.get("properties", {}).get("data", schema)


def _described(schema: Schema) -> str:
    if "description" in schema:
        return str(schema["description"])
    return next((_described(choice) for choice in schema.get("anyOf", ()) if _described(choice)), "")


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if "allOf" in schema:
        return " and ".join(_type(choice) for choice in schema["allOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    kind = schema.get("format") or schema.get("type") or ""
    return escape(kind if isinstance(kind, str) else " or ".join(kind))
