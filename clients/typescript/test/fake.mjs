// A WebSocket that does what a test says.

export class FakeWebSocket {
  static made = [];
  readyState = 0;
  protocol = "";
  extensions = "";
  bufferedAmount = 0;
  binaryType = "blob";
  onopen = null;
  onmessage = null;
  onerror = null;
  onclose = null;
  sent = [];
  closed = [];

  constructor(url, protocols, options) {
    if (String(url).startsWith("bad:")) throw new SyntaxError("bad url");
    this.url = String(url);
    this.protocols = protocols ?? [];
    this.options = options;
    FakeWebSocket.made.push(this);
  }

  static get last() {
    return FakeWebSocket.made.at(-1);
  }

  static reset() {
    FakeWebSocket.made = [];
  }

  send(data) {
    this.sent.push(data);
  }

  close(code, reason) {
    this.closed.push([code, reason]);
    this.readyState = 2;
  }

  /** The server accepts, with this subprotocol. */
  opens(protocol = "sluicegate.v1") {
    this.protocol = protocol;
    this.readyState = 1;
    this.onopen({});
  }

  says(line, payload = "") {
    this.onmessage({ data: `${line === null ? "" : JSON.stringify(line)}\n${payload}` });
  }

  ends(code = 1006, reason = "", wasClean = code !== 1006) {
    this.readyState = 3;
    if (code === 1006) this.onerror?.({});
    this.onclose?.({ code, reason, wasClean });
  }
}
