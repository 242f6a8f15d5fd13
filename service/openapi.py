"""What FastAPI leaves out of the OpenAPI document: every problem a call can answer with."""

import json
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.errors import problem_responses

ANY_CALL = (400, 401, 403, 404, 413, 415, 422, 429, 500, 503)
METHODS = {"get", "put", "post", "delete", "patch"}


def describe_problems(app: FastAPI, problem: type[BaseModel]) -> None:
    """Makes `app.openapi()` list the problem responses of every call under /v1."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(app, problem)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the documented way to extend the document


def _complete(app: FastAPI, problem: type[BaseModel]) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description,
        routes=app.routes, license_info=app.license_info,
    )  # fmt: skip
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    own = problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(own.pop("$defs", {}))
    schemas[problem.__name__] = own
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method in METHODS:
                _describe(path, method, operation)
    return document


def _describe(path: str, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    if not path.startswith("/v1"):
        return
    statuses = [status for status in ANY_CALL if not (method == "get" and status in (413, 415))]
    if method in {"post", "put", "patch", "delete"}:
        statuses.append(409)
    for status, response in problem_responses(*statuses).items():
        responses.setdefault(str(status), response)


def main() -> None:
    """Writes the OpenAPI document to `docs/openapi.json`, or to the path given."""
    from service.app import create_app  # the app imports this module

    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "openapi.json"
    target.write_text(json.dumps(create_app().openapi(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
