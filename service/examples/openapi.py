"""The ingest call's request bodies in the OpenAPI document: FastAPI cannot infer them, since it never parses them."""

from typing import Any

from pydantic import BaseModel

from service.examples.bodies import JSON, NDJSON
from service.examples.schemas import ExampleCreate, ExamplesCreate

NDJSON_EXAMPLE = (
    '{"text": "where is my money", "label": "refund"}\n'
    '{"id": "ticket-8841", "text": "it never arrived", "label": "delivery", "subject": "customer-17"}\n'
)
JSON_EXAMPLE = {"examples": [{"text": "where is my money", "label": "refund"}]}


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    resolved = _without_references(schema, definitions)
    assert isinstance(resolved, dict)  # noqa: S101  # an object schema
    return resolved


def _without_references(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_without_references(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _without_references(definitions[node["$ref"].rsplit("/", 1)[1]], definitions)
    return {key: _without_references(value, definitions) for key, value in node.items()}


INGEST_BODY: dict[str, Any] = {
    "required": True,
    "description": "Rows, one JSON object per line, or a small JSON document. UTF-8.",
    "content": {
        NDJSON: {
            "schema": {
                "type": "string",
                "description": "One row per line",
                "contentMediaType": NDJSON,
                "contentSchema": _inlined(ExampleCreate),
            },
            "example": NDJSON_EXAMPLE,
        },
        JSON: {"schema": _inlined(ExamplesCreate), "example": JSON_EXAMPLE},
    },
}
