// @sluicegate/client: see README.md.

export { isWorthRetrying, type Backoff } from "./backoff.js";
export type { Cursor } from "./cursor.js";
export {
  DisconnectEvent, GapEvent, SocketCloseEvent, SocketMessageEvent, SubscriptionEvent, type GapReason,
  type SluicegateSocketEventMap,
} from "./events.js";
export type { Data } from "./lines.js";
export { SluicegateSocket, type Loss, type SluicegateSocketOptions } from "./socket.js";
export type { WebSocketConstructor, WebSocketLike } from "./websocket.js";
