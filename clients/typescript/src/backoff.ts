// When to try again: exponential back-off with full jitter, so that the clients of a gateway that went do not come back
// together, and what a server has said of it.

/** How long to wait before a try. */
export interface Backoff {
  /** The bound of the first wait, in milliseconds. Default 500. It doubles with each try. */
  baseMs: number;
  /** The highest bound, in milliseconds. Default 30,000. */
  capMs: number;
  /** After a connection was up for so long, in milliseconds, the waits begin anew. Default 10,000. */
  resetAfterMs: number;
}

export const DEFAULT_BACKOFF: Backoff = { baseMs: 500, capMs: 30_000, resetAfterMs: 10_000 };

/** The longest wait that a server's Retry-After is followed for. */
const MAX_RETRY_AFTER_MS = 3_600_000;

/** A wait before try number `attempt`, the first of which is 0: evenly between nothing and its bound. */
export function jittered({ baseMs, capMs }: Backoff, attempt: number, random: () => number): number {
  return random() * Math.min(capMs, baseMs * 2 ** Math.min(attempt, 30));
}

/** A Retry-After in milliseconds from `now` on: seconds, or a date. RFC 9110 §10.2.3. `undefined` if it is neither. */
export function retryAfter(value: string | undefined, now: number): number | undefined {
  if (value === undefined) return undefined;
  const text = value.trim();
  const millis = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - now;
  return Number.isNaN(millis) ? undefined : Math.min(Math.max(millis, 0), MAX_RETRY_AFTER_MS);
}

/** Whether a connection that ended with this code is worth another: not one that was finished, or that was refused for what was sent. */
export function isWorthRetrying(code: number): boolean {
  switch (code) {
    case 1001: // The server, or the endpoint behind it, goes away.
    case 1005: // It gave no code.
    case 1006: // The connection broke, or was never made.
    case 1011: // Its backend failed.
    case 1012: // It restarts.
    case 1013: // It is to be tried again: overload, or a client that read too slowly.
    case 1014:
      return true;
    default:
      return false;
  }
}
