"""When to try again: exponential back-off with full jitter, and what a server has said of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

#: The longest wait that a server's Retry-After is followed for, in seconds.
MAX_RETRY_AFTER = 3600.0

#: What is worth another connection: the server goes away, gave no code, broke, failed, restarts, or says "later".
_WORTH = frozenset({1001, 1005, 1006, 1011, 1012, 1013, 1014})

#: Statuses below 500 that say "later".
_LATER = frozenset({408, 425, 429})


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a try, in seconds."""

    #: The bound of the first wait. It doubles with each try.
    base: float = 0.5
    #: The highest bound.
    cap: float = 30.0
    #: After a connection was up for so long the waits begin anew.
    reset_after: float = 10.0

    def wait(self, attempt: int) -> float:
        """A wait before try number ``attempt``, the first of which is 0: evenly between nothing and its bound."""
        return random.random() * min(self.cap, self.base * 2.0 ** min(attempt, 30))


def is_worth_retrying(code: int, status: int | None = None) -> bool:
    """Whether another connection is worth it after one that ended with this code, or was refused with this HTTP status."""
    if status is not None and status < 500 and status not in _LATER:
        return False
    return code in _WORTH


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """A Retry-After in seconds from now on: seconds, or a date (RFC 9110 §10.2.3). ``None`` if it is neither."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        # More digits than an hour has are a day or more.
        seconds = float(text) if len(text) < 10 else MAX_RETRY_AFTER
    else:
        try:
            date = parsedate_to_datetime(text)
        except (TypeError, ValueError):
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=timezone.utc)
        seconds = (date - (now or datetime.now(timezone.utc))).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
