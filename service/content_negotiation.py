"""Which of several media types a caller prefers (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence


def preferred(accept: str | None, offers: Sequence[str]) -> str:
    """Returns the offered media type that the header `Accept` gives the highest quality.

    Where several have it: the one that is named most exactly, then the first.

    Also the first where the caller named none of them: an answer in another form is of more use than none.
    """
    ranges = dict(_range(part) for part in (accept or "*/*").split(","))

    def standing(offer: str) -> tuple[float, int]:
        names = (offer, f"{offer.split('/')[0]}/*", "*/*")  # the most exact one that is there decides
        quality, at = next(((ranges[name], at) for at, name in enumerate(names) if name in ranges), (0.0, 0))
        return quality, -at if quality else -len(names)

    return max(offers, key=standing)


def _range(part: str) -> tuple[str, float]:
    """One media range and its quality: 1 unless it says otherwise, 0 where what it says is no number."""
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    weights = [value for key, _, value in (p.partition("=") for p in parameters) if key.strip() == "q"]
    try:
        return name, float(weights[0]) if weights else 1.0
    except ValueError:
        return name, 0.0
