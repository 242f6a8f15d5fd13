"""Templates, and how they write numbers, times and states."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from service.version import VERSION
from service.web.charts.svg import signed
from service.web.session import Visitor
from service.web.wording import (
    alias_in_words,
    decision_in_words,
    event_in_words,
    move_in_words,
    state_in_words,
)

MISSING = "–"


@lru_cache
def environment() -> Environment:
    """The process's templates; every value is escaped."""
    found = Environment(
        loader=PackageLoader("service.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {
        "score": score, "percent": percent, "change": change, "moment": moment, "iso": iso, "seconds": seconds,
        "alias": alias_in_words, "state": state_in_words, "decision": decision_in_words, "move": move_in_words, "event": event_in_words,
    }  # fmt: skip
    found.globals["service_version"] = VERSION
    return found


def page(
    template: str, *, visitor: Visitor | None, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:  # fmt: skip
    """Returns a page, or a part of one."""
    html = environment().get_template(template).render(visitor=visitor, **values)
    return HTMLResponse(html, status_code=status, headers=dict(headers or {}))


def score(value: float | None) -> str:
    """An accuracy or a mean log-likelihood, to two places: `0.93`."""
    return MISSING if value is None else f"{value:.2f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share: `93.1 %`."""
    return MISSING if value is None else f"{100 * value:.1f} %".replace("-", "−")


def change(value: float | None) -> str:
    """A difference of scores, with its sign: `+0.012`."""
    return MISSING if value is None else signed(value, 3)


def moment(at: datetime | None) -> str:
    """A time to the minute, in UTC."""
    return MISSING if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def iso(at: datetime) -> str:
    """A time as machines read it."""
    return at.astimezone(UTC).isoformat(timespec="seconds")


def seconds(value: float | None) -> str:
    """A duration: `42 s`, `3 min`, `2 h 5 min`."""
    if value is None:
        return MISSING
    minutes = round(value / 60)
    if value < 90:
        return f"{value:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
