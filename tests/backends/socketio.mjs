// A Socket.IO server with both transports, as its guide has it.
//
//   node socketio.mjs [PORT]        PERMESSAGE_DEFLATE=1 compresses what it sends over WebSockets, from a byte on
//
// The event `echo` comes back as it is, in an acknowledgement when one is asked for; the event `transport` answers with
// the transport in use, and `port` with the server's own. GET / is plain HTTP; GET /port answers the port; GET /seen lists
// every connection so far with its transport at the end.

import http from "node:http";
import { Server } from "socket.io";
import { listen } from "./ready.mjs";

const connections = [];

const server = http.createServer((request, response) => {
  if (request.url === "/seen") {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(connections));
  } else if (request.url === "/port") {
    response.end(String(server.address().port));
  } else {
    response.setHeader("content-type", "text/plain");
    response.end("socket.io backend\n");
  }
});

const perMessageDeflate = process.env.PERMESSAGE_DEFLATE === "1" && { threshold: 0 };
new Server(server, { perMessageDeflate }).on("connection", (socket) => {
  const connection = { transport: socket.conn.transport.name, echoes: 0, ended: null };
  connections.push(connection);
  socket.conn.on("upgrade", (transport) => (connection.transport = transport.name));
  socket.on("echo", (value, acknowledge) => {
    connection.echoes += 1;
    if (acknowledge) acknowledge(value);
    else socket.emit("echo", value);
  });
  socket.on("transport", (acknowledge) => acknowledge(socket.conn.transport.name));
  socket.on("port", (acknowledge) => acknowledge(server.address().port));
  socket.on("disconnect", (why) => (connection.ended = why));
});

listen(server);
