// Plays one fault once, and judges it by what is in the file of its history.

import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { INVARIANTS, check, parse } from "./checker.mjs";
import { RegionWorld } from "./regions.mjs";
import { World } from "./world.mjs";

const FOLDER = fileURLToPath(new URL("../../target/faults/", import.meta.url));

/** Every fault on every engine that it applies to. */
export const pairs = (cases) => cases.flatMap((each) => each.engines.map((engine) => ({ fault: each, engine })));

const worlds = new Set();

/** Ends the processes of the runs that go on, when this one is ended. */
export function endWithMe() {
  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.once(signal, () => {
      for (const world of worlds) world.killAll();
      process.exit(130);
    });
  }
}

/** Answers `{ counts, violations, file }`. */
export async function play({ fault, engine, seed, long }) {
  const kind = engine === "regions" ? RegionWorld : World;
  const world = await kind.start({ ...fault.options, engine, seed, title: fault.name }).catch((error) => {
    throw new Error(`${fault.name}, ${engine}, seed ${seed}: ${error.message}`, { cause: error });
  });
  worlds.add(world);
  let failure;
  try {
    world.traffic();
    await fault.play(world, long);
    await world.settle();
  } catch (error) {
    failure = error;
  } finally {
    await world.stop();
    worlds.delete(world);
  }
  await mkdir(FOLDER, { recursive: true });
  const file = `${FOLDER}${fault.name.replaceAll(/[^\w]+/g, "-")}-${engine}-${seed}.jsonl`;
  await writeFile(file, world.records.map((record) => `${JSON.stringify(record)}\n`).join(""));
  if (failure) throw new Error(`${fault.name}, ${engine}, seed ${seed}: ${failure.message} (${file})`, { cause: failure });
  const { counts, violations } = check(parse(await readFile(file, "utf8")));
  // Many runs make many histories: those that show nothing are not kept.
  if (long && violations.length === 0) await rm(file);
  return { counts, violations, file };
}

/** What an invariant that does not hold is reported by. */
export const explain = ({ violations, file }, seed) =>
  [`seed ${seed}, ${file}, ${violations.length} in all`, ...violations.slice(0, 5).map(
    ({ invariant, detail }) => `${invariant} (${INVARIANTS[invariant]}): ${detail}`)].join("\n");
