"""Pictures as PNG: the same picture, with its letters, wherever it is drawn."""

import asyncio
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.errors import Unavailable, Unprocessable
from service.web import raster
from service.web.charts.lines import loss_curve
from service.web.charts.svg import MARGIN, drawing, finished, write
from tests.service.web.visitors import Browser


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def page_with(text: str) -> str:
    """A picture with nothing but a text on it."""
    root = drawing(200, 30, label="a text")
    write(root, MARGIN, 15, text)
    return finished(root)


def drawn(picture: str) -> bytes:
    return asyncio.run(raster.png(picture))


@pytest.mark.parametrize("name", ["matrix", "lineage", "versions/5/changes"])
def test_a_picture_is_sent_as_png(reader: Browser, name: str) -> None:
    answer = reader.get(f"/ui/models/long/{name}.png")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    width, height = size_of(answer.content)
    assert width > 400
    assert height > 200


def test_there_is_no_third_form(reader: Browser) -> None:
    assert reader.get("/ui/models/long/matrix.gif").status_code == 422


def test_letters_are_drawn_where_the_system_has_no_fonts(tmp_path: Path) -> None:
    """Fonts are looked for nowhere but in the package: every sign that pictures use is one of its own."""
    program = raster.PROGRAM.read_text().replace("background=", "skip_system_fonts=True, background=")
    assert "skip_system_fonts" in program
    (tmp_path / "rasterise.py").write_text(program)

    def without_fonts(text: str) -> bytes:
        command = [sys.executable, "-P", str(tmp_path / "rasterise.py"), "2"]
        return subprocess.run(
            command, input=page_with(text).encode(), stdout=subprocess.PIPE, check=True
        ).stdout

    unknown = without_fonts("\U0001f9ff")  # a sign that the font lacks
    seen = {sign: without_fonts(sign) for sign in " v0★−…·→β?"}
    assert len(set(seen.values())) == len(seen)
    assert unknown not in seen.values()
    assert all(len(seen[sign]) > len(seen[" "]) for sign in seen if sign != " ")


def test_a_large_picture_is_drawn_less_sharply() -> None:
    root = drawing(4000, 4000, label="much paper")
    width, height = size_of(drawn(finished(root)))
    assert 7_000_000 < width * height <= raster.MOST_PIXELS * 1.01


def test_the_paper_is_white_whoever_looks() -> None:
    pixels = drawn(page_with(""))
    data = b"".join(chunks(pixels, b"IDAT"))
    row = zlib.decompress(data)[1:5]
    assert row == b"\xff\xff\xff\xff"


def chunks(png: bytes, kind: bytes) -> list[bytes]:
    """The contents of a PNG's chunks of one kind."""
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == kind:
            found.append(png[at + 8 : at + 8 + length])
        at += length + 12
    return found


def test_the_service_answers_others_while_a_picture_is_drawn() -> None:
    """Drawing would keep the interpreter to itself: it happens in another process."""
    ticks, over = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not over.wait(0.002):
            ticks += 1

    clock = threading.Thread(target=tick)
    clock.start()
    drawn(loss_curve([(step, 1 / step) for step in range(1, 200)]))
    over.set()
    clock.join()
    assert ticks > 10


def test_whoever_waits_too_long_for_a_picture_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(Unavailable, match="could not be drawn in time"):
        drawn(page_with("late"))


def test_a_picture_of_too_many_bytes_is_not_drawn() -> None:
    with pytest.raises(Unprocessable, match="Take the SVG") as refused:
        drawn(page_with("x" * raster.MOST_BYTES))
    assert refused.value.code == "picture_too_large"


def test_a_crowd_does_not_wait_for_its_pictures() -> None:
    async def ask(count: int) -> list[bytes | BaseException]:
        asked = (raster.png(page_with(str(turn))) for turn in range(count))
        return await asyncio.gather(*asked, return_exceptions=True)

    room = raster.AT_ONCE + raster.MOST_WAITING
    answers = asyncio.run(ask(room + 3))
    refused = [answer for answer in answers if isinstance(answer, Unavailable)]
    assert [answer.code for answer in refused] == ["too_busy"] * 3
    assert len([answer for answer in answers if isinstance(answer, bytes)]) == room


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(3)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os; os.close(0); os.abort()",
    ],
)
def test_a_picture_whose_drawing_fails_can_be_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    monkeypatch.setattr(raster, "PROGRAM", tmp_path / "failing.py")
    raster.PROGRAM.write_text(program)
    with capture_logs() as lines, pytest.raises(Unavailable, match="could not be drawn"):
        drawn(page_with("x" * 1_000_000))  # more than a pipe holds: the program ends while it is written to
    assert [line["event"] for line in lines] == ["picture_not_drawn"]


@pytest.mark.parametrize("limit", ["AS", "CPU"])
def test_the_program_that_draws_may_use_so_much_and_no_more(tmp_path: Path, limit: str) -> None:
    told = f"print(resource.getrlimit(resource.RLIMIT_{limit}), file=sys.stderr)"
    program = raster.PROGRAM.read_text().replace("    picture = ", f"    {told}\n    picture = ")
    (tmp_path / "rasterise.py").write_text(program)
    command = [sys.executable, "-P", str(tmp_path / "rasterise.py"), "2"]
    ran = subprocess.run(command, input=page_with("x").encode(), capture_output=True, check=True)
    most = {"AS": 1_500_000_000, "CPU": 60}[limit]
    assert ran.stderr.decode().strip() == f"({most}, {most})"
