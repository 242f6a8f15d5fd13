"""States, decisions, moves and events in words, each with a sign for whoever cannot see its colour."""

from typing import Any

from service.models import UpdateState
from service.registry.queries import CHAMPION

STATES = {
    UpdateState.QUEUED: "○ queued",
    UpdateState.TRAINING: "▶ training",
    UpdateState.EVALUATING: "▶ evaluating",
    UpdateState.AWAITING_APPROVAL: "‖ awaiting approval",
    UpdateState.PROMOTED: "✓ promoted",
    UpdateState.REJECTED: "✗ rejected",
    UpdateState.FAILED: "! failed",
    UpdateState.CANCELLED: "– cancelled",
}
DECISIONS = {"pass": "✓ pass", "fail": "✗ fail", "inconclusive": "? inconclusive"}
MOVES = {
    "created": "created with the model",
    "promoted": "promoted by the gate",
    "approved": "approved",
    "forced": "promoted whatever the verdict",
    "assigned": "moved by hand",
    "rolled_back": "rolled back",
}


def state_in_words(state: str) -> str:
    """An update's state with its sign."""
    return STATES[UpdateState(state)] if state in STATES else state


def decision_in_words(decision: str) -> str:
    """A decision of the gate with its sign."""
    return DECISIONS.get(decision, decision)


def alias_in_words(alias: str) -> str:
    """An alias; the champion's has a star."""
    return f"★ {alias}" if alias == CHAMPION else alias


def move_in_words(kind: str) -> str:
    """How an alias was moved."""
    return MOVES.get(kind, kind)


def event_in_words(data: dict[str, Any]) -> str:
    """What an event says beside its type, in one line."""
    return " · ".join(
        f"{name.replace('_', ' ')}: {_short(value)}" for name, value in data.items() if value is not None
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 160 else f"{text[:159]}…"
