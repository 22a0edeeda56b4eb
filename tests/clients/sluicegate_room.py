"""The Python client: enters a room, says when it is subscribed, and ends when it has so many messages of it.

python sluicegate_room.py URL COUNT [CURSOR]     answers {"ids": [...], "gaps": [...], "states": [...], ...}
"""

import asyncio
import json
import sys

from sluicegate_client import Backoff, Closed, Socket


async def main(url: str, count: int, cursor: dict[str, list[str]]) -> None:
    ids: list[str] = []
    gaps: list[str] = []
    states: list[str] = []
    statuses: list[int] = []
    socket = Socket(
        url,
        cursor=cursor,
        backoff=Backoff(base=0.02, cap=0.2),
        on_gap=lambda gap: gaps.append(gap.why),
        on_subscription=lambda each: (states.append(each.state), print("subscribed", flush=True)),
        on_disconnect=lambda loss: statuses.append(loss.status) if loss.status else None,
    )
    end = None
    try:
        async with socket:
            if count == 0:
                await anext(socket)
            while len(ids) < count:
                message = await anext(socket)
                if message.channel is not None:
                    ids.append(message.id)
                    if message.data == "text end":
                        await socket.send("close")
    except Closed as closed:
        end = closed.disconnect.code
    print(json.dumps({
        "ids": ids, "gaps": gaps, "states": states, "statuses": statuses, "end": end,
        "resumable": socket.resumable, "cursor": socket.export_cursor(),
    }))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}))
