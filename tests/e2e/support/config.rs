//! A configuration file with one listener, one upstream and one rule, and what a test adds to each.

/// The file; every part is the inside of a YAML flow mapping but `more`, which is top-level keys in block style.
#[derive(Clone, Debug, Default)]
pub struct Config {
    endpoints: Vec<String>,
    listener: String,
    other_listeners: String,
    upstream: String,
    rule: String,
    first_rules: Vec<String>,
    admin: String,
    more: String,
    /// Files beside it: their names and what is in them.
    pub files: Vec<(&'static str, &'static str)>,
}

impl Config {
    /// Everything to one upstream with this endpoint.
    pub fn to(endpoint: impl ToString) -> Self {
        Self { endpoints: vec![endpoint.to_string()], ..Self::default() }
    }

    /// The same with another endpoint.
    pub fn endpoint(mut self, endpoint: impl ToString) -> Self {
        self.endpoints = vec![endpoint.to_string()];
        self
    }

    /// One more endpoint.
    pub fn and(mut self, endpoint: impl ToString) -> Self {
        self.endpoints.push(endpoint.to_string());
        self
    }

    /// Keys of the listener `public`, such as `hosts: [app.example]`.
    pub fn listener(mut self, keys: &str) -> Self {
        self.listener = format!(", {keys}");
        self
    }

    /// One more listener, with these keys.
    pub fn other_listener(mut self, keys: &str) -> Self {
        self.other_listeners += &format!("  - {{ {keys} }}\n");
        self
    }

    /// Keys of the upstream `app`.
    pub fn upstream(mut self, keys: &str) -> Self {
        self.upstream = format!(", {keys}");
        self
    }

    /// Keys of the last rule, `app`.
    pub fn rule(mut self, keys: &str) -> Self {
        self.rule = format!(", {keys}");
        self
    }

    /// A rule before it.
    pub fn first_rule(mut self, name: &str, keys: &str) -> Self {
        self.first_rules.push(format!("{{ name: {name}, upstream: app, {keys} }}"));
        self
    }

    /// Keys of `admin` besides `bind`.
    pub fn admin(mut self, keys: &str) -> Self {
        self.admin = format!(", {keys}");
        self
    }

    /// A file beside this one.
    pub fn file(mut self, name: &'static str, text: &'static str) -> Self {
        self.files.push((name, text));
        self
    }

    /// A rule before it that needs no upstream.
    pub fn fixed_rule(mut self, name: &str, keys: &str) -> Self {
        self.first_rules.push(format!("{{ name: {name}, {keys} }}"));
        self
    }

    /// Other keys of the file, such as `limits: { connections: 1 }`.
    pub fn more(mut self, lines: &str) -> Self {
        self.more += lines;
        self.more.push('\n');
        self
    }

    /// The file.
    pub fn yaml(&self) -> String {
        let Self { endpoints, listener, other_listeners, upstream, rule, first_rules, admin, more, files: _ } = self;
        let first_rules: String = first_rules.iter().map(|rule| format!("  - {rule}\n")).collect();
        format!(
            "version: 1\n\
             listeners:\n  - {{ name: public, bind: \"127.0.0.1:0\"{listener} }}\n{other_listeners}\
             admin: {{ bind: \"127.0.0.1:0\"{admin} }}\n\
             upstreams:\n  - {{ name: app, endpoints: {endpoints:?}{upstream} }}\n\
             rules:\n{first_rules}  - {{ name: app, upstream: app{rule} }}\n{more}"
        )
    }
}
