"""Streams of events through a stop of the API and faults of Postgres: they end or pause, and nobody is left behind."""

import re
import signal
import time
from contextlib import ExitStack

import httpx
import pytest

from tests.event_streams import Stream, listen
from tests.faults.rig import Rig, until
from tests.faults.test_postgres_faults import frozen, postmaster, start_again

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
QUICK = {"PALIMPSEST_EVENT_STREAM_HEARTBEAT_SECONDS": "0.2"}


def test_sigterm_ends_streams_at_once_and_the_client_goes_on_with_another_api(rig: Rig) -> None:
    client, stopping = rig.world.client, rig.api
    rig.learnable("one")
    update = rig.world.request("one")["id"]
    with listen(client, update) as stream:
        last = stream.read("queued")
        began = time.monotonic()
        stopping.send(signal.SIGTERM)
        assert stream.rest() == []  # an end, no broken connection
    assert stopping.gone() in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 8, stopping.log  # uvicorn would cut open answers off after ten
    rig.start_api()
    rig.world.ok(rig.world.client.post(f"/v1/updates/{update}/cancel"))
    with listen(rig.world.client, update, after=int(last["id"])) as stream:
        assert [message["event"] for message in stream.rest()] == ["cancelled"]


def test_streams_live_through_a_hung_and_a_restarted_postgres(breakable: Rig) -> None:
    rig, server = breakable, breakable.servers[0]
    client = rig.start_api(**QUICK)
    rig.learnable("one")
    update = rig.world.request("one")["id"]
    leaver = ExitStack()
    with listen(client, update) as stream:
        stream.read("queued")
        leaver.enter_context(listen(client, update)).read("queued")
        with frozen(server):
            hear(stream, comments=60)  # past the 5 s after which a look gives up
            leaver.close()
            until(lambda: open_streams(client) == 1, what="the one who left to be forgotten")
        hear(stream, comments=5)
        postmaster(server).send_signal(signal.SIGQUIT)
        start_again(server)
        hear(stream, comments=5)
        until(lambda: client.get("/readyz").is_success, what="the API's recovery")
        rig.world.ok(client.post(f"/v1/updates/{update}/cancel"))
        assert [message["event"] for message in stream.rest()] == ["cancelled"]
    until(lambda: open_streams(client) == 0, what="everybody to be forgotten")


def hear(stream: Stream, *, comments: int) -> None:
    """Reads comments, and nothing else."""
    for _ in range(comments):
        assert "comment" in next(stream.messages())


def open_streams(client: httpx.Client) -> int:
    found = re.search(r"^palimpsest_event_streams (\d+)", client.get("/metrics").text, re.MULTILINE)
    assert found
    return int(found[1])
