//! What the user writes: what a rule does besides WebSockets.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::raw::OrOff;
use super::units::{Count, Size, Span};

/// Where a client is sent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["to"]))]
pub struct RawRedirect {
    /// Where to: `https://...`, `http://...` or a path, with `{host}` (without port), `{path}`, `{query}` and
    /// `{path_and_query}` of the request. Required.
    pub to: Option<String>,
    /// The status: 301, 302, 303, 307 or 308. Default 308. Browsers remember 301 and 308 for long, and with 301, 302
    /// and 303 a POST becomes a GET.
    pub status: Option<Count>,
}

/// An answer that is the same for everybody.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["status"]))]
pub struct RawRespond {
    /// The status, 200 to 599. Required.
    pub status: Option<Count>,
    /// A file with the body, at most 1 MiB, read when the configuration is; relative to the file that names it.
    /// Default: none.
    pub body_file: Option<String>,
    /// The body as text. Default: empty. At most one of `body` and `body_file`.
    pub body: Option<String>,
    /// The body's type. Default: by the ending of `body_file`, else `text/plain; charset=utf-8`.
    pub content_type: Option<String>,
}

/// The path that the upstream sees.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawRewrite {
    /// Taken off the path, in whole segments; a path that does not begin with it stays. Default: nothing.
    pub strip_prefix: Option<String>,
    /// Put before the path, after `strip_prefix`. Default: nothing.
    pub add_prefix: Option<String>,
}

/// Which client addresses are served.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawClients {
    /// Networks and addresses that are served. Default: all.
    #[schemars(length(min = 1))]
    pub allow: Option<Vec<String>>,
    /// Networks and addresses that are not, also when `allow` has them. Default: none.
    pub deny: Vec<String>,
}

/// How a client comes back: by one of these.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawSticky {
    /// A signed cookie. Default: none. Exactly one of `cookie` and `hash`.
    pub cookie: Option<RawCookie>,
    /// A hash of `client_ip`, `header:NAME`, `query:NAME` or `cookie:NAME`. Default: none. A request without the
    /// header, parameter or cookie goes where its address does.
    pub hash: Option<String>,
}

/// A cookie that leads back to an endpoint.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawCookie {
    /// Its name. Default `sluicegate`. One that the backend uses itself takes that away from clients.
    pub name: Option<String>,
    /// How long it lasts; it is renewed past the half. Default 1h, 1m to 365d, or `session`: as long as the browser's.
    /// Short moves clients that come back to another endpoint.
    pub ttl: Option<RawTtl>,
    /// `lax`, `strict` or `none`. Default `lax`. `none` is for pages of other sites, and browsers want `secure` with
    /// it.
    pub same_site: Option<RawSameSite>,
    /// Whether it is for TLS only. Default `auto`: when the client used TLS, as far as is known. `on`, `off`.
    pub secure: Option<RawSecure>,
    /// Files with secrets of at least 16 bytes: the first signs, all verify. Default: one that the process makes, so
    /// that no cookie outlives a restart or holds at another gateway.
    #[schemars(length(min = 1))]
    pub secret_files: Option<Vec<String>>,
}

/// How long a cookie lasts.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RawTtl {
    /// As long as the browser's session.
    Session(RawSession),
    /// So long.
    Span(Span),
}

/// The word `session`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawSession {
    Session,
}

/// The `SameSite` of a cookie.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawSameSite {
    Lax,
    Strict,
    None,
}

/// When a cookie is marked Secure.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawSecure {
    Auto,
    On,
    Off,
}

/// Headers to remove, and then to set.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawHeaders {
    /// Headers with their values, in place of all of the same name. Default: none.
    pub set: BTreeMap<String, String>,
    /// Headers to remove, before `set`. Default: none.
    pub remove: Vec<String>,
}

/// Limits of plain HTTP.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawHttp {
    /// How long the upstream may take to the head of its response; over it 504. Default 60s, 100ms to 1h. Short cuts
    /// long polls and slow reports; long keeps clients waiting for a backend that hangs.
    pub response_timeout: Option<Span>,
    /// How long nothing may come of a body that was begun, either way; over it the connection is closed. Default 1h,
    /// 100ms to 24h. Short cuts server-sent events that are only quiet.
    pub idle_timeout: Option<Span>,
    /// The largest body of a request; over it 413. Default 1MiB, 1B to 1024GiB, or `off`. Small refuses uploads.
    pub max_body_size: Option<OrOff<Size>>,
}
