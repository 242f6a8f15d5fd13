"""The report of one version: what it gave and cost, the verdict in words, the examples that changed sides."""

from collections.abc import Mapping, Sequence
from typing import Any

from service.reports.schemas import TaskReport, UpdateReport
from service.web.charts.whiskers import Change, whiskers

COLUMNS = (
    "task", "role", "eval_size", "score", "parent_score", "learned_score", "best_score", "delta", "delta_low",
    "delta_high", "p_value", "p_value_holm", "forgetting", "negative_flips", "positive_flips",
)  # fmt: skip
REASONS = ("task", "rule", "decision", "observed", "bound", "detail")
RULES = {
    "max_regression": "no more may be lost than tolerated",
    "min_new_score": "a new task must reach its least score",
    "new_task_regression": "a new task may not be certainly worse than before",
}


def changes_chart(report: UpdateReport, *, tolerated: float) -> str | None:
    """Returns the dots and whiskers as SVG, the gravest loss on top; None where nothing can be compared."""
    changes = [change for task in report.tasks if (change := _change(task)) is not None]
    if not changes:
        return None
    ordered = sorted(changes, key=lambda change: (change.role == "new", change.delta))
    return whiskers(
        ordered, tolerated=tolerated, before=f"version {report.parent}", after=f"version {report.version}"
    )


def task_rows(report: UpdateReport) -> list[Sequence[object]]:
    """Returns the changes as a table."""
    return [COLUMNS, *(_row(task) for task in report.tasks)]


def reason_rows(report: UpdateReport) -> list[Sequence[object]]:
    """Returns what the gate found as a table, the gravest first; without rows where it has not judged."""
    reasons = report.verdict.reasons if report.verdict else []
    return [REASONS, *(tuple(getattr(reason, name) for name in REASONS) for reason in reasons)]


def content_in_words(content: Mapping[str, Any]) -> str:
    """Returns the text of an example, whatever its shape."""
    if "messages" in content:
        return "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in content["messages"])
    return "\n→ ".join(str(content[name]) for name in ("text", "prompt", "completion") if name in content)


def _change(task: TaskReport) -> Change | None:
    if task.delta is None or task.delta_ci is None:
        return None
    return Change(task.task, task.role, task.delta, task.delta_ci[0], task.delta_ci[1])


def _row(task: TaskReport) -> tuple[object, ...]:
    low, high = task.delta_ci or (None, None)
    flips = (task.flips.negative, task.flips.positive) if task.flips else (None, None)
    return (
        task.task, task.role, task.eval_size, task.score, task.parent_score, task.learned_score, task.best_score,
        task.delta, low, high, task.p_value, task.p_value_holm, task.forgetting, *flips,
    )  # fmt: skip
