// The JSON Web Token of `Grip-Sig`, as a backend verifies it. RFC 7515, RFC 7519.

import { createHmac, timingSafeEqual } from "node:crypto";

/** What a token claims, without the time, when it is signed by this key and has not expired; else what is wrong. */
export function verify(token, key) {
  const [head, claims, signature] = token.split(".");
  const wanted = createHmac("sha256", key).update(`${head}.${claims}`).digest();
  const given = Buffer.from(signature ?? "", "base64url");
  if (given.length !== wanted.length || !timingSafeEqual(given, wanted)) return "a wrong signature";
  const { exp, ...more } = JSON.parse(Buffer.from(claims, "base64url"));
  const left = exp - Date.now() / 1000;
  if (!(left > 0 && left <= 3_700)) return `a token that expires in ${left} s`;
  const { alg, typ } = JSON.parse(Buffer.from(head, "base64url"));
  return JSON.stringify({ alg, typ, ...more });
}
