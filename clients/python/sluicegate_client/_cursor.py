"""Where a client is: its last position in each channel and region, and the ids that it has seen lately.

A position is ``<region>.<epoch>.<n>.<entry>``. Of two with the same region and epoch the higher ``n`` is later; others are
not compared.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence

#: Positions by channel, as they are stored and sent: the last of each region.
Cursor = Mapping[str, Sequence[str]]

#: The most channels whose positions are kept; the one that was used least lately goes. The gateway takes as many.
MAX_CHANNELS = 256

#: The most bytes of a resume. The gateway takes 65,536 with what stands around them.
MAX_RESUME_BYTES = 60_000


def _place(position: str) -> tuple[str, str, int] | None:
    parts = position.split(".", 3)
    if len(parts) < 4 or not all(parts) or not (parts[2].isascii() and parts[2].isdigit()):
        return None
    return parts[0], parts[1], int(parts[2])


class Positions:
    """The positions of one client."""

    def __init__(self, cursor: Cursor | None = None) -> None:
        #: The channel that was used last stands last.
        self._channels: OrderedDict[str, dict[str, str]] = OrderedDict()
        for channel, positions in (cursor or {}).items():
            for position in positions:
                self.set(channel, position)

    def set(self, channel: str, position: str) -> None:
        """The client has the channel up to here. What is no position is passed over."""
        place = _place(position)
        if place is None or not channel:
            return
        self._channels.setdefault(channel, {})[place[0]] = position
        self._channels.move_to_end(channel)
        if len(self._channels) > MAX_CHANNELS:
            self._channels.popitem(last=False)

    def forget(self, channel: str, region: str, position: str | None) -> None:
        """Forgets a region's position, if it is still this one."""
        regions = self._channels.get(channel, {})
        if position is None or regions.get(region) != position:
            return
        del regions[region]
        if not regions:
            del self._channels[channel]

    def has(self, channel: str, position: str) -> bool:
        """Whether the client has had what is at this position."""
        place = _place(position)
        if place is None:
            return False
        known = _place(self._channels.get(channel, {}).get(place[0], ""))
        return known is not None and known[1] == place[1] and place[2] <= known[2]

    def export(self) -> dict[str, list[str]]:
        """All of them."""
        return {channel: list(regions.values()) for channel, regions in self._channels.items()}

    def resume(self) -> tuple[dict[str, list[str]], list[str]]:
        """What fits into a resume, what was used last first, and the channels that do not."""
        sent: dict[str, list[str]] = {}
        left: list[str] = []
        size = 0
        for channel, regions in reversed(self._channels.items()):
            positions = list(regions.values())
            size += len(json.dumps({channel: positions}))
            if size > MAX_RESUME_BYTES:
                left.append(channel)
            else:
                sent[channel] = positions
        return sent, left

    def channels(self) -> list[str]:
        """The channels with a position."""
        return list(self._channels)


class Recent:
    """The last so many ids."""

    def __init__(self, most: int) -> None:
        self._ids: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._most = most

    def add(self, channel: str, id: str) -> bool:
        """Adds an id. ``False`` if it was there."""
        if self._most == 0:
            return True
        fresh = (channel, id) not in self._ids
        self._ids[channel, id] = None
        self._ids.move_to_end((channel, id))
        if len(self._ids) > self._most:
            self._ids.popitem(last=False)
        return fresh
