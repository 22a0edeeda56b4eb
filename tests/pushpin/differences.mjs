// Where the gateway and Pushpin 1.36 differ, and why. A difference has the case, the part of the transcript, and what
// each of the two does: one that is not here fails, and one that is here and does not occur fails too.
//
// `pushpin` and `ours` are what the part must hold: for the part `client`, what the client got; for `control` the
// status and the body of the last answer.

const MALFORMED = "A request that is wrong is refused, where Pushpin passes over what it cannot read: the item would go to nobody, or not as it was meant.";
const CLOSE = "A Close frame without a code stays one (RFC 6455 §7.1.5: 1005 is what its receiver reports). Pushpin makes it 1000.";
const invalid = (what) => [400, `Invalid format: ${what}\n`];
const PUBLISHED = [200, "Published\n"];

export const DIFFERENCES = [
  {
    case: "request headers of a client, forged ones of GRIP among them", part: "headers",
    pushpin: [[]], ours: [["sec-websocket-extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover"]],
    why: "Clients that offer compression get it, between them and the gateway.",
  },
  {
    case: "a backend that refuses the handshake", part: "headers",
    pushpin: [["content-length: 8"]], ours: [["content-length: 8", "content-type: text/plain", "x-why: no"]],
    why: "A backend's refusal reaches the client as it is. Pushpin's has the status and the body, without the backend's headers and the reason phrase.",
  },
  {
    case: "a backend that refuses the handshake", part: "answer",
    pushpin: ["HTTP/1.1 403 "], ours: ["HTTP/1.1 403 Forbidden"],
    why: "The same.",
  },
  {
    case: "an empty prefix", part: "client",
    pushpin: [["one", "m:two"]], ours: [[]],
    why: "Without a prefix, whoever makes a backend repeat `c:{…}` writes control messages. The gateway refuses it with 502.",
  },
  { case: "an empty prefix", part: "answer", pushpin: ["HTTP/1.1 101 Switching Protocols"], ours: ["HTTP/1.1 502 Bad Gateway"], why: "The same." },
  { case: "an empty prefix", part: "headers", pushpin: [[]], ours: [["content-length: 112", "content-type: application/problem+json"]], why: "The same." },
  {
    case: "a prefix that is split over frames", part: "client",
    pushpin: [[":split", "after", "the end"]], ours: [["after", "the end"]],
    why: "The first frame does not begin with the prefix, so the message is dropped. Pushpin drops that frame alone, and makes a message of the rest.",
  },
  {
    case: "pings and pongs of the backend", part: "client",
    pushpin: [[{ ping: "" }, { pong: "" }, "end"]],
    ours: [[{ ping: "6f6620746865206261636b656e64" }, { pong: "756e61736b6564" }, "end"]],
    why: "Pings and pongs keep their payload (RFC 6455 §5.5.3). Pushpin empties them.",
  },
  {
    case: "pings and pongs of the client", part: "backend",
    pushpin: [[{ ping: "" }, { pong: "" }, "end"]],
    ours: [[{ ping: "6f662074686520636c69656e74" }, { pong: "756e61736b6564" }, "end"]],
    why: "The same.",
  },
  ...["close without a code by the backend", "close without a code by the client", "a close that is published without a code"].map((name) => ({
    case: name, part: "client", pushpin: [[{ close: [1000, ""] }]], ours: [[{ close: [] }]], why: CLOSE,
  })),
  {
    case: "a close that is published", part: "backend", pushpin: [[{ close: [] }]], ours: [[{ close: [4002, "over"] }]],
    why: "The backend gets the Close frame that its client answered with.",
  },
  {
    case: "a backend that drops the connection", part: "client",
    pushpin: [["one"]], ours: [["one", { close: [1012, "upstream connection lost"] }]],
    why: "The client is told that it may come back. Pushpin cuts it off.",
  },
  {
    case: "a backend that drops the connection", part: "ended", pushpin: [true], ours: ["closed"], why: "The same.",
  },
  {
    case: "detach", part: "backend", pushpin: [[{ close: [] }]], ours: [[{ close: [1000, ""] }]],
    why: "The backend asked for the end: it is told that it is a normal one.",
  },
  {
    case: "a published message waits for the end of the backend's own", part: "client",
    pushpin: [["first half", "behind it", "later"]], ours: [["first half", "published", "behind it", "later"]],
    why: "What is published while the backend is within a message comes behind that message. Pushpin 1.36 loses it.",
  },
  {
    case: "more than 5 filters", part: "client", pushpin: [[]], ours: [[{ close: [1011, "too many filters"] }]],
    why: "The client is told the end of its session. 1.36 says nothing, and leaves the connection without a subscription.",
  },
  { case: "more than 5 filters", part: "ended", pushpin: [null], ours: ["closed"], why: "The same." },
  {
    case: "a filter that nobody knows", part: "client",
    pushpin: [["alive", "to a", "to b"]], ours: [["alive", "to b"]],
    why: "A subscription with a filter that is not in this version is passed over: without the filter the client would get what it must not.",
  },
  {
    case: "require-sub", part: "client", pushpin: [[]], ours: [["with b"]],
    why: "A client that is subscribed to the channel of `require_sub` gets the message. Pushpin 1.36 drops it for every WebSocket.",
  },
  {
    case: "build-id", part: "client", pushpin: [["id i2"]], ours: [["id ", "id i2"]],
    why: "The id of a channel of which nothing with an id has come is empty. Pushpin drops the message.",
  },
  {
    case: "items out of order", part: "client", pushpin: [["1", "2", "3"]], ours: [["1", "3", "2"]],
    why: "The order is that in which items are stored, the same on every gateway. Pushpin holds an item back for up to 5 s until the one before it comes.",
  },
  {
    case: "content-bin, and every type", part: "client",
    pushpin: [[{ binary: "0001026d3a" }, "text", { binary: "61732062696e617279" }, { ping: "70696e67" }, { pong: "706f6e67" }]],
    ours: [[{ binary: "0001026d3a" }, "text", { binary: "61732062696e617279" }, { ping: "70696e67" }, { ping: "" }, { pong: "706f6e67" }, { pong: "" }]],
    why: "A ping or pong without content is sent. Pushpin takes it and drops it.",
  },
  ...["http: a close without a code", "http: a message is answered with a close without a code"].map((name) => ({
    case: name, part: "client", pushpin: [[{ close: [1000, ""] }]], ours: [[{ close: [] }]], why: CLOSE,
  })),
  {
    case: "http: binary, empty and large messages", part: "events",
    pushpin: ["OPEN\r\n", "BINARY 4\r\n\u0000\u0001\r\n\r\n", "TEXT\r\n", `TEXT 1388\r\n${"x".repeat(5_000)}\r\n`, "TEXT 3\r\nend\r\n"],
    ours: ["OPEN\r\n", "BINARY 4\r\n\u0000\u0001\r\n\r\n", "TEXT 0\r\n\r\n", `TEXT 1388\r\n${"x".repeat(5_000)}\r\n`, "TEXT 3\r\nend\r\n"],
    why: "An empty message has a length, as the protocol's description has it. Pushpin 1.36 writes it without.",
  },
  {
    case: "http: a close that is published", part: "events",
    pushpin: ["OPEN\r\n", "CLOSE\r\n"], ours: ["OPEN\r\n", "CLOSE 6\r\n\u000f\u00a2over\r\n"],
    why: "The backend gets what its client answered with.",
  },
  ...["no OPEN", "no events", "malformed events"].map((name) => ({
    case: `http: the handshake is answered with ${name}`, part: "headers",
    pushpin: [["content-length: 32"]], ours: [["content-length: 112", "content-type: application/problem+json"]], why: "The gateway's refusals have one form.",
  })),
  ...["a status that is none", "another content type", "DISCONNECT", "a second OPEN", "malformed events"].flatMap((name) => [
    ["client", [[]], [[{ close: [1012, "upstream connection lost"] }]]], ["ended", [true], ["closed"]],
  ].map(([part, theirs, own]) => ({
    case: `http: a message is answered with ${name}`, part, pushpin: theirs, ours: own,
    why: "The client is told that it may come back. Pushpin cuts it off.",
  }))),
  {
    case: "a hint and a refresh", part: "control", nth: 1, pushpin: invalid(""), ours: PUBLISHED,
    why: "`refresh` is an action of later versions of Pushpin, and 1.36 does not know it.",
  },
  ...[["GET", "GET"], ["PUT", "PUT"]].map(([name, method]) => ({
    case: `publish: ${name}`, part: "control", pushpin: [405, `Method not allowed: ${method}.\n`], ours: [405, "Method Not Allowed\n"],
    why: "An answer repeats nothing of the request.",
  })),
  { case: "publish: GET of the root", part: "control", pushpin: [200, "Pushpin API\n"], ours: [200, "Hello\n"], why: "The name of a product." },
  ...["a text", "a number", "null"].map((name) => ({
    case: `publish: ${name}`, part: "control", pushpin: [400, "Body is not valid JSON.\n"], ours: [400, "Invalid format.\n"],
    why: "It is JSON, and no object.",
  })),
  {
    case: "publish: items that are null", part: "control",
    pushpin: invalid("object contains 'items' with wrong type"), ours: invalid("object does not contain 'items'"),
    why: "`null` is as good as nothing, here and in every field.",
  },
  {
    case: "publish: a message whose content is null", part: "control",
    pushpin: invalid("'ws-message' contains 'content' with wrong type"), ours: invalid("'ws-message' does not contain 'content' or 'content-bin'"),
    why: "The same.",
  },
  {
    case: "publish: an action that nobody knows", part: "control",
    pushpin: invalid(""), ours: invalid("'ws-message' contains 'action' with unknown value"), why: "The answer says what is wrong.",
  },
  ...[
    ["an empty channel", "publish item object contains 'channel' with invalid value"],
    ["unknown formats alone", "no formats specified"],
    ["a message whose content-bin is no base64", "'ws-message' contains 'content-bin' with invalid value"],
    ["a close with a text as its code", "'ws-message' contains 'code' with wrong type"],
    ["a size that is a text", "publish item object contains 'size' with wrong type"],
    ["http-response whose code is a text", "'http-response' contains 'code' with wrong type"],
  ].map(([name, what]) => ({ case: `publish: ${name}`, part: "control", pushpin: PUBLISHED, ours: invalid(what), why: MALFORMED })),
  {
    case: "publish: a body of a million bytes and one", part: "control",
    pushpin: [400, "Request body too large.\n"], ours: [413, "Body is too long.\n"], why: "The status that HTTP has for it (RFC 9110 §15.5.14).",
  },
  {
    case: "publish: recover", part: "control", pushpin: [200, "Updated\n"], ours: [404, "Not Found\n"],
    why: "There is nothing to recover: every gateway reads the log.",
  },
];

/** What is different in every case: headers that only one of the two adds to requests, by the mode. */
export const EVERYWHERE = [
  {
    modes: ["grip", "grip_http", "hold"], by: "ours", headers: ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"],
    why: "The backend is told who the client is, as on every rule. Pushpin does where its configuration says so.",
  },
  {
    modes: ["grip_http", "hold"], by: "pushpin", headers: ["accept-encoding"],
    why: "What a backend may compress, the gateway could not read. Pushpin's HTTP client offers to inflate it.",
  },
  { modes: ["hold"], by: "pushpin", headers: ["accept"], why: "The client sent none." },
];
