"""A WebSocket that is made anew when it is lost, and gets what it missed, behind a Sluicegate gateway. See README.md."""

from ._backoff import Backoff, is_worth_retrying
from ._cursor import Cursor
from ._lines import BrokenSubprotocol, Data
from ._socket import Closed, Disconnect, Gap, Message, NotConnected, Socket, Subscription

__all__ = [
    "Backoff",
    "BrokenSubprotocol",
    "Closed",
    "Cursor",
    "Data",
    "Disconnect",
    "Gap",
    "Message",
    "NotConnected",
    "Socket",
    "Subscription",
    "is_worth_retrying",
]
