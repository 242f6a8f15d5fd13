"""Pictures from plain numbers: nothing lost, nothing outside of the paper, nothing told by colour alone."""

from xml.etree import ElementTree

import pytest

from service.palette import colour, contrast, legible_on
from service.web.charts.axes import Axis, axis_over
from service.web.charts.heatmap import MatrixPicture, heatmap
from service.web.charts.lines import loss_curve, sparkline
from service.web.charts.scatter import TradeOff, scatter
from service.web.charts.svg import signed
from service.web.charts.whiskers import Change, whiskers

SVG = "{http://www.w3.org/2000/svg}"


def parsed(picture: str) -> ElementTree.Element:
    """The picture, which is well formed."""
    return ElementTree.fromstring(picture)


def texts(picture: str) -> list[str]:
    """What is written on the picture."""
    return [element.text or "" for element in parsed(picture).iter(f"{SVG}text")]


def test_every_cell_of_the_palette_can_be_read() -> None:
    assert min(contrast(colour(n / 100), legible_on(colour(n / 100))) for n in range(101)) >= 4.5


def test_the_heatmap_writes_every_score_and_frames_what_was_learnt() -> None:
    picture = MatrixPicture(
        "triage",
        ["a", "b"],
        [0, 1, 2],
        [[None, None], [0.9, 0.125], [0.5, 1.0]],
        {1: frozenset("a"), 2: frozenset("b")},
    )
    drawn = heatmap(picture)
    assert [text for text in texts(drawn) if text[0] in "01·"] == ["0.50", "1.00", "0.90", "0.12", "·", "·"]
    assert len([box for box in parsed(drawn).iter(f"{SVG}rect") if box.get("stroke")]) == 2


def test_names_cannot_break_out_of_a_picture() -> None:
    hostile = "\"/><script>alert('&')</script>"
    drawn = heatmap(MatrixPicture(hostile, [hostile], [0], [[0.5]], marks={0: hostile}))
    assert "<script" not in drawn
    assert hostile in [element.text for element in parsed(drawn).iter(f"{SVG}title")]


def test_log_likelihoods_are_coloured_between_their_extremes() -> None:
    drawn = heatmap(MatrixPicture("m", ["a"], [0, 1], [[-3.25], [-1.5]]))
    assert [text for text in texts(drawn) if text.startswith("−")] == ["−1.50", "−3.25"]
    fills = {box.get("fill") for box in parsed(drawn).iter(f"{SVG}rect")}
    assert {"#00224e", "#fee838"} <= fills


def test_whiskers_mark_old_tasks_that_may_have_lost_more_than_tolerated() -> None:
    changes = [
        Change("lost", "old", -0.1, -0.15, -0.05), Change("kept", "old", 0.0, -0.01, 0.01),
        Change("fresh", "new", -0.3, -0.4, -0.2),
    ]  # fmt: skip
    drawn = parsed(whiskers(changes, tolerated=0.02, before="version 1", after="version 2"))
    suspects = [g for g in drawn.iter(f"{SVG}g") if any(e.get("class") == "warning" for e in g)]
    assert [g.find(f"{SVG}title").text.split(" ")[0] for g in suspects] == ["lost"]  # type: ignore[union-attr]
    assert "−0.100 [−0.150, −0.050]" in " ".join(" ".join(drawn.itertext()).split())


def test_versions_that_share_a_place_share_a_label() -> None:
    points = [
        TradeOff(1, -0.1, 0.9),
        TradeOff(2, -0.1, 0.9, "fail"),
        TradeOff(3, 0.0, 0.8, "inconclusive", "champion"),
    ]
    drawn = scatter(points, tolerated=0.02, least_new=0.7)
    assert {"v1, v2", "v3"} <= set(texts(drawn))


def test_of_many_versions_only_those_that_stand_out_are_named() -> None:
    points = [TradeOff(n, -n / 1000, 0.5, None, "champion" if n == 99 else None) for n in range(100)]
    drawn = scatter(points, tolerated=0.02, least_new=None)
    assert [text for text in texts(drawn) if text.startswith("v")] == ["v99"]
    assert len(list(parsed(drawn).iter(f"{SVG}circle"))) == 101


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.5, 0.5], [-3.0, -2.0, 0.1]])
def test_lines_are_drawn_of_any_number_of_points(values: list[float]) -> None:
    for drawn in (sparkline(values, label="course"), loss_curve(list(enumerate(values)))):
        root = parsed(drawn)
        width, height = (float(root.get(name, "0")) for name in ("width", "height"))
        for line in root.iter(f"{SVG}polyline"):
            for point in (line.get("points") or "").split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height


def test_an_axis_holds_its_values_and_marks_round_ones() -> None:
    axis = axis_over([-0.113, 0.295], start=0, end=100)
    assert 0 < axis.at(-0.113) < axis.at(0.295) < 100
    assert axis.marks(5) == pytest.approx([-0.1, 0.0, 0.1, 0.2, 0.3])
    assert Axis(0, 10, 100, 0).at(2.5) == 75
    assert Axis(0, 1, 0, 10).at(7) == 10


def test_signs_are_proper_and_nothing_has_none() -> None:
    assert [signed(value, 2) for value in (-0.125, 0.5, 0.0, -0.001)] == ["−0.12", "+0.50", "0.00", "0.00"]
