"""A backend on Python's `websockets`, as an application would write it.

    python websockets_echo.py [PORT]

WebSocket, by path: anything else echoes text and binary verbatim
  /close?code=4001&reason=bye    closes at once
  /flood?bytes=N                 sends one binary message of N bytes, then echoes
  /headers                       sends the request's headers as a JSON text: [[name, value], ...]
  /silent                        sends nothing, ever
Plain HTTP: GET /plain, and GET /seen: every session so far, as JSON, with the extensions that it was offered and those
that it answered. It accepts permessage-deflate where it is offered.
"""

import asyncio
import json
import os
import signal
import stat
import sys
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

SESSIONS = []


def plain_http(connection, request):
    """Answers what is no upgrade; `None` lets the handshake go on."""
    path = urlsplit(request.path).path
    if "upgrade" in request.headers:
        return None
    if path == "/seen":
        response = connection.respond(HTTPStatus.OK, json.dumps(SESSIONS))
        del response.headers["content-type"]
        response.headers["content-type"] = "application/json"
        return response
    if path == "/plain":
        return connection.respond(HTTPStatus.OK, "plain\n")
    return connection.respond(HTTPStatus.NOT_FOUND, "not found\n")


async def session(connection):
    url = urlsplit(connection.request.path)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    seen = {
        "path": connection.request.path,
        "protocol": connection.subprotocol,
        "offered": connection.request.headers.get("sec-websocket-extensions", ""),
        "answered": connection.response.headers.get("sec-websocket-extensions", ""),
        "messages": 0,
        "bytes": 0,
        "open": True,
        "code": None,
        "reason": None,
    }
    SESSIONS.append(seen)
    try:
        await begin(connection, url.path, query)
        async for message in connection:
            seen["messages"] += 1
            seen["bytes"] += len(message.encode() if isinstance(message, str) else message)
            if url.path != "/silent":
                await connection.send(message)
    except ConnectionClosed:
        pass
    finally:
        await connection.wait_closed()
        seen.update(open=False, code=connection.close_code, reason=connection.close_reason)


async def begin(connection, path, query):
    """What a path does before the echo."""
    if path == "/close":
        await connection.close(int(query.get("code", 1000)), query.get("reason", ""))
    elif path == "/flood":
        await connection.send(b"f" * int(query.get("bytes", 1024)))
    elif path == "/headers":
        await connection.send(json.dumps(list(connection.request.headers.raw_items())))


def choose_subprotocol(_connection, offered):
    return "chat" if "chat" in offered else None


async def parent_gone():
    """Waits until standard input, if it is a pipe, is closed by the test that holds its other end."""
    mode = os.fstat(0).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        await asyncio.Future()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass


async def main():
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: os._exit(0))
    async with serve(
        session,
        "127.0.0.1",
        port,
        max_size=None,
        process_request=plain_http,
        select_subprotocol=choose_subprotocol,
    ) as server:
        print(json.dumps({"listening": server.sockets[0].getsockname()[1]}), flush=True)
        await parent_gone()
    os._exit(0)


asyncio.run(main())
