"""Rate limits per API key: a sliding window counted in Redis, so that all API processes count together.

The limit protects the service from a pipeline gone wild and is no wall: where Redis does not answer in a fraction of
a second, requests pass uncounted, a warning is logged, and Redis is left alone for some seconds.
"""

import math
import time
from dataclasses import dataclass
from functools import lru_cache

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry
from structlog import get_logger

from service.config import get_settings
from service.errors import TooManyRequests

WINDOW_SECONDS = 60
POLICY = "per-key"
RETRY_REDIS_AFTER_SECONDS = 5.0
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a key stands after a request: `remaining` of `quota`, more of it in `reset_seconds`."""

    allowed: bool
    quota: int
    remaining: int
    reset_seconds: int

    def headers(self) -> dict[str, str]:
        """The `RateLimit` fields of draft-ietf-httpapi-ratelimit-headers-10."""
        return {
            "RateLimit-Policy": f'"{POLICY}";q={self.quota};w={WINDOW_SECONDS}',
            "RateLimit": f'"{POLICY}";r={self.remaining};t={self.reset_seconds}',
        }

    def require(self) -> None:
        """Raises `TooManyRequests` when the request was over the limit."""
        if not self.allowed:
            raise TooManyRequests(
                f"This key may send {self.quota} requests a minute; send this one again in {self.reset_seconds} s.",
                code="rate_limited", headers={"Retry-After": str(self.reset_seconds)},
            )  # fmt: skip


class RateLimiter:
    """Counts requests by key in Redis; uncounted while Redis is away."""

    def __init__(self, redis_url: str, *, per_minute: int, timeout_seconds: float) -> None:
        # The timeouts are of the socket: any, a hung server's too. One try: a request waits for this.
        storage = RedisStorage(
            redis_url, key_prefix="palimpsest:rate", socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds, retry=Retry(NoBackoff(), 0),  # type: ignore[arg-type]  # handed on to redis-py
        )  # fmt: skip
        self._limit = RateLimitItemPerMinute(per_minute)
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._away_until = 0.0

    def hit(self, key_id: str) -> Standing | None:
        """Counts one request of the key and says how it stands; None when it could not be counted."""
        if time.monotonic() < self._away_until:
            return None
        try:
            allowed = self._limiter.hit(self._limit, key_id)
            reset_at, remaining = self._limiter.get_window_stats(self._limit, key_id)
        except (RedisError, OSError) as error:
            self._away_until = time.monotonic() + RETRY_REDIS_AFTER_SECONDS
            log.warning("rate_limits_off", error=type(error).__name__, seconds=RETRY_REDIS_AFTER_SECONDS)
            return None
        reset_seconds = max(1, math.ceil(reset_at - time.time()))
        return Standing(allowed, self._limit.amount, remaining if allowed else 0, reset_seconds)


@lru_cache
def get_rate_limiter() -> RateLimiter | None:
    """The process's rate limiter; None when the operator switched limits off."""
    settings = get_settings()
    if settings.rate_limit_per_minute == 0:
        return None
    return RateLimiter(
        settings.redis_url,
        per_minute=settings.rate_limit_per_minute,
        timeout_seconds=settings.rate_limit_timeout_seconds,
    )
