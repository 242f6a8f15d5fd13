"""A collector for tests: an HTTP server that takes OTLP and keeps the spans."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """What arrived, and where to send it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.spans: list[Span] = []
        self.resources: list[dict[str, object]] = []
        self.paths: set[str] = set()

    def take(self, path: str, body: bytes) -> None:
        """Keeps one request's spans."""
        self.paths.add(path)
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(values(part.resource.attributes))
            self.spans += [span for scope in part.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        """The spans of a name, oldest first."""
        return sorted(
            (span for span in self.spans if span.name == name), key=lambda span: span.start_time_unix_nano
        )

    def wait_for(self, name: str, *, seconds: float = 60) -> Span:
        """The first span of a name, once it has arrived."""
        deadline = time.monotonic() + seconds
        while not self.named(name):
            assert time.monotonic() < deadline, (
                f"no span '{name}' arrived, only {[s.name for s in self.spans]}"
            )
            time.sleep(0.02)
        return self.named(name)[0]


def values(attributes: object) -> dict[str, object]:
    """The attributes of a span, an event or a resource."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextmanager
def running_collector() -> Iterator[Collector]:
    """A collector that listens on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that http.server calls
            collector.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keeps quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield collector
        server.shutdown()
        thread.join()
