// What a SluicegateSocket tells its listeners. The classes are ours, since Node has no CloseEvent before version 23.

/** A message, of the backend's own or of a channel. */
export class SocketMessageEvent extends Event {
  /** Text, or as `binaryType` says. */
  readonly data: string | ArrayBuffer | Blob;
  /** The channel; `undefined` for a message of the backend's own. */
  readonly channel: string | undefined;
  /** Its position in the channel. */
  readonly position: string | undefined;
  /** The id that its publisher gave it. */
  readonly id: string | undefined;
  /** When it was stored, in milliseconds since 1970. */
  readonly storedAt: number | undefined;
  /** As EventSource has it: the id, or nothing. */
  readonly lastEventId: string;
  /** Where it comes from, as MessageEvent has it. */
  readonly origin: string;

  constructor(
    data: string | ArrayBuffer | Blob,
    origin: string,
    of: { channel?: string | undefined; position?: string | undefined; id?: string | undefined; storedAt?: number | undefined } = {},
  ) {
    super("message");
    this.data = data;
    this.origin = origin;
    this.channel = of.channel;
    this.position = of.position;
    this.id = of.id;
    this.storedAt = of.storedAt;
    this.lastEventId = of.id ?? "";
  }
}

/** The end: no other connection is made. */
export class SocketCloseEvent extends Event {
  readonly code: number;
  readonly reason: string;
  readonly wasClean: boolean;

  constructor(code: number, reason: string, wasClean: boolean) {
    super("close");
    this.code = code;
    this.reason = reason;
    this.wasClean = wasClean;
  }
}

/** A connection was lost, or could not be made. */
export class DisconnectEvent extends Event {
  /** As a close event has it; 1006 for a connection that was never made. */
  readonly code: number;
  readonly reason: string;
  readonly wasClean: boolean;
  /** The HTTP status that the server answered instead, where the WebSocket says it (`ws` for Node does, browsers do not). */
  readonly status: number | undefined;
  /** After how many milliseconds another one is made; `undefined` if none is. */
  readonly retryInMs: number | undefined;

  constructor(
    of: { code: number; reason: string; wasClean: boolean; status: number | undefined },
    retryInMs: number | undefined,
  ) {
    super("disconnect");
    this.code = of.code;
    this.reason = of.reason;
    this.wasClean = of.wasClean;
    this.status = of.status;
    this.retryInMs = retryInMs;
  }
}

/**
 * Why messages may be missing. Of the gateway: `trimmed`, `lineage`, `limit`, `expired`, `region_down`, and what later
 * versions say. Of this client: `not_resumable`, the connection is one without the subprotocol; `limit`, it keeps more
 * positions than a resume holds.
 */
export type GapReason = "trimmed" | "lineage" | "limit" | "expired" | "region_down" | "not_resumable" | (string & {});

/** Messages of a channel may be missing: the application is to get its state anew. */
export class GapEvent extends Event {
  readonly channel: string;
  /** In whose log; `undefined` for all. */
  readonly region: string | undefined;
  readonly why: GapReason;
  /** The last position in front of it, where it is known. */
  readonly from: string | undefined;
  /** The first position behind it, where it is known. */
  readonly to: string | undefined;

  constructor(of: { channel: string; region?: string | undefined; why: GapReason; from?: string | undefined; to?: string | undefined }) {
    super("gap");
    this.channel = of.channel;
    this.region = of.region;
    this.why = of.why;
    this.from = of.from;
    this.to = of.to;
  }
}

/** The backend has subscribed this connection to a channel. */
export class SubscriptionEvent extends Event {
  readonly channel: string;
  /** `live`: from now on. `recovered`: nothing is missing. `gap`: something may be. `pending`: not known yet. */
  readonly state: "live" | "recovered" | "gap" | "pending" | (string & {});
  /** How many messages follow that were sent before. */
  readonly replayed: number;

  constructor(channel: string, state: string, replayed: number) {
    super("subscription");
    this.channel = channel;
    this.state = state;
    this.replayed = replayed;
  }
}

/** The events by name. */
export interface SluicegateSocketEventMap {
  /** A connection is open: the first, and each after a loss. */
  open: Event;
  message: SocketMessageEvent;
  /** A connection could not be made, or broke; a `disconnect` follows. */
  error: Event;
  /** The end. */
  close: SocketCloseEvent;
  disconnect: DisconnectEvent;
  gap: GapEvent;
  subscription: SubscriptionEvent;
}
