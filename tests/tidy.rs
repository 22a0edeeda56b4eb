//! The house rules that a compiler does not check, read from the sources themselves.
//!
//! What may import what (the floors of `src/lib.rs`), where metrics are named, where `unsafe` may stand, that nothing is
//! unwrapped, and that each file says what it is and stays readable. Sources are split into tokens first, so that no
//! comment, string or test can be taken for code; the samples at the bottom show that each rule catches its case.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The folders with Rust sources. Rules about the program itself look at `src/` alone.
const FOLDERS: [&str; 4] = ["src", "tests", "benches", "fuzz"];

/// What each part of the crate may use of the others, from the bottom floor to the top.
const FLOORS: [(&str, Uses); 17] = [
    // Floor 0: the protocol, without I/O.
    ("ws", Uses::Only(&["ws"])),
    // Floor 1: what is allowed, and why a session ended.
    ("cause", Uses::Only(&["cause", "ws"])),
    ("policy", Uses::Only(&["policy", "cause", "ws"])),
    ("grip", Uses::Only(&["grip", "ws"])),
    // Floor 2: the places that await, and what they report to.
    ("metrics", Uses::Only(&["metrics", "backplane::recover", "events", "cause", "ws"])),
    ("events", Uses::Only(&["events", "metrics", "cause", "ws"])),
    ("tunnel", Uses::Only(&["tunnel", "metrics", "events", "policy", "cause", "ws"])),
    ("tls", Uses::Only(&["tls", "policy"])),
    ("backplane", Uses::Only(&["backplane", "tunnel", "metrics", "events", "grip", "policy", "ws"])),
    // Floor 3: sockets and HTTP, files, operators.
    ("config", Uses::Only(&["config", "tls", "backplane", "grip::signature", "policy", "cause", "ws"])),
    (
        "admin",
        Uses::Only(&[
            "admin",
            "edge::record",
            "edge::upstreams",
            "tunnel::pressure",
            "tunnel::registry",
            "metrics",
            "events",
            "policy::token",
            "ws::close",
        ]),
    ),
    (
        "edge",
        Uses::Only(&[
            "edge",
            "config",
            "admin",
            "tls",
            "tunnel",
            "backplane",
            "metrics",
            "events",
            "grip",
            "policy",
            "cause",
            "ws",
        ]),
    ),
    // Floor 4: the wiring, and the commands that are programs of their own.
    ("app", Uses::Anything),
    ("cli", Uses::Anything),
    ("tools", Uses::Anything),
    ("main", Uses::Anything),
    ("lib", Uses::Anything),
];

/// What a part must not use of the world outside, and why.
const FOREIGN: [(&str, &[&str], &str); 3] = [
    ("ws", &["tokio", "rand", "log", "std::time", "std::net"], "ws takes bytes and returns values"),
    ("policy", &["tokio"], "a policy decides; the tunnel awaits"),
    ("grip", &["tokio", "rand", "log", "std::time", "std::net"], "grip takes bytes and times and returns values"),
];

/// The one part that names metrics.
const METRICS: &str = "metrics";

/// The one file that may be unsafe.
const UNSAFE: &str = "src/tunnel/sys.rs";

/// The longest source file, in lines: past it, connection state grows to where nobody can follow it.
const MAX_LINES: usize = 700;

/// What a part may use of the crate.
#[derive(Clone, Copy)]
enum Uses {
    Anything,
    /// These modules and what is in them.
    Only(&'static [&'static str]),
}

#[test]
fn imports_go_down_the_floors_only() {
    check(imports);
}

#[test]
fn the_lower_floors_use_no_io_clock_or_runtime() {
    check(foreign);
}

#[test]
fn each_file_opens_by_saying_what_it_is() {
    check(opening);
}

#[test]
fn metrics_are_named_in_one_file() {
    check(metric_names);
}

#[test]
fn one_file_is_unsafe() {
    check(unsafety);
}

#[test]
fn nothing_is_unwrapped_or_left_to_do() {
    check(unwraps);
}

#[test]
fn files_stay_readable() {
    check(length);
}

