"""The client against a server that does what a test says.

python -m unittest discover -s clients/python/tests
"""

from __future__ import annotations

import asyncio
import json
import sys
import unittest
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest import mock

from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.datastructures import Headers

sys.path.insert(0, str(Path(__file__).parents[1]))

from sluicegate_client import Backoff, BrokenSubprotocol, Closed, Gap, Message, NotConnected, Socket, Subscription
from sluicegate_client._backoff import is_worth_retrying, retry_after
from sluicegate_client._cursor import MAX_CHANNELS, Positions, Recent
from sluicegate_client._lines import agreed, offer, read, write

FAST = Backoff(base=0.01, cap=0.02)


def line(payload: str = "", **fields: Any) -> str:
    return (json.dumps(fields) if fields else "") + "\n" + payload


def message(n: int, **fields: Any) -> str:
    return line(f"text {n}", **{"c": "room", "p": f"eu.a.{n}.{n}00-0", "i": f"m{n}", "ts": n, **fields})


class Parts(unittest.TestCase):
    def test_waits_grow_twofold_up_to_a_bound_with_full_jitter(self) -> None:
        with mock.patch("random.random", lambda: 1.0):
            self.assertEqual([Backoff().wait(at) for at in (0, 1, 5, 6, 5000)], [0.5, 1.0, 16.0, 30.0, 30.0])
        with mock.patch("random.random", lambda: 0.0):
            self.assertEqual(Backoff().wait(9), 0.0)

    def test_retry_after_is_seconds_or_a_date_and_has_a_bound(self) -> None:
        now = datetime(2026, 10, 21, 7, 28, tzinfo=timezone.utc)
        values = ["3", " 0 ", "Wed, 21 Oct 2026 07:28:10 GMT", "Wed, 21 Oct 2026 07:00:00 GMT", "9" * 5000, "soon", "", None]
        self.assertEqual([retry_after(value, now) for value in values], [3, 0, 10, 0, 3600, None, None, None])

    def test_what_refuses_or_finishes_is_not_tried_again(self) -> None:
        worth = [code for code in range(1000, 5000) if is_worth_retrying(code)]
        self.assertEqual(worth, [1001, 1005, 1006, 1011, 1012, 1013, 1014])
        worth = [status for status in (400, 401, 403, 404, 408, 426, 429, 500, 502, 503) if is_worth_retrying(1006, status)]
        self.assertEqual(worth, [408, 429, 500, 502, 503])

    def test_lines_are_read_and_written_in_text_and_in_bytes(self) -> None:
        self.assertEqual(read("\na\nb"), (None, "a\nb"))
        self.assertEqual(read('{"c":"ü"}\n\nx'.encode()), ({"c": "ü"}, b"\nx"))
        for bad in ("no line", "[]\n", "{]\n", b"none", b"\xff\n", b"1\n"):
            with self.assertRaises(BrokenSubprotocol):
                read(bad)
        self.assertEqual((write("x"), write(b"x")), ("\nx", b"\nx"))
        self.assertEqual((offer(["a"]), offer([])), (["sluicegate.v1.a", "a"], ["sluicegate.v1"]))
        found = [agreed(name) for name in ("sluicegate.v1", "sluicegate.v1.a", "a", None)]
        self.assertEqual(found, [(None, True), ("a", True), ("a", False), (None, False)])

    def test_positions_are_kept_by_region_compared_within_an_epoch_and_bounded(self) -> None:
        positions = Positions({"room": ["eu.a.5.1-0", "us.b.7.1-0", "junk"], "": ["eu.a.1.1-0"]})
        self.assertEqual(positions.export(), {"room": ["eu.a.5.1-0", "us.b.7.1-0"]})
        places = ["eu.a.5.1-0", "eu.a.4.9-0", "eu.a.6.1-0", "eu.z.1.1-0", "us.b.7.1-0", "ap.a.1.1-0", "junk"]
        self.assertEqual([positions.has("room", at) for at in places], [True, True, False, False, True, False, False])
        positions.forget("room", "eu", "eu.a.4.1-0")
        positions.forget("room", "us", "us.b.7.1-0")
        self.assertEqual(positions.export(), {"room": ["eu.a.5.1-0"]})
        positions.forget("room", "eu", "eu.a.5.1-0")
        self.assertEqual(positions.channels(), [])
        for at in range(MAX_CHANNELS + 1):
            positions.set(f"channel {at}", "eu.a.1.1-0")
            positions.set("channel 0", "eu.a.2.1-0")
        self.assertEqual(len(positions.channels()), MAX_CHANNELS)
        self.assertEqual([positions.has(f"channel {at}", "eu.a.1.1-0") for at in (0, 1)], [True, False])
        long = Positions({f"{at}{'ü' * 150}": ["eu.a.1.1-0"] for at in range(100)})
        sent, left = long.resume()
        self.assertTrue(left and len(sent) + len(left) == 100 and len(json.dumps(sent)) < 65_000)
        self.assertTrue(any(name.startswith("99") for name in sent), "the newest first")

    def test_the_last_ids_are_known_and_no_more(self) -> None:
        recent = Recent(2)
        found = [recent.add("room", id) for id in ("a", "b", "a", "c", "b", "a")]
        self.assertEqual(found, [True, True, False, True, True, True])
        self.assertEqual([Recent(0).add("room", "a")] * 2, [True, True])


