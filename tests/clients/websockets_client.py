"""A client on Python's `websockets` that runs a script and prints what it saw.

    python websockets_client.py URL [STEPS [OPTIONS]]        both JSON

Steps, one after another:
  {"send": "text"}  {"send_binary": N}  {"send_text": N}   a text, N bytes of binary, N bytes of text
  {"fragments": ["a", "b"]}                                one text message in as many frames
  {"ping": "x"}                                            a ping, and waits for its pong
  {"receive": N}                                           waits until N messages more have come
  {"sleep": MS}
  {"close": [CODE, "reason"]}                              the whole closing handshake
  {"closed": true}                                         waits until the other side has closed
Options: headers, origin, protocols, deflate (false), timeout_ms (10000, of the whole script), ping_interval (seconds; off
by default).

The transcript is one JSON line, with the fields that ws_client.mjs gives. Exit code 0 when the script came to its end
or the upgrade was refused, 1 otherwise.
"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus


async def run(connection, steps, transcript):
    for step in steps:
        [(name, value)] = step.items()
        if name == "send":
            await connection.send(value)
        elif name == "send_binary":
            await connection.send(b"b" * value)
        elif name == "send_text":
            await connection.send("t" * value)
        elif name == "fragments":
            await connection.send(value)
        elif name == "ping":
            await (await connection.ping(value))
            transcript["pongs"].append(value)
        elif name == "receive":
            for _ in range(value):
                transcript["messages"].append(described(await connection.recv()))
        elif name == "sleep":
            await asyncio.sleep(value / 1000)
        elif name == "close":
            await connection.close(*value)
        elif name == "closed":
            await connection.wait_closed()
        else:
            raise ValueError(f"unknown step {name}")


def described(message):
    if isinstance(message, bytes):
        return {"type": "binary", "bytes": len(message)}
    size = len(message.encode())
    return {"type": "text", "bytes": size} | ({"text": message} if size <= 16_384 else {})


async def main():
    url = sys.argv[1]
    steps = json.loads(sys.argv[2]) if len(sys.argv) > 2 else []
    options = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    transcript = {"opened": False, "messages": [], "pongs": [], "close": None, "done": False}
    try:
        async with asyncio.timeout(options.get("timeout_ms", 10_000) / 1000):
            connection = await connect(
                url,
                additional_headers=options.get("headers"),
                origin=options.get("origin"),
                subprotocols=options.get("protocols"),
                compression="deflate" if options.get("deflate") else None,
                max_size=None,
                proxy=None,
                ping_interval=options.get("ping_interval"),
            )
            extensions = connection.response.headers.get("sec-websocket-extensions", "")
            transcript.update(opened=True, status=101, protocol=connection.subprotocol, extensions=extensions)
            try:
                await run(connection, steps, transcript)
                transcript["done"] = True
            finally:
                if connection.close_code is not None:
                    transcript["close"] = {"code": connection.close_code, "reason": connection.close_reason}
    except InvalidStatus as refused:
        response = refused.response
        transcript.update(
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.raw_items()},
            body=(response.body or b"").decode(errors="replace"),
            done=True,
        )
    except ConnectionClosed as closed:
        transcript["error"] = f"closed early: {closed}"
    except (OSError, TimeoutError, ValueError) as error:
        transcript["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(transcript))
    sys.stdout.flush()
    return 0 if transcript["done"] else 1


sys.exit(asyncio.run(main()))
