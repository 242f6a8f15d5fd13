"""Verdicts of the gate in words."""

from typing import Any

from rich.text import Text

from service.cli.output import plain

Json = dict[str, Any]

# Told by the word and its sign too, for whoever cannot see the colours.
SIGNS = {"pass": ("✓", "blue"), "fail": ("✗", "bold yellow"), "inconclusive": ("?", "magenta")}


def decision(verdict: Json | None) -> Text | None:
    """The decision with its sign; None where the gate has not spoken."""
    return judged(verdict["decision"]) if verdict else None


def judged(word: str) -> Text:
    """One decision with its sign."""
    sign, style = SIGNS.get(word, ("", ""))
    return Text(f"{sign} {word}".strip(), style=style)


def reasons(verdict: Json) -> list[tuple[Text, str, str]]:
    """Decision, task and detail of every reason, the gravest first."""
    return [(judged(one["decision"]), plain(one["task"]), plain(one["detail"])) for one in verdict["reasons"]]