/// Applies a rule to each file and fails with every breach.
fn check(rule: fn(&Source) -> Vec<String>) {
    let sources = sources();
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "the sources were not found");
    let breaches: Vec<String> = sources.iter().flat_map(rule).collect();
    assert!(breaches.is_empty(), "{} found:\n  {}\n", breaches.len(), breaches.join("\n  "));
}

fn imports(source: &Source) -> Vec<String> {
    let Some(part) = source.part() else { return Vec::new() };
    let Some((_, uses)) = FLOORS.iter().find(|(name, _)| *name == part) else {
        return vec![format!("{}: `{part}` is on no floor; give it a line in FLOORS of tests/tidy.rs", source.path)];
    };
    let Uses::Only(allowed) = uses else { return Vec::new() };
    let mut breaches = Vec::new();
    for path in paths(&source.code) {
        let Some(used) = source.in_crate(&path) else { continue };
        if used.is_empty() || used == ["*"] {
            breaches.push(format!("{}:{}: imports the whole crate; name what it needs", source.path, path.line));
        } else if !allowed.iter().any(|allowed| is_within(&used, allowed)) {
            let (used, line) = (used.join("::"), path.line);
            breaches.push(format!("{}:{line}: uses `{used}`; `{part}` may use {}", source.path, allowed.join(", ")));
        }
    }
    breaches
}

fn foreign(source: &Source) -> Vec<String> {
    let rules = FOREIGN.iter().filter(|(part, ..)| source.part() == Some(part));
    let found = rules.flat_map(|(_, forbidden, why)| {
        paths(&source.code).into_iter().filter_map(move |path| {
            let mut used = path.segments;
            if matches!(used.first().map(String::as_str), Some("core" | "alloc")) {
                used[0] = "std".to_owned();
            }
            let name = forbidden.iter().find(|name| is_within(&used, name))?;
            Some(format!("{}:{}: uses `{name}`: {why}", source.path, path.line))
        })
    });
    found.collect()
}

fn opening(source: &Source) -> Vec<String> {
    let opens = source.text.lines().next().is_some_and(|line| line.starts_with("//! ") && line.len() > "//! ".len());
    if opens { Vec::new() } else { vec![format!("{}:1: does not open with `//!` and what it is", source.path)] }
}

fn metric_names(source: &Source) -> Vec<String> {
    if source.part().is_none_or(|part| part == METRICS) {
        return Vec::new();
    }
    let names = source.code.iter().filter_map(|token| match &token.kind {
        Kind::Text(text) if text.starts_with("sluicegate_") => {
            Some(format!("{}:{}: names the metric `{text}`; only src/{METRICS}.rs does", source.path, token.line))
        }
        _ => None,
    });
    names.collect()
}

fn unsafety(source: &Source) -> Vec<String> {
    if source.path == UNSAFE {
        return Vec::new();
    }
    // `deny(unsafe_code)` and `forbid(unsafe_code)` are welcome; what lifts them is not.
    let patterns: [&[&str]; 3] = [&["unsafe"], &["allow", "(", "unsafe_code"], &["expect", "(", "unsafe_code"]];
    let lines = patterns.iter().flat_map(|pattern| find(&source.all, pattern));
    lines.map(|line| format!("{}:{line}: unsafe code; only {UNSAFE} has some", source.path)).collect()
}

fn unwraps(source: &Source) -> Vec<String> {
    if source.part().is_none() {
        return Vec::new();
    }
    let mut breaches = Vec::new();
    for (pattern, advice) in [
        (
            &[".", "unwrap", "("][..],
            "`.unwrap()`: handle it, or `expect(\"why this holds\")` where the lines above prove it",
        ),
        (&["::", "unwrap"], "`unwrap` as a function: handle it"),
        (&["todo", "!"], "`todo!`"),
        (&["unimplemented", "!"], "`unimplemented!`"),
    ] {
        breaches.extend(find(&source.code, pattern).iter().map(|line| format!("{}:{line}: {advice}", source.path)));
    }
    for tokens in source.code.windows(4) {
        let [dot, expect, open, Token { kind: Kind::Text(reason), line }] = tokens else { continue };
        if dot.is(".") && expect.is("expect") && open.is("(") && reason.trim().is_empty() {
            breaches.push(format!("{}:{line}: `expect` without saying why it holds", source.path));
        }
    }
    breaches
}

