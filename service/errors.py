"""The ServiceError family and its one handler: every error leaves as `application/problem+json` (RFC 9457).

The body carries `type, title, status, detail, instance` plus a stable `code`, for validation `errors`,
and `error` for clients that expect the OpenAI shape.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from service.response_headers import safe_headers

PROBLEM_JSON = "application/problem+json"
HTTP_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
log = structlog.get_logger(__name__)


class ServiceError(Exception):
    """An expected failure with an HTTP status and a stable machine-readable code."""

    status = 500
    code = "internal_error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        param: str | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.param = param
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})


class BadRequest(ServiceError):
    """The request cannot be read."""

    status, code = 400, "bad_request"


class Unauthenticated(ServiceError):
    """No valid API key came with the request."""

    status, code = 401, "unauthenticated"


class Forbidden(ServiceError):
    """The key is valid but lacks the scope."""

    status, code = 403, "missing_scope"


class NotFound(ServiceError):
    """Nothing of that name belongs to this tenant."""

    status, code = 404, "not_found"


class Conflict(ServiceError):
    """The request contradicts the present state."""

    status, code = 409, "conflict"


class Gone(ServiceError):
    """What was asked for existed and was removed for good."""

    status, code = 410, "gone"


class PreconditionFailed(ServiceError):
    """`If-Match` names a revision that is no longer current."""

    status, code = 412, "precondition_failed"


class BodyTooLarge(ServiceError):
    """The request body is over the limit."""

    status, code = 413, "body_too_large"


class QuotaExceeded(ServiceError):
    """The tenant would store more than it may; waiting does not help, deleting does."""

    status, code = 413, "quota_exceeded"


class UnsupportedMediaType(ServiceError):
    """The body's content type or encoding is not one this call reads."""

    status, code = 415, "unsupported_media_type"


class Unprocessable(ServiceError):
    """The request is well formed but asks for something that cannot be."""

    status, code = 422, "unprocessable"


class TooManyRequests(ServiceError):
    """A limit on how much may wait at once is reached."""

    status, code = 429, "too_many_requests"


class Unavailable(ServiceError):
    """A part the service stands on does not answer; the request may be sent again."""

    status, code = 503, "unavailable"


class FieldError(BaseModel):
    """One invalid part of a request."""

    loc: list[str | int]
    msg: str
    type: str


class OpenAIError(BaseModel):
    """The same error in the shape OpenAI-style clients read."""

    message: str
    type: str
    param: str | None = None
    code: str


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str = Field(examples=["urn:palimpsest:problem:not_found"])
    title: str
    status: int
    detail: str
    instance: str
    code: str = Field(description="Stable machine-readable code", examples=["not_found"])
    request_id: str | None = Field(
        default=None, description="The request's `X-Request-Id`; the log's lines about it carry the same"
    )
    errors: list[dict[str, Any]] | None = Field(
        default=None, description="Validation only: what was wrong where"
    )
    error: OpenAIError


def problem_response(
    request: Request,
    *,
    status: int,
    code: str,
    detail: str,
    param: str | None = None,
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Builds the problem document for one failed request."""
    known = getattr(request.state, "request_id", None)
    body: dict[str, Any] = {
        "type": f"urn:palimpsest:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
        "code": code,
        "request_id": known,
        **(extra or {}),
        "error": {"message": detail, "type": "invalid_request_error" if status < 500 else "server_error",
                  "param": param, "code": code},
    }  # fmt: skip
    named = {**(headers or {}), **({"X-Request-Id": known} if known else {})}
    return JSONResponse(body, status_code=status, media_type=PROBLEM_JSON, headers=named)


def _service_error(request: Request, error: ServiceError) -> JSONResponse:
    return problem_response(
        request, status=error.status, code=error.code, detail=error.detail, param=error.param,
        extra=error.extra, headers=error.headers,
    )  # fmt: skip


def _validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    errors = [_field_error(item) for item in error.errors()]
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return problem_response(
        request, status=422, code="validation_error", detail=f"{where}: {first['msg']}{more}",
        param=where, extra={"errors": errors},
    )  # fmt: skip


def _field_error(item: Mapping[str, Any]) -> dict[str, Any]:
    # The input value stays out: it may be personal data, and it may not be JSON.
    return {"loc": [part if isinstance(part, int) else str(part) for part in item["loc"]],
            "msg": str(item["msg"]), "type": str(item["type"])}  # fmt: skip


def _http_exception(request: Request, error: HTTPException) -> JSONResponse:
    code = HTTP_CODES.get(error.status_code, "http_error")
    detail = {
        400: "The body could not be read as JSON: it is nested too deep, or is not UTF-8.",
        404: f"No such path: {request.url.path}. The API's paths are listed in /docs.",
        405: f"{request.method} is not allowed on {request.url.path}.",
    }.get(error.status_code, str(error.detail))
    return problem_response(
        request, status=error.status_code, code=code, detail=detail, headers=error.headers
    )


def _database_down(request: Request, error: Exception) -> JSONResponse:
    log.warning("database_unavailable", error=str(error).splitlines()[0])
    return problem_response(
        request, status=503, code="database_unavailable",
        detail="The database does not answer. Send the request again; where this one was carried out all the same, "
        "its Idempotency-Key keeps that from being done twice.",
        headers={"Retry-After": "5"},
    )  # fmt: skip


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return _database_down(request, error)
    log.error("unexpected_error", path=request.url.path, exc_info=error)
    return problem_response(
        request, status=500, code="internal_error",
        detail="An unexpected error occurred; it has been logged. Sending the request again is safe.",
        headers=safe_headers(request.url.path),  # this one answer is given outside of the middleware
    )  # fmt: skip


def install_error_handlers(app: FastAPI) -> None:
    """Makes every error of `app` a problem document."""
    app.add_exception_handler(ServiceError, _service_error)  # type: ignore[arg-type]  # Starlette types handlers for Exception
    app.add_exception_handler(RequestValidationError, _validation_error)  # type: ignore[arg-type]  # as above
    app.add_exception_handler(HTTPException, _http_exception)  # type: ignore[arg-type]  # as above
    app.add_exception_handler(OperationalError, _database_down)
    app.add_exception_handler(PoolTimeout, _database_down)
    app.add_exception_handler(Exception, _unexpected)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` entries for the given problem statuses."""
    return {
        status: {"description": HTTPStatus(status).phrase,
                 "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
        for status in statuses
    }  # fmt: skip


def field_errors(errors: Sequence[FieldError]) -> dict[str, Any]:
    """The `errors` member of a problem raised by the service's own validation."""
    return {"errors": [error.model_dump() for error in errors]}
