"""What the API and the worker import from libraries. Only speed hangs on it: what is missing here, each imports by itself."""

# ruff: noqa: F401  # imported for the processes that are forked from this one

import alembic.command
import celery.apps.worker
import celery.bin.celery
import celery.concurrency.thread
import fastapi.openapi.utils
import fastapi.sse
import jinja2
import kombu.transport.redis
import limits.aio
import numpy
import opentelemetry.trace
import prometheus_client
import psycopg_pool
import rich.markdown
import s3fs
import safetensors
import scipy.stats
import sqlalchemy.dialects.postgresql.psycopg
import standardwebhooks
import structlog
import typer.rich_utils
import uvicorn.loops.auto
import uvicorn.protocols.http.auto
