// The backend of a chat in several regions. Every region has one of it, behind a gateway of its own; all have one database,
// which is the truth of what was said and in which order. It keeps no list of its clients: it subscribes each to its room
// by GRIP, and the gateways of all regions deliver.
//
//   PORT=9001 DATABASE=postgres://… PUBLISH=http://127.0.0.1:5561/publish node backend.mjs
//
// WebSocket /rooms/NAME?user=U     The newest messages of the room, and then what is said in it.
//   &after=SEQ                     The client has the room's messages up to this number,
//   &place=1                       and its place in what was published: nothing is read from the database.
// GET /rooms/NAME/since?after=SEQ  What a gateway asks for a client that may have missed something; Meta-Had: SEQ is newer.
//
// A client sends {"id": UUID, "text": TEXT}, and again until it is answered {"ack": UUID, "seq": N}: then the message is in
// the database and in the region's log, once. {"had": SEQ}: it has all up to this number. It is sent {"history": [M, …],
// "more": whether another follows}, and what is published: M = {"seq", "id", "user", "text"}. The numbers of a room have no
// holes. The same message may come from both; its number tells.

import http from "node:http";
import pg from "pg";
import { WebSocketServer } from "ws";

const { PORT = "0", DATABASE, PUBLISH } = process.env;
/** How many messages a newcomer is shown. */
const NEWEST = 50;
/** Messages of a page, which has under 700,000 bytes whatever is in it; bytes of an answer: a gateway takes 1,000,000. */
const [PAGE, ANSWER_BYTES] = [100, 950_000];
/** A text's and a name's length in characters; how many messages of a client wait to be stored before it is not read. */
const [MAX_TEXT, MAX_NAME, MAX_WAITING] = [1_000, 64, 32];
/** How long the database and the gateway may take; after how long a message that is not published is published by whoever
 * finds it; how often it is looked for. In milliseconds. */
const [PATIENCE, STALE, SWEEP] = [3_000, 4_000, 500];
const ROOM = /^\/rooms\/([\w-]{1,64})(\/since)?$/;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

const limits = { max: 8, connectionTimeoutMillis: PATIENCE, query_timeout: PATIENCE, statement_timeout: PATIENCE };
const database = new pg.Pool({ connectionString: DATABASE, ...limits });
database.on("error", (error) => complain("database", error));
const complain = (what, error) => console.error(JSON.stringify({ what, error: String(error.message ?? error) }));

/** The outbox is the column `published`: false until the message is in the log of a region. */
const TABLES = `
  create table if not exists rooms (room text primary key, seq bigint not null default 0);
  create table if not exists messages (
    room text not null references rooms, seq bigint not null, id uuid not null, author text not null, text text not null,
    published boolean not null default false, claimed timestamptz not null default clock_timestamp(),
    primary key (room, seq), unique (room, id));
  create index if not exists outbox on messages (claimed) where not published;`;

/** One statement: a number is taken together with the message that has it, or not at all, and in the order of commits. */
const SAY = `
  with said as (select seq, author, text, published from messages where room = $1 and id = $2),
    next as (update rooms set seq = seq + 1 where room = $1 and not exists (select from said) returning seq)
  , added as (insert into messages (room, seq, id, author, text) select $1, seq, $2, $3, $4 from next
      returning seq, author, text, published)
  select * from added union all select * from said`;

async function say(room, id, user, text) {
  const store = async () => (await database.query(SAY, [room, id, user, text])).rows[0];
  // Stored meanwhile by a backend that was sent it too: then this one finds it.
  const found = (await store().catch((error) => (error.code === "23505" ? store() : Promise.reject(error)))) ??
    (await open(room), await store());
  if (!found.published) await publish(room, message({ id, ...found }));
  return Number(found.seq);
}

const message = ({ seq, id, author, text }) => ({ seq: Number(seq), id, user: author, text });
const open = (room) => database.query("insert into rooms (room) values ($1) on conflict do nothing", [room]);

/** Returns when the message is in the log of a region, where one with its id is stored once, however often it comes. */
async function append(room, item) {
  const formats = { "ws-message": { content: JSON.stringify(item) } };
  const body = JSON.stringify({ items: [{ channel: room, id: item.id, formats }] });
  const answer = await fetch(PUBLISH, { method: "POST", body, signal: AbortSignal.timeout(PATIENCE) });
  await answer.arrayBuffer();
  if (answer.status !== 200) throw new Error(`publishing was answered with ${answer.status}`);
}

async function publish(room, item) {
  await append(room, item);
  // Should this fail it is published again, which changes nothing.
  const marked = database.query("update messages set published = true where room = $1 and id = $2", [room, item.id]);
  marked.catch((error) => complain("outbox", error));
}

/** Publishes what its own backend did not, because it or its gateway has ended in between. */
async function sweep() {
  try {
    const { rows } = await database.query(`
      update messages set claimed = clock_timestamp() where (room, seq) in (select room, seq from messages
        where not published and claimed < clock_timestamp() - $1 * interval '1 ms'
        order by claimed limit 100 for update skip locked)
      returning room, seq, id, author, text`, [STALE]);
    for (const { room, ...row } of rows.sort((one, other) => one.seq - other.seq)) await publish(room, message(row));
  } catch (error) {
    complain("sweep", error);
  }
  setTimeout(sweep, SWEEP);
}