Handler = Callable[[ServerConnection], Awaitable[None]]


class Sockets(unittest.IsolatedAsyncioTestCase):
    """Each connection is served by the next of a test's handlers."""

    async def serving(self, *handlers: Handler, **options: Any) -> str:
        waiting = list(handlers)
        self.heard: list[Any] = []

        async def serve_one(connection: ServerConnection) -> None:
            if connection.subprotocol is not None and connection.subprotocol.startswith("sluicegate.v1"):
                self.heard.append(json.loads(str(await connection.recv()).removesuffix("\n")))
            await waiting.pop(0)(connection)

        options.setdefault("subprotocols", ["sluicegate.v1"])
        server = await serve(serve_one, "127.0.0.1", 0, **options)

        async def stop() -> None:
            server.close()
            await server.wait_closed()

        self.addAsyncCleanup(stop)
        return f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

    async def test_it_comes_back_to_where_it_was_and_gives_nothing_twice(self) -> None:
        async def first(connection: ServerConnection) -> None:
            await connection.send(line(t="hello", cid="c1", future=1))
            await connection.send(line("of the backend"))
            await connection.send(line(t="sub", c="room", s="live", n=0, h=["eu.a.0.0-0"]))
            await connection.send(message(1))
            await connection.send(message(2).encode())
            await connection.send(line(t="moved", after_ms=7))
            await connection.close(1012, "restart")

        async def second(connection: ServerConnection) -> None:
            await connection.send(line(t="sub", c="room", s="recovered", n=2, h=["eu.a.4.400-0"]))
            connection.transport.abort()

        async def third(connection: ServerConnection) -> None:
            for n in (2, 3, 4):
                await connection.send(message(n))
            # The same message again, in another region.
            await connection.send(message(9, p="us.b.9.900-0", i="m4"))
            await connection.send(line(t="unknown"))
            self.assertEqual(await connection.recv(), "\nhi")
            await connection.close(1000)

        url = await self.serving(first, second, third)
        lost: list[Any] = []
        states: list[Subscription] = []
        got: list[Message] = []
        socket = Socket(url, backoff=FAST, on_disconnect=lost.append, on_subscription=states.append)
        async with socket:
            async for each in socket:
                got.append(each)
                if each.id == "m2":
                    self.assertEqual((socket.resumable, socket.connection_id), (True, "c1"))
                if each.id == "m4":
                    await socket.send("hi")
        self.assertEqual(got[0], Message("of the backend"))
        self.assertEqual(got[1], Message("text 1", "room", "eu.a.1.100-0", "m1", 1))
        self.assertEqual([each.data for each in got[2:]], [b"text 2", "text 3", "text 4"])
        self.assertEqual(self.heard, [{"t": "new"}, *[{"t": "resume", "ch": {"room": ["eu.a.2.200-0"]}}] * 2])
        self.assertEqual([loss.code for loss in lost], [1012, 1006, 1000])
        self.assertEqual(lost[0].retry_in, 0.007, "when the gateway that ends wants it back")
        self.assertEqual([each.state for each in states], ["live", "recovered"])
        self.assertEqual(socket.export_cursor(), {"room": ["eu.a.4.400-0", "us.b.9.900-0"]})

    async def test_a_message_counts_when_the_next_is_asked_for(self) -> None:
        async def handler(connection: ServerConnection) -> None:
            await connection.send(message(1))
            await connection.send(message(2))
            await connection.wait_closed()

        async with Socket(await self.serving(handler)) as socket:
            await anext(socket)
            self.assertEqual(socket.export_cursor(), {})
            await anext(socket)
            self.assertEqual(socket.export_cursor(), {"room": ["eu.a.1.100-0"]})

    async def test_a_gap_is_told_and_moves_the_position(self) -> None:
        async def handler(connection: ServerConnection) -> None:
            await connection.send(line(t="gap", c="room", r="eu", why="trimmed", **{"from": "eu.a.2.2-0"}, to="eu.b.9.9-0"))
            await connection.send(line(t="gap", c="room", r="us", why="region_down", **{"from": "us.a.1.1-0"}))
            await connection.send(line(t="pos", c="room", p="eu.b.10.10-0"))
            await connection.close(1000)

        gaps: list[Gap] = []
        cursor = {"room": ["eu.a.2.2-0", "us.a.1.1-0"]}
        async with Socket(await self.serving(handler), cursor=cursor, on_gap=gaps.append) as socket:
            self.assertEqual([each async for each in socket], [])
        self.assertEqual(self.heard, [{"t": "resume", "ch": cursor}])
        self.assertEqual(gaps[0], Gap("room", "trimmed", "eu", "eu.a.2.2-0", "eu.b.9.9-0"))
        self.assertEqual(gaps[1], Gap("room", "region_down", "us", "us.a.1.1-0"))
        self.assertEqual(socket.export_cursor(), {"room": ["eu.b.10.10-0"]})

    async def test_what_does_not_fit_into_a_resume_is_a_gap_when_it_goes_on_live(self) -> None:
        cursor = {f"{at}{'x' * 700}": ["eu.a.1.1-0"] for at in range(100)}
        left = list(cursor)[0]

        async def handler(connection: ServerConnection) -> None:
            for channel in (left, left, list(cursor)[-1]):
                await connection.send(line(t="sub", c=channel, s="live", n=0, h=["eu.a.2.2-0"]))
            await connection.close(1000)

        gaps: list[Gap] = []
        async with Socket(await self.serving(handler), cursor=cursor, on_gap=gaps.append) as socket:
            self.assertEqual([each async for each in socket], [])
        self.assertEqual(gaps, [Gap(left, "limit")])

    async def test_behind_a_server_without_the_subprotocol_it_is_plain_and_says_what_it_cannot_know(self) -> None:
        async def handler(connection: ServerConnection) -> None:
            await connection.send("no line at all")
            self.assertEqual(await connection.recv(), "x")
            await connection.close(1000)

        gaps: list[Gap] = []
        url = await self.serving(handler, subprotocols=["chat"])
        async with Socket(url, ["chat"], cursor={"room": ["eu.a.1.1-0"]}, on_gap=gaps.append) as socket:
            self.assertEqual((socket.resumable, socket.subprotocol), (False, "chat"))
            await socket.send("x")
            self.assertEqual([each async for each in socket], [Message("no line at all")])
        self.assertEqual(gaps, [Gap("room", "not_resumable")])

    async def test_a_code_that_says_no_is_raised_and_an_option_decides_otherwise(self) -> None:
        async def handler(connection: ServerConnection) -> None:
            await connection.close(4001, "no")

        async with Socket(await self.serving(handler)) as socket:
            with self.assertRaises(Closed) as raised:
                await anext(socket)
        self.assertEqual((raised.exception.disconnect.code, str(raised.exception)), (4001, "closed with code 4001: no"))
        asked: list[Any] = []
        url = await self.serving(handler, handler)
        async with Socket(url, backoff=FAST, reconnect=lambda loss: asked.append(loss) or len(asked) < 2) as socket:
            with self.assertRaises(Closed):
                await anext(socket)
        self.assertEqual([(loss.code, loss.attempt) for loss in asked], [(4001, 0), (4001, 1)])
        with self.assertRaises(NotConnected):
            await socket.send("late")

    async def test_a_refusal_is_waited_for_as_it_says_or_is_the_end(self) -> None:
        answers = [(503, "0"), (429, None), (403, None)]

        def refuse(connection: ServerConnection, request: Request) -> Response:
            status, after = answers.pop(0)
            return Response(status, "no", Headers({"Retry-After": after} if after else {}))

        async def never(connection: ServerConnection) -> None:
            self.fail("it was refused")

        lost: list[Any] = []
        url = await self.serving(never, process_request=refuse)
        with self.assertRaises(Closed) as raised:
            async with Socket(url, backoff=FAST, on_disconnect=lost.append):
                pass
        self.assertEqual([loss.status for loss in lost], [503, 429, 403])
        self.assertEqual([loss.retry_in is None for loss in lost], [False, False, True])
        self.assertEqual(raised.exception.disconnect.status, 403)

    async def test_a_server_that_is_not_there_is_tried_until_it_is_closed(self) -> None:
        async def nobody(connection: ServerConnection) -> None:
            pass

        url = await self.serving(nobody)
        asked: list[str] = []

        def address() -> str:
            asked.append(url)
            return "ws://127.0.0.1:1/"

        socket = Socket(address, backoff=FAST)
        entering = asyncio.create_task(socket.__aenter__())
        while len(asked) < 3:
            await asyncio.sleep(0.01)
        await socket.close()
        await entering
        self.assertEqual([each async for each in socket], [])

    async def test_a_gateway_that_breaks_the_subprotocol_is_left(self) -> None:
        for broken in ("no line", line("x", c="room")):
            codes: list[Any] = []

            async def handler(connection: ServerConnection) -> None:
                await connection.send(broken)
                await connection.wait_closed()
                codes.append(connection.close_code)

            async with Socket(await self.serving(handler)) as socket:
                with self.assertRaises(BrokenSubprotocol):
                    await anext(socket)
                self.assertEqual([each async for each in socket], [])
            while not codes:
                await asyncio.sleep(0.01)
            self.assertEqual(codes, [1002])


if __name__ == "__main__":
    unittest.main()
