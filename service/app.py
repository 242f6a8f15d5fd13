"""create_app(): routers, middleware, error handlers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from service import health
from service.audit.routes import router as audit
from service.body_limit import BodyLimit
from service.config import Settings, get_settings
from service.dials.routes import router as dials
from service.documentation import add_documentation
from service.erasures.routes import router as erasures
from service.errors import Problem, install_error_handlers
from service.examples.routes import router as examples
from service.forecasts.routes import router as forecasts
from service.idempotency import IdempotentReplay, replay_response
from service.imports.routes import router as imports
from service.keys.routes import router as keys
from service.metrics.http import RequestMetrics
from service.metrics.routes import router as metrics
from service.openapi import describe_problems
from service.registry.routes import router as registry
from service.reports.routes import router as reports
from service.request_context import RequestContext
from service.response_headers import ResponseHeaders
from service.security import warn_of_default_pepper
from service.storage.routes import router as storage
from service.tasks.routes import router as tasks
from service.tracing import configure_tracing, telemetry_of_requests
from service.updates.hub import get_hub
from service.updates.routes import router as updates
from service.version import VERSION
from service.web.routes import add_pages
from service.webhooks.routes import router as webhooks

DESCRIPTION = """
Palimpsest keeps a deployed model learning new tasks without losing the old ones.

Create a **model**, give it **tasks** with **examples**, and post **updates**. Every update yields an immutable
**version** scored on every task the model has learnt; a gate decides whether it becomes **champion**; a
**forgetting report** shows what was lost, down to the example; a **rollback** is one call.

Send `Authorization: Bearer plm_…` with every call under `/v1`. Errors are `application/problem+json`.
Every creating POST takes an `Idempotency-Key`. Every answer names its `X-Request-Id`, yours where you send one.
"""


def create_app() -> FastAPI:
    """Builds the API. Reads its settings from the environment; connects to nothing until asked."""
    configure_tracing("palimpsest-api")
    app = FastAPI(
        title="Palimpsest",
        version=VERSION,
        summary="Continual model updating: LoRA updates with replay, measured forgetting, gated promotion, one-call rollback",
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        separate_input_output_schemas=False,
        docs_url=None,  # served from here, see service/documentation.py
        redoc_url=None,
        telemetry=telemetry_of_requests(),
        lifespan=_lifespan,
    )
    _add_middleware(app, get_settings())
    install_error_handlers(app)
    app.add_exception_handler(IdempotentReplay, replay_response)
    app.include_router(health.router)
    app.include_router(metrics)
    # Routes are tried in this order: what pipelines ask for again and again comes first.
    for router in (
        reports,
        updates,
        registry,
        tasks,
        examples,
        erasures,
        imports,
        dials,
        forecasts,
        storage,
        keys,
        webhooks,
        audit,
    ):
        app.include_router(router, prefix="/v1")
    add_documentation(app)
    add_pages(app)
    describe_problems(app, Problem)
    return app


@asynccontextmanager
async def _lifespan(_app: FastAPI) -> AsyncIterator[None]:
    # Twice as many threads as turns: whoever holds a session finds one, and so do callers yet to be authenticated.
    current_default_thread_limiter().total_tokens = 2 * get_settings().database_pool_size
    warn_of_default_pepper()
    yield
    get_hub().close()


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=settings.max_json_body_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["ETag", "Location", "Idempotent-Replayed", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"],
        )  # fmt: skip
    app.add_middleware(ResponseHeaders)
    app.add_middleware(RequestMetrics)
    app.add_middleware(RequestContext)
