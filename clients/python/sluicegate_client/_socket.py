"""A WebSocket that comes back where it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Union, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from ._backoff import Backoff, is_worth_retrying, retry_after
from ._cursor import Cursor, Positions, Recent
from ._lines import BrokenSubprotocol, Data, agreed, offer, read, write


@dataclass(frozen=True)
class Message:
    """A message, of a channel or of the backend's own."""

    data: Data
    #: The channel; ``None`` for a message of the backend's own.
    channel: str | None = None
    #: Its position in the channel.
    position: str | None = None
    #: The id that its publisher gave it.
    id: str | None = None
    #: When it was stored, in milliseconds since 1970.
    stored_at: int | None = None


@dataclass(frozen=True)
class Gap:
    """Messages of a channel may be missing: the application is to get its state anew.

    ``why`` is the gateway's (``trimmed``, ``lineage``, ``limit``, ``expired``, ``region_down``), or this client's:
    ``not_resumable``, the connection is one without the subprotocol; ``limit``, it keeps more positions than a resume holds.
    """

    channel: str
    why: str
    region: str | None = None
    #: The last position in front of it, where it is known.
    start: str | None = None
    #: The first position behind it, where it is known.
    end: str | None = None


@dataclass(frozen=True)
class Subscription:
    """The backend has subscribed this connection to a channel."""

    channel: str
    #: ``live``, ``recovered``, ``gap`` or ``pending``.
    state: str
    #: How many messages follow that were sent before.
    replayed: int = 0


@dataclass(frozen=True)
class Disconnect:
    """A connection was lost, or could not be made."""

    #: As in a Close frame; 1006 for none.
    code: int
    reason: str
    #: The HTTP status that the server answered instead.
    status: int | None
    #: How many tries have failed since a connection was last up for long.
    attempt: int
    #: After how many seconds another one is made; ``None`` if none is.
    retry_in: float | None


class Closed(Exception):
    """No other connection is made."""

    def __init__(self, disconnect: Disconnect) -> None:
        what = f"status {disconnect.status}" if disconnect.status is not None else f"code {disconnect.code}"
        super().__init__(f"closed with {what}" + (f": {disconnect.reason}" if disconnect.reason else ""))
        self.disconnect = disconnect


class NotConnected(ConnectionError):
    """There is no connection to send on."""


def _ignore(_: object) -> None:
    pass


