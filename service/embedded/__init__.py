"""Postgres, Valkey, the API and the workers as child processes of one launcher, in one state folder."""

from service.embedded.errors import EmbeddedError
from service.embedded.postgres import PostgresServer
from service.embedded.stack import Stack
from service.embedded.valkey import ValkeyServer

__all__ = ["EmbeddedError", "PostgresServer", "Stack", "ValkeyServer"]
