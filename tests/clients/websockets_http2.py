"""A client that opens WebSockets over one connection of HTTP/2: Python's `h2` under the frames of `websockets`.

    python websockets_http2.py HOST:PORT PATH COUNT TEXTS        TEXTS: a JSON list

In the clear, by prior knowledge. It opens COUNT sessions at once (RFC 8441), sends all texts on each, asks for /plain
meanwhile, waits for the echoes and closes each session. Prints one JSON line: the answers' headers, the echoes, how each
session was closed, whether its stream ended, and the plain answer. Exit code 0 when everything ended.
"""

import json
import socket
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings
from websockets.frames import Opcode
from websockets.protocol import CLIENT, OPEN, Protocol


class Session:
    def __init__(self, texts):
        self.protocol = Protocol(CLIENT, state=OPEN, max_size=None)
        self.texts, self.echoes = texts, []
        self.headers, self.waiting, self.ended = None, b"", False

    def report(self):
        return {
            "headers": self.headers,
            "echoes": self.echoes,
            "close": [self.protocol.close_code, self.protocol.close_reason],
            "ended": self.ended,
        }


def main(address, path, count, texts):
    host, port = address.rsplit(":", 1)
    io = socket.create_connection((host, int(port)), timeout=20)
    http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    http2.initiate_connection()
    io.sendall(http2.data_to_send())
    sessions, plain, body = {}, None, b""
    common = [(":authority", address), (":scheme", "http")]

    def ask():
        nonlocal plain
        for _ in range(int(count)):
            stream = http2.get_next_available_stream_id()
            http2.send_headers(
                stream,
                [(":method", "CONNECT"), (":protocol", "websocket"), *common, (":path", path)]
                + [("sec-websocket-version", "13"), ("sec-websocket-protocol", "x, chat")],
            )
            sessions[stream] = Session(texts)
        plain = http2.get_next_available_stream_id()
        http2.send_headers(plain, [(":method", "GET"), *common, (":path", "/plain")], end_stream=True)

    def flush():
        for stream, session in sessions.items():
            session.waiting += b"".join(session.protocol.data_to_send())
            while session.waiting and not session.ended:
                room = min(http2.local_flow_control_window(stream), http2.max_outbound_frame_size)
                if room == 0:
                    break
                http2.send_data(stream, session.waiting[:room])
                session.waiting = session.waiting[room:]
        io.sendall(http2.data_to_send())

    asked = done = False
    while not done:
        data = io.recv(65536)
        if not data:
            break
        for event in http2.receive_data(data):
            stream = getattr(event, "stream_id", None)
            session = sessions.get(stream)
            if isinstance(event, h2.events.RemoteSettingsChanged) and not asked:
                asked = True
                code = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
                if http2.remote_settings.get(code) != 1:
                    raise RuntimeError("no extended CONNECT")
                ask()
            elif isinstance(event, h2.events.ResponseReceived) and session:
                session.headers = dict(event.headers)
                for text in session.texts:
                    session.protocol.send_text(text.encode())
            elif isinstance(event, h2.events.DataReceived):
                http2.acknowledge_received_data(event.flow_controlled_length, stream)
                if stream == plain:
                    body += event.data
                    continue
                session.protocol.receive_data(event.data)
                for frame in session.protocol.events_received():
                    if frame.opcode is Opcode.TEXT or frame.opcode is Opcode.CONT:
                        session.echoes.append(frame.data.decode())
                if len(session.echoes) == len(session.texts) and session.protocol.state is OPEN:
                    session.protocol.send_close(4000, "done")
            elif isinstance(event, h2.events.StreamEnded) and session:
                session.protocol.receive_eof()
                session.ended = True
                http2.end_stream(stream)
        flush()
        done = asked and body and all(session.ended for session in sessions.values())
    print(json.dumps({"sessions": [session.report() for session in sessions.values()], "plain": body.decode()}))
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4], json.loads(sys.argv[4])))