fn length(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    if source.part().is_none() || lines <= MAX_LINES {
        return Vec::new();
    }
    vec![format!("{}: {lines} lines, the limit is {MAX_LINES}: look for a seam", source.path)]
}

/// A source file, and its tokens.
struct Source {
    /// Below the root of the package, with forward slashes.
    path: String,
    text: String,
    /// Each token of the file.
    all: Vec<Token>,
    /// The tokens outside `#[cfg(test)]`.
    code: Vec<Token>,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let all = tokens(text);
        let (code, _) = without_tests(&all);
        Self { path: path.to_owned(), text: text.to_owned(), all, code }
    }

    /// The modules that lead to this file, from the crate's root; `None` outside of `src/`.
    fn module(&self) -> Option<Vec<&str>> {
        let path = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        Some(path.strip_suffix("/mod").unwrap_or(path).split('/').collect())
    }

    /// The part of the crate that this file belongs to.
    fn part(&self) -> Option<&str> {
        self.module().and_then(|module| module.first().copied())
    }

    /// What `path` names, from the crate's root; `None` when that is not in this crate.
    fn in_crate(&self, path: &UsedPath) -> Option<Vec<String>> {
        let ups = path.segments.iter().take_while(|segment| *segment == "super").count();
        if ups == 0 {
            return path.segments.strip_prefix(&["crate".to_owned()]).map(<[String]>::to_vec);
        }
        let mut module: Vec<String> = self.module()?.into_iter().map(str::to_owned).collect();
        module.extend(path.inside.iter().cloned());
        module.truncate(module.len().saturating_sub(ups));
        module.extend_from_slice(&path.segments[ups..]);
        Some(module)
    }
}

