// Where a client is: its last position in each channel and region, and the ids that it has seen lately.
//
// A position is `<region>.<epoch>.<n>.<entry>`. Of two with the same region and epoch the higher `n` is later; others are
// not compared.

/** Positions by channel, as they are stored and sent: the last of each region. */
export type Cursor = Record<string, string[]>;

/** The most channels whose positions are kept; the one that was used least lately goes. The gateway takes as many. */
export const MAX_CHANNELS = 256;

/** The most bytes of a `resume`. The gateway takes 65,536 with what stands around them. */
const MAX_RESUME_BYTES = 60_000;

interface Place {
  region: string;
  epoch: string;
  n: number;
}

function place(position: string): Place | undefined {
  const [region, epoch, n, entry] = position.split(".", 4);
  if (!region || !epoch || !n || !entry || !/^\d+$/.test(n)) return undefined;
  return { region, epoch, n: Number(n) };
}

/** The positions of one client. */
export class Positions {
  /** The channel that was used last stands last. */
  readonly #channels = new Map<string, Map<string, string>>();

  /** Takes positions that were exported. What is no position is passed over. */
  constructor(cursor: Cursor = {}) {
    for (const [channel, positions] of Object.entries(cursor)) {
      for (const position of positions) this.set(channel, position);
    }
  }

  /** The client has the channel up to here. */
  set(channel: string, position: string): void {
    const at = place(position);
    if (!at || !channel) return;
    const regions = this.#channels.get(channel) ?? new Map<string, string>();
    regions.set(at.region, position);
    this.#channels.delete(channel);
    this.#channels.set(channel, regions);
    for (const oldest of this.#channels.keys()) {
      if (this.#channels.size <= MAX_CHANNELS) break;
      this.#channels.delete(oldest);
    }
  }

  /** Forgets a region's position, if it is still this one. */
  forget(channel: string, region: string, position: string | undefined): void {
    const regions = this.#channels.get(channel);
    if (regions?.get(region) !== position) return;
    regions?.delete(region);
    if (regions?.size === 0) this.#channels.delete(channel);
  }

  /** Whether the client has had what is at this position. */
  has(channel: string, position: string): boolean {
    const at = place(position);
    const known = at && place(this.#channels.get(channel)?.get(at.region) ?? "");
    return known !== undefined && at !== undefined && known.epoch === at.epoch && at.n <= known.n;
  }

  /** All of them. */
  export(): Cursor {
    return Object.fromEntries([...this.#channels].map(([channel, regions]) => [channel, [...regions.values()]]));
  }

  /** What fits into a `resume`, what was used last first, and the channels that do not. */
  resume(): { sent: Cursor; left: Set<string> } {
    const sent: Cursor = {};
    const left = new Set<string>();
    let bytes = 0;
    for (const [channel, regions] of [...this.#channels].reverse()) {
      const entry = [...regions.values()];
      // Escaped, a character of a channel's name has 6 bytes at most.
      bytes += 6 * channel.length + 8 + entry.reduce((sum, position) => sum + position.length + 3, 0);
      if (bytes > MAX_RESUME_BYTES) left.add(channel);
      else sent[channel] = entry;
    }
    return { sent, left };
  }

  /** The channels with a position. */
  channels(): string[] {
    return [...this.#channels.keys()];
  }
}

/** The last so many ids. */
export class Recent {
  readonly #ids = new Set<string>();
  readonly #most: number;

  constructor(most: number) {
    this.#most = most;
  }

  /** Adds an id. `false` if it was there. */
  add(id: string): boolean {
    if (this.#most === 0) return true;
    const fresh = !this.#ids.delete(id);
    this.#ids.add(id);
    for (const oldest of this.#ids) {
      if (this.#ids.size <= this.#most) break;
      this.#ids.delete(oldest);
    }
    return fresh;
  }
}
