"""Publishes by the libraries that GRIP's users have: pubcontrol and gripcontrol, as PyPI serves them.

    pubcontrol_publish.py URI CHANNEL ID TEXT [SENDER]    with KEY=... in the environment the requests are signed
"""

import json
import os
import sys

from gripcontrol import GripPubControl, WebSocketMessageFormat
from pubcontrol import Item

uri, channel, item_id, text = sys.argv[1:5]
config = {"control_uri": uri}
if key := os.environ.get("KEY"):
    config |= {"control_iss": "publisher", "key": key}
item = Item(WebSocketMessageFormat(text), item_id, None)
if len(sys.argv) > 5:
    item.meta = {"sender": sys.argv[5]}
GripPubControl(config).publish(channel, item, blocking=True)
print(json.dumps({"published": item_id}))
