"""Pictures from plain numbers: nothing lost, nothing outside of the paper, nothing told by colour alone."""

import re
from xml.etree import ElementTree

import pytest

from service.palette import colour, contrast, legible_on
from service.web.charts.axes import Axis, axis_over
from service.web.charts.dial import Course, Reading, dial_curves
from service.web.charts.heatmap import MatrixPicture, heatmap
from service.web.charts.lines import loss_curve, sparkline
from service.web.charts.scatter import TradeOff, scatter
from service.web.charts.svg import signed
from service.web.charts.tree import Node, lanes, lineage_tree
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


PARENTS = {0: None, 1: 0, 2: 1, 3: 2, 4: 2, 5: 2, 6: 4, 7: 5, 8: 5}


def test_the_shown_lineage_runs_straight_and_branches_stand_beside_it() -> None:
    lane_of = lanes(PARENTS, [5, 2, 1, 0])
    assert {version for version, lane in lane_of.items() if lane == 0} == {0, 1, 2, 5}
    assert lane_of[4] == lane_of[6] > 0


@pytest.mark.parametrize("trunk", [[5, 2, 1, 0], [0], [6, 4, 2, 1, 0]])
def test_no_two_lines_of_descent_share_a_stretch_of_a_lane(trunk: list[int]) -> None:
    lane_of = lanes(PARENTS, trunk)
    taken = [
        (lane_of[version], row)
        for version, parent in PARENTS.items()
        if parent is not None and lane_of[version] > 0
        for row in range(parent + 1, version + 1)
    ]
    of_lines = {(lane_of[version], version) for version in PARENTS if lane_of[version] > 0}
    crossings = [place for place in of_lines if taken.count(place) > 1 and not continues(place, lane_of)]
    assert crossings == []


def continues(place: tuple[int, int], lane_of: dict[int, int]) -> bool:
    """Whether a line goes on from the version at this place."""
    lane, version = place
    return any(parent == version and lane_of[child] == lane for child, parent in PARENTS.items())


def test_a_lane_is_free_again_where_its_line_has_ended() -> None:
    trunk = range(20, -1, -2)
    rejected = {number: number - 1 for number in range(1, 21, 2)}
    parents = {0: None, **{number: number - 2 for number in range(2, 21, 2)}, **rejected}
    assert set(lanes(parents, trunk).values()) == {0, 1}


def test_the_tree_tells_verdicts_by_their_shape_and_flags_aliases() -> None:
    nodes = [
        Node(0, None), Node(1, 0, "pass", ["★ champion"]), Node(2, 1, "fail"), Node(3, 1, "inconclusive", ["a", "b"]),
    ]  # fmt: skip
    root = parsed(lineage_tree(nodes, trunk=[1, 0], label="tree", address="/v/{}"))
    marks = {link.get("href"): signature(link.find(f"{SVG}g")) for link in root.iter(f"{SVG}a")}
    assert len(set(marks.values())) == 4
    assert {"★ champion", "a", "b"} <= set(texts(lineage_tree(nodes, trunk=[1, 0], label="tree")))
    titles = [element.text for element in root.iter(f"{SVG}title")]
    assert "version 1, from version 0, pass, ★ champion" in titles


def signature(mark: ElementTree.Element | None) -> tuple[str, ...]:
    """The shapes that a version's mark is made of, whatever their colours."""
    assert mark is not None
    return tuple(
        f"{shape.tag} {shape.get('r')} {re.sub('[^a-z]', '', shape.get('d') or '')}" for shape in mark[1:]
    )


def test_a_long_lineage_is_drawn_with_everything_on_the_paper() -> None:
    nodes = [Node(number, max(number - 1, 0) if number else None, "fail") for number in range(101)]
    fan = [Node(0, None), *(Node(number, 0, "fail", (), "x" * 90) for number in range(1, 101))]
    for drawn in (lineage_tree(nodes, trunk=[0], label="t"), lineage_tree(fan, trunk=[0], label="t")):
        root = parsed(drawn)
        width, height = (float(root.get(name, "0")) for name in ("width", "height"))
        assert all(float(text.get("x", "0")) < width - 300 for text in root.iter(f"{SVG}text"))
        assert all(0 < float(text.get("y", "0")) < height for text in root.iter(f"{SVG}text"))


def test_the_dial_draws_every_task_in_a_panel_of_its_own_with_its_bounds() -> None:
    courses = [
        Course(f"task-{n}", "old", [Reading(0, 0.9, (0.8, 0.95)), Reading(0.5, 0.8, (0.7, 0.9)), Reading(1, 0.7)])
        for n in range(6)
    ]  # fmt: skip
    root = parsed(dial_curves(courses, label="dial", recommended=0.5))
    assert len(list(root.iter(f"{SVG}polyline"))) == len(list(root.iter(f"{SVG}polygon"))) == 6
    assert len(list(root.iter(f"{SVG}circle"))) == 18
    assert len([line for line in root.iter(f"{SVG}line") if line.get("stroke-dasharray")]) == 6
    assert "task-0 (old): 0.900 at β 0, 0.700 at β 1" in [title.text for title in root.iter(f"{SVG}title")]


def test_a_point_without_a_score_leaves_the_others_of_the_dial() -> None:
    root = parsed(dial_curves([Course("new", "new", [Reading(1, -0.5, (-0.7, -0.3))])], label="dial"))
    assert len(list(root.iter(f"{SVG}circle"))) == 1
    empty = parsed(dial_curves([Course("none", "old", [])], label="dial"))
    assert "none (old): not scored" in [title.text for title in empty.iter(f"{SVG}title")]
