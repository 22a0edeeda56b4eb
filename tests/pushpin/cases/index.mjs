// All cases, by the mode of the proxy that each needs.

import grip from "./grip.mjs";
import overHttp from "./grip_http.mjs";
import hold from "./hold.mjs";
import publish from "./publish.mjs";

export const CASES = [...grip, ...overHttp, ...hold, ...publish];
