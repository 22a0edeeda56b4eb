"""A client on Python's `websockets` that runs a script and prints what it saw.

    python websockets_client.py URL [STEPS [OPTIONS]]        both JSON

Steps, one after another:
  {"send": "text"}  {"send_binary": N}  {"send_text": N}   a text, N bytes of binary, N bytes of text
  {"send_records": N}  {"send_noise": N}  {"send_many": N} as ws_client.mjs sends them
  {"echo_many": N}                                         the same N texts, each after the echo of the one before
  {"fragments": ["a", "b"]}  {"fragments": [3, 5]}         one text message in as many frames; N is N bytes
  {"ping": "x"}                                            a ping, and waits for its pong
  {"receive": N}                                           waits until N messages more have come
  {"sleep": MS}
  {"close": [CODE, "reason"]}                              the whole closing handshake
  {"closed": true}                                         waits until the other side has closed
Options: headers, origin, protocols, deflate (false), digest (false), timeout_ms (10000, of the whole script),
ping_interval (seconds; off by default).

The transcript is one JSON line, with the fields that ws_client.mjs gives. Exit code 0 when the script came to its end
or the upgrade was refused, 1 otherwise.
"""

import asyncio
import hashlib
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus


def noise(size):
    blocks = (hashlib.sha256(str(i).encode()).digest() for i in range(size // 32 + 1))
    return b"".join(blocks)[:size]


def records(count):
    def record(i):
        active = "true" if i % 3 == 0 else "false"
        return f'{{"id":{i},"name":"user {i * 7919 % 1000}","greeting":"grüße","active":{active}}}'

    return f"[{','.join(record(i) for i in range(count))}]"


def many(count):
    return [f'{{"event":"tick","number":{i}}}' for i in range(count)]


async def run(connection, steps, transcript, digest):
    for step in steps:
        [(name, value)] = step.items()
        if name == "send":
            await connection.send(value)
        elif name == "send_binary":
            await connection.send(b"b" * value)
        elif name == "send_text":
            await connection.send("t" * value)
        elif name == "fragments":
            await connection.send(["t" * part if isinstance(part, int) else part for part in value])
        elif name == "send_records":
            await connection.send(records(value))
        elif name == "send_noise":
            await connection.send(noise(value))
        elif name == "send_many":
            for text in many(value):
                await connection.send(text)
        elif name == "echo_many":
            for text in many(value):
                await connection.send(text)
                transcript["messages"].append(described(await connection.recv(), digest))
        elif name == "ping":
            await (await connection.ping(value))
            transcript["pongs"].append(value)
        elif name == "receive":
            for _ in range(value):
                transcript["messages"].append(described(await connection.recv(), digest))
        elif name == "sleep":
            await asyncio.sleep(value / 1000)
        elif name == "close":
            await connection.close(*value)
        elif name == "closed":
            await connection.wait_closed()
        else:
            raise ValueError(f"unknown step {name}")


def described(message, digest):
    kind, data = ("binary", message) if isinstance(message, bytes) else ("text", message.encode())
    described = {"type": kind, "bytes": len(data)}
    if digest:
        described["sha256"] = hashlib.sha256(data).hexdigest()
    elif kind == "text" and len(data) <= 16_384:
        described["text"] = message
    return described


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
                await run(connection, steps, transcript, options.get("digest"))
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
