"""Messages of the subprotocol sluicegate.v1: a header line, which is JSON or empty, a line feed, and the payload."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Union

#: What is sent and received.
Data = Union[str, bytes]

#: The subprotocol without one of the application.
SUBPROTOCOL = "sluicegate.v1"


class BrokenSubprotocol(Exception):
    """The gateway sent what is no message of the subprotocol."""


def read(message: Data) -> tuple[Mapping[str, Any] | None, Data]:
    """A message of the gateway's as its line, ``None`` for an empty one, and its payload."""
    parts: tuple[Data, Data, Data] = message.partition("\n") if isinstance(message, str) else message.partition(b"\n")
    line, end, payload = parts
    if not end:
        raise BrokenSubprotocol("a message without a header line")
    if not line:
        return None, payload
    try:
        header = json.loads(line)
    except ValueError as error:
        raise BrokenSubprotocol("a header line that is not JSON") from error
    if not isinstance(header, dict):
        raise BrokenSubprotocol("a header line that is no object")
    return header, payload


def write(data: Data) -> Data:
    """A message of the application with the empty line in front."""
    return "\n" + data if isinstance(data, str) else b"\n" + data


def offer(subprotocols: Sequence[str]) -> list[str]:
    """What to offer for these of the application: each within ours, then each by itself for a server without it."""
    return [f"{SUBPROTOCOL}.{name}" for name in subprotocols] + list(subprotocols) or [SUBPROTOCOL]


def agreed(subprotocol: str | None) -> tuple[str | None, bool]:
    """The application's subprotocol as the server accepted it, and whether it is within ours."""
    if subprotocol == SUBPROTOCOL:
        return None, True
    if subprotocol is not None and subprotocol.startswith(f"{SUBPROTOCOL}."):
        return subprotocol[len(SUBPROTOCOL) + 1 :], True
    return subprotocol, False