/** Subscribes a client, and says where to ask for what is behind `after`, should the client have missed something. */
function subscribe(room, after, prevId) {
  const recover = { "on-gap": "link", link: `/rooms/${room}/since?after=${after}` };
  return `c:${JSON.stringify({ type: "subscribe", channel: room, recover, ...(prevId && { "prev-id": prevId }) })}`;
}

/**
 * What a client is sent that is new, or may have missed something behind `after`: pages from the database, and a
 * subscription that goes on behind them.
 *
 * Behind which message? One that is in the log before the last page is read: then whatever that page has not was stored
 * later, and comes. The room's newest is put there again, in case that the log has lost or forgotten it; where it is,
 * that changes nothing. What comes and was in a page the client knows by its number.
 */
async function catchUp(room, after) {
  await open(room);
  const { rows: [row] } = await database.query("select * from messages where room = $1 order by seq desc limit 1", [room]);
  const newest = row ? message(row) : { seq: 0, id: `begin:${room}` };
  await append(room, newest);
  const texts = [];
  let [last, bytes] = [after ?? Math.max(0, newest.seq - NEWEST), 0];
  for (;;) {
    const { rows } = await database.query(
      "select seq, id, author, text from messages where room = $1 and seq > $2 order by seq limit $3", [room, last, PAGE]);
    const page = `m:${JSON.stringify({ history: rows.map(message), more: rows.length === PAGE })}`;
    bytes += Buffer.byteLength(page);
    // There is more than an answer may have. No log has this id: the gateway asks again, for what is behind this.
    if (bytes > ANSWER_BYTES) return [...texts, subscribe(room, last, `more:${last}`)];
    texts.push(page);
    last = Number(rows.at(-1)?.seq ?? last);
    if (rows.length < PAGE) return [...texts, subscribe(room, last, newest.id)];
  }
}

const server = http.createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, "http://backend");
  const [, room, link] = ROOM.exec(pathname) ?? [];
  if (!link) return response.writeHead(pathname === "/" ? 200 : 404).end();
  try {
    const known = [searchParams.get("after"), request.headers["meta-had"]].map((seq) => Number(seq) || 0);
    const texts = await catchUp(room, Math.max(...known));
    response.setHeader("content-type", "application/websocket-events");
    response.end(texts.map((text) => `TEXT ${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`).join(""));
  } catch (error) {
    complain("since", error);
    response.writeHead(503).end();
  }
});

const sockets = new WebSocketServer({ noServer: true, maxPayload: 16 << 10 });
sockets.on("headers", (headers) => headers.push("Sec-WebSocket-Extensions: grip"));
server.on("upgrade", (request, socket, head) => {
  const url = new URL(request.url, "http://backend");
  const [, room, link] = ROOM.exec(url.pathname) ?? [];
  const offered = request.headers["sec-websocket-extensions"] === "grip";
  if (!room || link || !offered) return socket.end("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
  sockets.handleUpgrade(request, socket, head, (client) => serve(client, room, url.searchParams));
});

/** One client. What it sends is done in its order, one after the other. */
function serve(client, room, asked) {
  const user = (asked.get("user") ?? "somebody").slice(0, MAX_NAME);
  const after = asked.has("after") ? Number(asked.get("after")) || 0 : undefined;
  let waiting = 0;
  let turn = (asked.has("place") && after !== undefined ? Promise.resolve([subscribe(room, after)]) : catchUp(room, after))
    .then((texts) => texts.forEach((text) => client.send(text)))
    .catch((error) => (complain("join", error), client.close(1013, "try again later")));
  client.on("error", (error) => complain("client", error));
  client.on("message", (data) => {
    waiting += 1;
    if (waiting === MAX_WAITING) client.pause();
    turn = turn.then(() => hear(client, room, user, data)).catch((error) => complain("message", error)).then(() => {
      waiting -= 1;
      if (client.isPaused) client.resume();
    });
  });
}

async function hear(client, room, user, data) {
  const { id, text, had } = JSON.parse(data);
  if (Number.isSafeInteger(had)) return client.send(`c:${JSON.stringify({ type: "set-meta", name: "had", value: String(had) })}`);
  if (!UUID.test(id) || typeof text !== "string" || text.length > MAX_TEXT) throw new Error("no message of a chat");
  const seq = await say(room, id, user, text);
  client.send(`m:${JSON.stringify({ ack: id, seq })}`);
}

process.on("SIGTERM", () => process.exit(0));
// Backends that start together would create them together, which PostgreSQL refuses: one after the other.
await database.query(`select pg_advisory_xact_lock(1); ${TABLES}`);
sweep();
server.listen(Number(PORT), "127.0.0.1", () => console.log(JSON.stringify({ listening: server.address().port })));
