//! What the user writes of TLS.

use schemars::JsonSchema;
use serde::Deserialize;

/// TLS of a listener. Its files are read again when they change.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["certificates"]))]
pub struct RawListenerTls {
    /// Certificates and their keys, chosen by the name that a client asks for (SNI): by the names in them, `*.` for one
    /// label included. The first is for every other name, and for clients that ask for none. Required, at least one.
    #[schemars(length(min = 1))]
    pub certificates: Vec<RawCertificate>,
    /// A file with the CAs, in PEM, that clients' certificates must be issued by. Default: clients are asked for none.
    pub client_ca_file: Option<String>,
    /// Whether a client needs a certificate. Default `required`. `optional`: one without is served too, and has no
    /// `Client-Cert`. Only with `client_ca_file`.
    pub client_auth: Option<RawClientAuth>,
    /// The oldest version of TLS. Default "1.2". "1.3" shuts out clients from before 2018.
    pub min_version: Option<RawTlsVersion>,
}

/// A certificate and its key.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["cert_file", "key_file"]))]
pub struct RawCertificate {
    /// The certificate in PEM, with the intermediates behind it. Required.
    pub cert_file: Option<String>,
    /// Its private key in PEM, without a password. Required.
    pub key_file: Option<String>,
}

/// Whether a client needs a certificate.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawClientAuth {
    Required,
    Optional,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub enum RawTlsVersion {
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// TLS to an upstream. Its files are read again when they change.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawUpstreamTls {
    /// The name that is asked for, and that the certificate must have: a host, or an address. Default: the host of each
    /// endpoint, which one on a Unix socket does not have.
    pub sni: Option<String>,
    /// A file with the CAs, in PEM, that the certificate must be issued by. Default: those of the system.
    pub ca_file: Option<String>,
    /// A certificate in PEM to present, with the intermediates behind it. Default: none. Only with `key_file`.
    pub cert_file: Option<String>,
    /// Its private key in PEM, without a password. Default: none. Only with `cert_file`.
    pub key_file: Option<String>,
}
