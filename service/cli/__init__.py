"""The palimpsest command: what operators run, and a client of the HTTP API."""

from service.cli.durations import parse_duration
from service.cli.root import app, main

__all__ = ["app", "main", "parse_duration"]