class Socket:
    """Connects in ``async with``, and gives messages in ``async for``, which makes a lost connection anew.

    ``url`` may be a function, which is asked before each connection. ``reconnect`` decides over a
    :class:`Disconnect` whose ``retry_in`` is not known yet. ``connect_options`` go to ``websockets.asyncio.client.connect``.
    """

    def __init__(
        self,
        url: Union[str, Callable[[], str]],
        subprotocols: Sequence[str] = (),
        *,
        cursor: Cursor | None = None,
        on_gap: Callable[[Gap], object] = _ignore,
        on_subscription: Callable[[Subscription], object] = _ignore,
        on_disconnect: Callable[[Disconnect], object] = _ignore,
        backoff: Backoff = Backoff(),
        reconnect: Union[bool, Callable[[Disconnect], bool]] = True,
        recent_ids: int = 1024,
        connect_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._url = url
        self._subprotocols = subprotocols
        self._positions = Positions(cursor)
        self._recent = Recent(recent_ids)
        self._on_gap = on_gap
        self._on_subscription = on_subscription
        self._on_disconnect = on_disconnect
        self._backoff = backoff
        self._reconnect = reconnect
        self._options = dict(connect_options or {})
        self._connection: ClientConnection | None = None
        self._opened_at = 0.0
        self._attempt = 0
        #: After how many seconds the gateway wants it back.
        self._moved: float | None = None
        self._untold: set[str] = set()
        #: The message that the application has, and may not be done with.
        self._given: Message | None = None
        self._closing = asyncio.Event()
        #: The application's subprotocol, as the server accepted it.
        self.subprotocol: str | None = None
        #: Whether the connection can be resumed.
        self.resumable = False
        #: The connection's id in the gateway's log, when it is resumable.
        self.connection_id: str | None = None

    async def __aenter__(self) -> Socket:
        await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def send(self, data: Data) -> None:
        """Sends a message. What was sent when a connection is lost may or may not have arrived; it is not sent again.

        Raises :class:`NotConnected` while there is no connection.
        """
        if self._connection is None:
            raise NotConnected("there is no connection")
        try:
            await self._connection.send(write(data) if self.resumable else data)
        except ConnectionClosed as error:
            raise NotConnected("the connection was lost") from error

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Ends it: no other connection is made, and an iteration comes to its end."""
        self._closing.set()
        if self._connection is not None:
            await self._connection.close(code, reason)

    def export_cursor(self) -> dict[str, list[str]]:
        """Where this client is, to be given to another as ``cursor``. A message counts when the next one is asked for."""
        return self._positions.export()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        self._done()
        while True:
            if self._connection is None:
                if self._closing.is_set():
                    raise StopAsyncIteration
                await self._connect()
                continue
            try:
                data = await self._connection.recv()
                message = self._take(data)
            except ConnectionClosed as closed:
                frame = closed.rcvd or closed.sent
                await self._lost(frame.code if frame else 1006, frame.reason if frame else "")
            except BrokenSubprotocol:
                await self._connection.close(1002, "broken subprotocol")
                self._closing.set()
                self._connection = None
                raise
            else:
                if message is not None:
                    self._given = message
                    return message

    def _done(self) -> None:
        """The application is done with what it was given."""
        given, self._given = self._given, None
        if given is not None and given.channel is not None and given.position is not None:
            self._positions.set(given.channel, given.position)

    async def _connect(self) -> None:
        """Connects, trying again as long as that is worth it, until the application closes."""
        while self._connection is None and not self._closing.is_set():
            url = self._url if isinstance(self._url, str) else self._url()
            names = [cast(Subprotocol, name) for name in offer(self._subprotocols)]
            try:
                connection = await connect(url, subprotocols=names, **self._options)
            except InvalidStatus as refused:
                response = refused.response
                again = retry_after(response.headers.get("Retry-After"))
                await self._lost(1006, "", response.status_code, again or 0.0)
            except (OSError, EOFError, InvalidHandshake, TimeoutError, asyncio.TimeoutError) as error:
                await self._lost(1006, str(error))
            else:
                if self._closing.is_set():
                    return await connection.close()
                await self._opened(connection)

    async def _opened(self, connection: ClientConnection) -> None:
        self.subprotocol, self.resumable = agreed(connection.subprotocol)
        self.connection_id = None
        self._opened_at = asyncio.get_running_loop().time()
        self._connection = connection
        if not self.resumable:
            # Nobody will say what was missed.
            for channel in self._positions.channels():
                self._on_gap(Gap(channel, "not_resumable"))
            return
        sent, left = self._positions.resume()
        self._untold = set(left)
        first = {"t": "resume", "ch": sent} if sent else {"t": "new"}
        try:
            await connection.send(json.dumps(first) + "\n")
        except ConnectionClosed:
            # Reading says why.
            pass

    async def _lost(self, code: int, reason: str, status: int | None = None, wait: float = 0.0) -> None:
        """Waits before another connection, or raises."""
        was_up = self._connection is not None
        self._connection = None
        if was_up and asyncio.get_running_loop().time() - self._opened_at >= self._backoff.reset_after:
            self._attempt = 0
        loss = Disconnect(code, reason, status, self._attempt, None)
        if self._closing.is_set():
            return self._tell(loss)
        if callable(self._reconnect):
            again = self._reconnect(loss)
        else:
            again = self._reconnect and is_worth_retrying(code, status)
        if not again:
            self._closing.set()
            self._tell(loss)
            if code == 1000:
                return
            raise Closed(loss)
        # A gateway that ends has said when to come back, by chance and for each client.
        wait = wait + self._backoff.wait(self._attempt) if self._moved is None else self._moved
        self._moved = None
        self._attempt += 1
        self._tell(Disconnect(code, reason, status, loss.attempt, wait))
        try:
            await asyncio.wait_for(self._closing.wait(), wait)
        except (TimeoutError, asyncio.TimeoutError):
            pass

    def _tell(self, loss: Disconnect) -> None:
        self._on_disconnect(loss)

    def _take(self, data: Data) -> Message | None:
        """What a message of the server's is for the application, if anything."""
        if not self.resumable:
            return Message(data)
        line, payload = read(data)
        if line is None:
            return Message(payload)
        if "t" in line:
            self._told(line)
            return None
        channel, position, id = line.get("c"), line.get("p"), line.get("i")
        if not isinstance(channel, str) or not isinstance(position, str):
            raise BrokenSubprotocol("a header line without a position")
        if self._positions.has(channel, position):
            return None
        if id is not None and not self._recent.add(channel, id):
            self._positions.set(channel, position)
            return None
        return Message(payload, channel, position, id, line.get("ts"))

    def _told(self, line: Mapping[str, Any]) -> None:
        kind, channel = line["t"], line.get("c", "")
        if kind == "hello":
            self.connection_id = line.get("cid")
        elif kind == "sub":
            untold = channel in self._untold
            self._untold.discard(channel)
            if untold and line.get("s") == "live":
                self._on_gap(Gap(channel, "limit"))
            if line.get("n") == 0:
                for head in line.get("h", ()):
                    self._positions.set(channel, head)
            self._on_subscription(Subscription(channel, line.get("s", ""), line.get("n", 0)))
        elif kind == "moved":
            self._moved = min(max(float(line.get("after_ms", 0)) / 1000, 0.0), self._backoff.cap)
        elif kind == "pos":
            self._positions.set(channel, line.get("p", ""))
        elif kind == "gap":
            region, start, end = line.get("r", ""), line.get("from"), line.get("to")
            self._on_gap(Gap(channel, line.get("why", ""), region, start, end))
            if end is not None:
                self._positions.set(channel, end)
            else:
                self._positions.forget(channel, region, start)
