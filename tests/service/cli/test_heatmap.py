"""The heatmap in the terminal: colours that everyone tells apart, tables that fit."""

from service import palette
from service.cli import heatmap


def test_colours_rise_in_lightness_from_end_to_end() -> None:
    lightness = [
        sum(w * c for w, c in zip((0.299, 0.587, 0.114), palette.colour(n / 20), strict=True))
        for n in range(21)
    ]
    assert lightness == sorted(lightness)
    assert (palette.colour(0), palette.colour(1)) == (palette.CIVIDIS[0], palette.CIVIDIS[-1])


def test_a_wide_matrix_is_cut_into_tables_that_fit_and_lose_no_task() -> None:
    tasks = [f"task-{n}" for n in range(40)]
    report = {"tasks": tasks, "versions": [0, 1], "matrix": [[None] * 40, [-2.5 + n / 40 for n in range(40)]]}
    tables = heatmap.heatmaps(report, learnt={1: set(tasks)}, width=80)
    assert len(tables) > 3
    assert [column.header for table in tables for column in table.columns if column.header != "v"] == tasks
    assert palette.scale(report["matrix"]) == (-2.5, -2.5 + 39 / 40)
