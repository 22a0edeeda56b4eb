// What messages of tests are made of: the same bytes each time, in every language that makes them.

import { createHash } from "node:crypto";

export const sha256 = (data) => createHash("sha256").update(data).digest("hex");

/** So many bytes that nothing compresses: SHA-256 of "0", of "1", and so on. */
export function noise(bytes) {
  const parts = [];
  for (let i = 0; i * 32 < bytes; i += 1) parts.push(createHash("sha256").update(String(i)).digest());
  return Buffer.concat(parts).subarray(0, bytes);
}

/** A JSON text of so many records, about 60 bytes each, as an API would send it. */
export function records(count) {
  const record = (_, i) => `{"id":${i},"name":"user ${(i * 7919) % 1000}","greeting":"grüße","active":${i % 3 === 0}}`;
  return `[${Array.from({ length: count }, record).join(",")}]`;
}

/** The small texts of the step `send_many`. */
export const many = (count) => Array.from({ length: count }, (_, i) => `{"event":"tick","number":${i}}`);
