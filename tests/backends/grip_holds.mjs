// A backend that answers each request as the request's query says, for holds: `headers` is a JSON array of names and
// values, `body` the body, `status` the status. With `then` a request that has Grip-Last is answered as that query says.
//
//   node grip_holds.mjs [PORT]     GET /asked answers the requests so far: method, URL, headers and body

import http from "node:http";
import { listen } from "./ready.mjs";

const asked = [];
const server = http.createServer(async (request, response) => {
  if (request.url === "/asked") return response.end(JSON.stringify(asked));
  let body = "";
  for await (const piece of request) body += piece;
  asked.push({ method: request.method, url: request.url, headers: request.headers, body: body.slice(0, 100) });
  let query = new URL(request.url, "http://backend").searchParams;
  if (request.headers["grip-last"] && query.has("then")) query = new URLSearchParams(query.get("then"));
  response.statusCode = Number(query.get("status") ?? 200);
  for (const [name, value] of JSON.parse(query.get("headers") ?? "[]")) response.appendHeader(name, value);
  response.end(query.get("body") ?? "");
});
listen(server);