/// Every Rust source of the package. A file that only `#[cfg(test)] mod` brings in has no `code`.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root.join(folder), &mut files);
    }
    files.sort();
    let mut sources: Vec<Source> = files
        .iter()
        .map(|file| {
            let text = fs::read_to_string(file).expect("a source is text");
            let path =
                file.strip_prefix(root).expect("it was found below the root").to_string_lossy().replace('\\', "/");
            Source::new(&path, &text)
        })
        .collect();
    let tests: HashSet<String> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        if source.module().is_some_and(|module| (1..=module.len()).any(|len| tests.contains(&module[..len].join("::"))))
        {
            source.code.clear();
        }
    }
    sources
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("an entry of a folder").path();
        // Build output, and the packages that tests install.
        if path.is_dir() && !path.ends_with("target") && !path.ends_with("node_modules") {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The modules in files of their own that `#[cfg(test)] mod` brings in, from the crate's root.
fn test_modules(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else { return Vec::new() };
    let (_, names) = without_tests(&source.all);
    let parent = if module == ["lib"] { Vec::new() } else { module };
    names.iter().map(|name| parent.iter().copied().chain([name.as_str()]).collect::<Vec<_>>().join("::")).collect()
}

/// A token with its line, counted from 1.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    kind: Kind,
    line: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// An identifier, a keyword or a number.
    Word(String),
    /// The contents of a string literal, as written.
    Text(String),
    /// `::`, or any other character.
    Sign(&'static str, char),
}

impl Token {
    /// Whether this is the word or sign `text`.
    fn is(&self, text: &str) -> bool {
        match &self.kind {
            Kind::Word(word) => word == text,
            Kind::Text(_) => false,
            Kind::Sign("", sign) => text.chars().eq([*sign]),
            Kind::Sign(sign, _) => *sign == text,
        }
    }

    fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// The lines where `pattern` stands.
fn find(tokens: &[Token], pattern: &[&str]) -> Vec<usize> {
    (0..tokens.len()).filter(|at| starts_with(&tokens[*at..], pattern)).map(|at| tokens[at].line).collect()
}

fn starts_with(tokens: &[Token], pattern: &[&str]) -> bool {
    tokens.len() >= pattern.len() && tokens.iter().zip(pattern).all(|(token, text)| token.is(text))
}

/// Splits Rust source into tokens, without comments, lifetimes and character literals.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while let Some(&char) = chars.get(at) {
        let rest = &chars[at..];
        let begins = |start: &str| start.chars().eq(rest.iter().copied().take(start.len()));
        let (len, kind) = if begins("//") {
            (rest.iter().position(|char| *char == '\n').unwrap_or(rest.len()), None)
        } else if begins("/*") {
            (block_comment_len(rest), None)
        } else if let Some((len, text)) = string(rest) {
            (len, Some(Kind::Text(text)))
        } else if char == '\'' {
            (quote_len(rest), None)
        } else if is_word(char) {
            let raw = if begins("r#") { 2 } else { 0 };
            let len = raw + rest[raw..].iter().position(|char| !is_word(*char)).unwrap_or(rest.len() - raw);
            (len, Some(Kind::Word(rest[raw..len].iter().collect())))
        } else if begins("::") {
            (2, Some(Kind::Sign("::", ':')))
        } else {
            (1, (!char.is_whitespace()).then_some(Kind::Sign("", char)))
        };
        tokens.extend(kind.map(|kind| Token { kind, line }));
        line += rest[..len].iter().filter(|char| **char == '\n').count();
        at += len;
    }
    tokens
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// The length of the block comment at the front; they nest.
fn block_comment_len(chars: &[char]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < chars.len() {
        match chars[at..] {
            ['/', '*', ..] => (at, depth) = (at + 2, depth + 1),
            ['*', '/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length and contents of the string literal at the front, of whatever prefix.
fn string(chars: &[char]) -> Option<(usize, String)> {
    let prefix = match chars {
        ['b' | 'c', 'r', ..] => 2,
        ['b' | 'c' | 'r', ..] => 1,
        _ => 0,
    };
    let raw = prefix > 0 && chars[prefix - 1] == 'r';
    let hashes = if raw { chars[prefix..].iter().take_while(|char| **char == '#').count() } else { 0 };
    let start = prefix + hashes + 1;
    if chars.get(start - 1) != Some(&'"') {
        return None;
    }
    let mut at = start;
    while at < chars.len() {
        match chars[at] {
            '\\' if !raw => at += 1,
            '"' if chars[at + 1..].iter().take_while(|char| **char == '#').count() >= hashes => break,
            _ => {}
        }
        at += 1;
    }
    let end = at.min(chars.len());
    Some(((end + 1 + hashes).min(chars.len()), chars[start..end].iter().collect()))
}

/// The length of the character literal or lifetime at the front.
fn quote_len(chars: &[char]) -> usize {
    match chars {
        // An escape: the quote behind it may itself be escaped.
        ['\'', '\\', ..] => chars.iter().skip(3).position(|char| *char == '\'').map_or(chars.len(), |end| end + 4),
        ['\'', _, '\'', ..] => 3,
        _ => 1 + chars[1..].iter().take_while(|char| is_word(**char)).count(),
    }
}

/// The tokens outside items under `#[cfg(test)]`, and the names of the modules in other files among those.
fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    const PLAIN: &[&str] = &["#", "[", "cfg", "(", "test", ")", "]"];
    const AND_MORE: &[&str] = &["#", "[", "cfg", "(", "all", "(", "test"];
    let (mut code, mut files, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        if [PLAIN, AND_MORE].iter().any(|start| starts_with(&tokens[at..], start)) {
            let end = at + item_len(&tokens[at..]);
            if let [.., keyword, name, semicolon] = &tokens[at..end]
                && keyword.is("mod")
                && semicolon.is(";")
            {
                files.extend(name.word().map(str::to_owned));
            }
            at = end;
        } else {
            code.push(tokens[at].clone());
            at += 1;
        }
    }
    (code, files)
}

/// The length of the item at the front with its attributes: to its `;` or the end of its block.
fn item_len(tokens: &[Token]) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        if token.is("(") || token.is("[") || token.is("{") {
            depth += 1;
        } else if token.is(")") || token.is("]") || token.is("}") {
            depth -= 1;
            match depth {
                // The end of what it stands in: a field or a variant, which has neither.
                ..0 => return at,
                0 if token.is("}") => return at + 1,
                _ => {}
            }
        } else if token.is(";") && depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// A path that code names, in a `use` or in line.
#[derive(Debug)]
struct UsedPath {
    /// Its segments as written; `*` for a glob, and none for a trailing `self`.
    segments: Vec<String>,
    /// The inline modules that it stands in.
    inside: Vec<String>,
    line: usize,
}

/// Every path of `tokens` that has more than one segment or is imported.
fn paths(tokens: &[Token]) -> Vec<UsedPath> {
    let mut found = Vec::new();
    // One for each open brace: the name of the module that it opens, if it does.
    let mut braces: Vec<Option<String>> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let before = at.checked_sub(1).map(|before| &tokens[before]);
        let token = &tokens[at];
        if token.is("{") {
            let names_module = at >= 2 && tokens[at - 2].is("mod");
            braces.push(before.filter(|_| names_module).and_then(Token::word).map(str::to_owned));
        } else if token.is("}") {
            braces.pop();
        }
        let imported = before.is_some_and(|before| before.is("use"));
        let has_more = tokens.get(at + 1).is_some_and(|next| next.is("::"));
        let inner = before.is_some_and(|before| before.is("::"));
        if !imported && (inner || !has_more || token.word().is_none()) {
            // A path that begins with `::` begins at the word behind it.
            let rooted =
                inner && at.checked_sub(2).is_none_or(|start| tokens[start].word().is_none() && !tokens[start].is(">"));
            if !(rooted && has_more) {
                at += 1;
                continue;
            }
        }
        let mut leaves = Vec::new();
        let end = tree(tokens, at, &[], &mut leaves);
        let inside: Vec<String> = braces.iter().flatten().cloned().collect();
        found.extend(leaves.into_iter().map(|(segments, line)| UsedPath { segments, inside: inside.clone(), line }));
        at = end.max(at + 1);
    }
    found
}

/// Reads the path or use tree at `at`, adds its leaves below `prefix`, and returns where it ends.
fn tree(tokens: &[Token], mut at: usize, prefix: &[String], leaves: &mut Vec<(Vec<String>, usize)>) -> usize {
    let mut segments = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |token| token.line);
    while let Some(token) = tokens.get(at) {
        at += 1;
        if token.is("{") {
            while tokens.get(at).is_some_and(|token| !token.is("}")) {
                let comma = tokens[at].is(",");
                at = if comma { at + 1 } else { tree(tokens, at, &segments, leaves).max(at + 1) };
            }
            return at + 1;
        } else if token.is("::") {
            continue;
        } else if token.is("*") {
            segments.push("*".to_owned());
        } else if let Some(word) = token.word() {
            // `self` alone is the module itself: at the front of a path, or at the end of a group's.
            if word != "self" {
                segments.push(word.to_owned());
            }
        } else {
            // Not part of the path, such as the `<` of its generics.
            at -= 1;
            break;
        }
        if !tokens.get(at).is_some_and(|next| next.is("::")) {
            break;
        }
    }
    if tokens.get(at).is_some_and(|token| token.is("as")) {
        at += 2;
    }
    if !segments.is_empty() {
        leaves.push((segments, line));
    }
    at
}

/// Whether `path` is `module`, written with `::`, or in it.
fn is_within(path: &[String], module: &str) -> bool {
    let module: Vec<&str> = module.split("::").collect();
    path.len() >= module.len() && path.iter().zip(&module).all(|(segment, part)| segment == part)
}

mod samples {
    use super::*;

    /// The lines where `rule` finds a breach in `text` at `path`.
    fn lines(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> Vec<usize> {
        let breaches = rule(&Source::new(path, text));
        let line = |breach: &String| breach.strip_prefix(path)?.strip_prefix(':')?.split(':').next()?.parse().ok();
        breaches.iter().map(|breach| line(breach).unwrap_or(0)).collect()
    }

    #[test]
    fn upward_imports_are_caught_however_they_are_written() {
        for text in [
            "use crate::tunnel::session::Session;",
            "use crate::{policy::{Fault, route}, tunnel::{self}};",
            "use {std::fmt, crate::tunnel};",
            "pub(crate) use crate::tunnel as t;",
            "fn f() { crate::tunnel::run() }",
            "fn f() -> crate::policy::Answer<crate::tunnel::Settings> {}",
            "fn f() { Vec::<crate::tunnel::Settings>::new(); }",
            "fn f(x: &'a str, y: char) { if y == '\"' { crate::tunnel::run() } }",
            "fn f() { let x = \"{\"; crate::tunnel::run() }",
            "use super::super::tunnel::sys;",
            "use super::super::{cause, tunnel};",
            "mod inner { use super::super::super::tunnel; }",
            "use crate::*;",
            "use crate::{self as all};",
            "#[cfg(not(test))] use crate::tunnel::sys;",
            "#[cfg(test)] use crate::cause::Cause; use crate::tunnel::sys;",
            "#[cfg(test)] mod tests { } use crate::tunnel::sys;",
        ] {
            assert_eq!(lines(imports, "src/policy/route.rs", text), [1], "{text}");
        }
        assert_eq!(lines(imports, "src/ws/scan.rs", "\nuse crate::cause::Cause;\n"), [2]);
        assert_eq!(lines(imports, "src/cause.rs", "use crate::policy::Fault;"), [1]);
        assert_eq!(lines(imports, "src/cause.rs", "use super::policy::Fault;"), [1]);
        assert_eq!(lines(imports, "src/ws/mod.rs", "use super::cause::Cause;"), [1]);
        assert_eq!(lines(imports, "src/config/mod.rs", "use crate::edge::head;"), [1]);
        assert_eq!(lines(imports, "src/admin/mod.rs", "use crate::edge::{upstreams::Upstream,\n head};"), [2]);
        assert_eq!(lines(imports, "src/admin/mod.rs", "use crate::edge;"), [1]);
        assert_eq!(lines(imports, "src/novel/mod.rs", ""), [0], "a part without a floor");
    }

    #[test]
    fn downward_imports_comments_strings_and_tests_pass() {
        for text in [
            "use crate::cause::Cause; use crate::ws::{close::CloseCode, error::{self, ProtocolError}};",
            "use super::{Fault, route::HostPattern}; pub(super) fn f() { super::gcra::f(); self::g() }",
            "// use crate::tunnel::sys;\n/* crate::tunnel::sys /* */ crate::tunnel::sys */\n//! [`crate::tunnel`]",
            r##"const A: &str = "crate::tunnel::a"; const B: &str = r#"" crate::tunnel::a "#; const C: char = '"';"##,
            "#[cfg(test)]\nmod tests { use crate::tunnel::sys; fn f() { { } } }",
            "#[cfg(all(test, unix))]\n#[rustfmt::skip]\nuse crate::tunnel::sys;",
            "mod inner { use super::super::gcra; }",
            "use tokio_like::tunnel; fn f() { tunnel::g() }",
        ] {
            assert_eq!(lines(imports, "src/policy/route.rs", text), [], "{text}");
        }
        assert_eq!(lines(imports, "src/app.rs", "use crate::{edge, tools};"), []);
        assert_eq!(lines(imports, "tests/tunnel.rs", "use crate::{edge, tools};"), []);
    }

    #[test]
    fn clocks_sockets_and_runtimes_are_caught_on_the_lower_floors() {
        for text in [
            "use std::time::Instant;",
            "use std::{fmt, time::Duration};",
            "use core::net::IpAddr;",
            "fn f(a: std::net::IpAddr) {}",
            "fn f() { ::tokio::spawn(g()); }",
            "use tokio;",
            "fn f() { log::info!(\"x\") }",
            "use rand::Rng as _;",
        ] {
            assert_eq!(lines(foreign, "src/ws/scan.rs", text), [1], "{text}");
        }
        assert_eq!(lines(foreign, "src/policy/route.rs", "use std::time::Instant;\nuse tokio::time::Sleep;"), [2]);
        assert_eq!(lines(foreign, "src/ws/scan.rs", "use crate::ws::log::X; fn f(log: u8) { log.max(1); }"), []);
        assert_eq!(lines(foreign, "src/tunnel/mod.rs", "use tokio::io::AsyncRead;"), []);
    }

    #[test]
    fn a_file_without_an_opening_is_caught() {
        for text in ["", "use std::fmt;", "// A comment.", "//!\n//! Late.", "\n//! Late."] {
            assert_eq!(lines(opening, "src/x.rs", text), [1], "{text:?}");
        }
        assert_eq!(lines(opening, "src/x.rs", "//! What it is.\n"), []);
    }

    #[test]
    fn metric_names_elsewhere_are_caught() {
        let text =
            "//! sluicegate_x\nconst A: &str = \"sluicegate_connections\";\nconst B: &[u8] = br#\"sluicegate_b\"#;";
        assert_eq!(lines(metric_names, "src/edge/mod.rs", text), [2, 3]);
        assert_eq!(lines(metric_names, "src/metrics.rs", text), []);
        assert_eq!(lines(metric_names, "tests/metrics.rs", text), []);
        assert_eq!(
            lines(metric_names, "src/edge/mod.rs", "#[cfg(test)] mod t { const A: &str = \"sluicegate_a\"; }"),
            []
        );
    }

    #[test]
    fn unsafe_code_elsewhere_is_caught() {
        let text = "#![allow(unsafe_code)]\nfn f() { unsafe { g() } }\n#[expect(unsafe_code)]\n#[cfg(test)] mod t { unsafe fn f() {} }";
        assert_eq!(lines(unsafety, "src/edge/mod.rs", text), [2, 4, 1, 3]);
        assert_eq!(lines(unsafety, "src/tunnel/sys.rs", text), []);
        assert_eq!(lines(unsafety, "src/lib.rs", "#![deny(unsafe_code)]\n// unsafe\nconst A: &str = \"unsafe\";"), []);
    }

    #[test]
    fn unwraps_and_gaps_are_caught() {
        for text in [
            "fn f() { g().unwrap() }",
            "fn f() { g()\n.unwrap() }",
            "fn f() { g().map(Result::unwrap) }",
            "fn f() { todo!() }",
            "fn f() { unimplemented!(\"later\") }",
            "fn f() { g().expect(\" \") }",
        ] {
            assert_eq!(lines(unwraps, "src/edge/mod.rs", text).len(), 1, "{text}");
        }
        let fine = "fn f() { g().unwrap_or(1); g().expect(\"why\"); h.unwrap; }\n#[cfg(test)] mod t { fn f() { g().unwrap() } }";
        assert_eq!(lines(unwraps, "src/edge/mod.rs", fine), []);
        assert_eq!(lines(unwraps, "tests/x.rs", "fn f() { g().unwrap() }"), []);
    }

    #[test]
    fn long_files_are_caught() {
        assert_eq!(lines(length, "src/x.rs", &"\n".repeat(MAX_LINES)), []);
        assert_eq!(lines(length, "src/x.rs", &"\n".repeat(MAX_LINES + 1)).len(), 1);
    }

    #[test]
    fn modules_in_files_of_their_own_are_known_as_tests() {
        let source =
            Source::new("src/config/mod.rs", "mod yaml;\n#[cfg(test)]\nmod tests;\n#[cfg(test)] mod t { mod u; }");
        assert_eq!(test_modules(&source), ["config::tests"]);
        assert_eq!(test_modules(&Source::new("src/lib.rs", "#[cfg(test)] mod kit;")), ["kit"]);
    }

    #[test]
    fn lines_are_counted_through_strings_and_comments() {
        let text = "/* 1\n2 */ \"3\n\\\"4\" '\\'' '\\u{1F600}' 'life /// 4\nr\"\\\"\nfn";
        let found = tokens(text);
        assert_eq!(found.last(), Some(&Token { kind: Kind::Word("fn".to_owned()), line: 5 }));
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
