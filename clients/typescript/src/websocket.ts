// What is needed of a WebSocket: the browsers', Node's own, or `ws`.

/** A WebSocket, as far as it is used here. */
export interface WebSocketLike {
  readonly readyState: number;
  readonly protocol: string;
  readonly extensions?: string;
  readonly url?: string;
  readonly bufferedAmount: number;
  binaryType: string;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  send(data: any): void;
  close(code?: number, reason?: string): void;
}

/** Makes one. The third argument is for `ws`. */
export type WebSocketConstructor = new (url: any, protocols?: any, options?: any) => WebSocketLike;

/** What an HTTP server answered instead of a WebSocket. */
export interface Refusal {
  status: number;
  retryAfter: string | undefined;
}

/** Has `refused` called with an answer that is no WebSocket, where the implementation says it: `ws` does. */
export function watchRefusals(socket: WebSocketLike, refused: (refusal: Refusal) => void): void {
  const { on, terminate } = socket as { on?: unknown; terminate?: unknown };
  if (typeof on !== "function" || typeof terminate !== "function") return;
  type Answer = { statusCode?: number; headers?: Record<string, string | undefined>; resume?: () => void };
  on.call(socket, "unexpected-response", (_request: unknown, answer: Answer) => {
    refused({ status: answer.statusCode ?? 0, retryAfter: answer.headers?.["retry-after"] });
    answer.resume?.();
    // Who listens for this has to end the connection; the socket says so by error and close.
    terminate.call(socket);
  });
}

/** Has `seen` called with each ping of the server, where the implementation shows them: `ws` does. Answers whether it does. */
export function watchPings(socket: WebSocketLike, seen: () => void): boolean {
  const { on } = socket as { on?: unknown };
  if (typeof on !== "function") return false;
  on.call(socket, "ping", seen);
  return true;
}
