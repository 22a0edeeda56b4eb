// All cases, by the mode of the proxy that each needs.

import grip from "./grip.mjs";
import publish from "./publish.mjs";

export const CASES = [...grip, ...publish];
