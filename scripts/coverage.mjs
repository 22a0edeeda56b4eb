// Measures which lines of src/ws and src/policy the unit tests run, and writes docs/coverage.md.
//
//   node scripts/coverage.mjs
//
// Fails below MIN_PERCENT, at a line that no test runs and scripts/uncovered.json does not explain, and at an
// explanation of a line that is run or gone. `scripts/setup coverage` comes first.

import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { relative } from 'node:path'

const FOLDERS = ['src/ws/', 'src/policy/']
const MIN_PERCENT = 95
const LCOV = 'target/coverage.lcov'
const PAGE = 'docs/coverage.md'

/** Runs the unit tests with counters, and leaves how often each line ran in LCOV. */
function measure () {
  execFileSync('target/tools/bin/cargo-llvm-cov', ['llvm-cov', '--locked', '--lib', '--lcov', '--output-path', LCOV], {
    stdio: 'inherit',
    // rustup's own tools cannot be had everywhere; Debian's of the same LLVM do. Nobody debugs this build.
    env: { LLVM_COV: 'llvm-cov-22', LLVM_PROFDATA: 'llvm-profdata-22', CARGO_PROFILE_DEV_DEBUG: '0', ...process.env }
  })
}

/** The lines that count, by file: number and whether it ran. The tests at the bottom of a file are not counted. */
function read (lcov) {
  const files = new Map()
  let lines, end
  for (const record of lcov.split('\n')) {
    const [key, value] = [record.slice(0, record.indexOf(':')), record.slice(record.indexOf(':') + 1)]
    if (key === 'SF') {
      const path = relative('.', value)
      lines = FOLDERS.some(folder => path.startsWith(folder)) ? [] : undefined
      if (lines) {
        files.set(path, lines)
        const tests = readFileSync(path, 'utf8').split('\n').indexOf('#[cfg(test)]')
        end = tests < 0 ? Infinity : tests
      }
    } else if (key === 'DA' && lines) {
      const [number, count] = value.split(',').map(Number)
      if (number <= end) lines.push({ number, ran: count > 0 })
    }
  }
  return new Map([...files].sort())
}

/** The lines that did not run, each with its text and why. A line of a reason explains one line that did not run. */
function explain (files, reasons) {
  const missing = []
  const left = reasons.flatMap(({ file, lines, why }) => lines.map(text => ({ file, text, why })))
  for (const [path, lines] of files) {
    const source = readFileSync(path, 'utf8').split('\n')
    for (const { number } of lines.filter(line => !line.ran)) {
      const text = source[number - 1].trim()
      const at = left.findIndex(reason => reason.file === path && reason.text === text)
      const [reason] = at < 0 ? [] : left.splice(at, 1)
      missing.push({ path, number, text, why: reason?.why })
    }
  }
  return { missing, unused: left }
}

const percent = (ran, all) => (100 * ran / all).toFixed(1)

function page (files, missing) {
  const git = (...args) => execFileSync('git', args, { encoding: 'utf8' }).trim()
  let all = 0, ran = 0
  const rows = [...files].map(([path, lines]) => {
    const covered = lines.filter(line => line.ran).length
    all += lines.length
    ran += covered
    return `| \`${path}\` | ${lines.length} | ${covered} | ${percent(covered, lines.length)} |`
  })
  const unrun = missing.map(({ path, number, text, why }) =>
    `| \`${path}:${number}\` | \`${text.replaceAll('|', '\\|')}\` | ${why} |`)
  const text = [
    '<!-- Written by make coverage. -->',
    '# Coverage',
    '',
    'Lines of the protocol and the policies that their unit tests run, as LLVM counts them: lines with code, without the',
    'tests themselves. The end-to-end tests, the attacks and the other implementations come on top and are not counted.',
    `Measured on ${new Date().toISOString().slice(0, 10)} at commit ${git('rev-parse', '--short', 'HEAD')} by \`make coverage\`, which fails below`,
    `${MIN_PERCENT} % and at a line that is missing without a reason.`,
    '',
    '| file | lines | run | % |',
    '| --- | --- | --- | --- |',
    ...rows,
    `| all | ${all} | ${ran} | ${percent(ran, all)} |`,
    '',
    ...(unrun.length === 0 ? ['No line is missing.'] : [
      '## Lines that no unit test runs', '', '| line | code | why |', '| --- | --- | --- |', ...unrun
    ]),
    ''
  ].join('\n')
  return { text, percent: 100 * ran / all }
}

measure()
const files = read(readFileSync(LCOV, 'utf8'))
const { missing, unused } = explain(files, JSON.parse(readFileSync('scripts/uncovered.json', 'utf8')))
const written = page(files, missing)
const faults = [
  ...missing.filter(line => !line.why).map(line => `${line.path}:${line.number} is run by no test: ${line.text}`),
  ...unused.map(reason => `scripts/uncovered.json explains a line of ${reason.file} that is run: ${reason.text}`),
  ...(written.percent < MIN_PERCENT ? [`${written.percent.toFixed(1)} % of the lines are run, less than ${MIN_PERCENT} %`] : [])
]
console.log(written.text)
if (faults.length > 0) {
  console.error(faults.join('\n'))
  process.exit(1)
}
writeFileSync(PAGE, written.text)
