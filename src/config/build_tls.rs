//! TLS of listeners and upstreams: paths resolved, and every file tried.

use std::path::PathBuf;

use tokio_rustls::rustls::pki_types::ServerName;

use super::build::Report;
use super::files;
use super::key_path::KeyPath;
use super::model::UpstreamTls;
use super::raw_tls::{RawClientAuth, RawListenerTls, RawTlsVersion, RawUpstreamTls};
use crate::policy::Fault;
use crate::tls::client::{ClientFiles, server_name};
use crate::tls::reload::Source as _;
use crate::tls::server::{ClientAuth, MinVersion, ServerFiles};
use crate::tls::{KeyPair, Problem};

/// What is allowed where a file of TLS stands, before the reason why this one is not.
const A_FILE: &str = "a file in PEM that can be used";

/// The TLS of a listener.
pub(super) fn listener(raw: &RawListenerTls, http2: bool, base: &KeyPath, report: &mut Report<'_>) -> ServerFiles {
    let certificates = raw
        .certificates
        .iter()
        .map(|raw| pair(raw.cert_file.as_ref(), raw.key_file.as_ref(), report))
        .collect::<Vec<_>>();
    let client_auth = raw.client_ca_file.as_ref().map(|file| ClientAuth {
        ca_file: path(Some(file), report),
        optional: matches!(raw.client_auth, Some(RawClientAuth::Optional)),
    });
    if raw.client_auth.is_some() && client_auth.is_none() && !report.source.has(&base.key("client_ca_file")) {
        let fault = Fault::new("client_auth", "this without CAs", "`client_ca_file` beside it, or no `client_auth`");
        report.extend(base, Some(fault));
    }
    let min_version = match raw.min_version {
        None | Some(RawTlsVersion::Tls12) => MinVersion::Tls12,
        Some(RawTlsVersion::Tls13) => MinVersion::Tls13,
    };
    let tls = ServerFiles { certificates, client_auth, min_version, http2 };
    // What is missing, or was pruned, has its fault already.
    let written = raw.certificates.iter().all(|raw| raw.cert_file.is_some() && raw.key_file.is_some());
    if written && !raw.certificates.is_empty() {
        tell(tls.load().map(drop), base, report);
    }
    tls
}

/// The TLS to an upstream with these endpoints.
pub(super) fn upstream(
    raw: &RawUpstreamTls,
    endpoints: &[String],
    base: &KeyPath,
    report: &mut Report<'_>,
) -> UpstreamTls {
    match &raw.sni {
        Some(sni) if ServerName::try_from(sni.as_str()).is_err() => {
            let fault = Fault::new("sni", format!("{sni:?}"), "a host or an address, without a port");
            report.extend(base, Some(fault));
        }
        None if endpoints.iter().any(|endpoint| server_name(None, endpoint).is_none()) => {
            let allowed = "the name in the certificate: not every endpoint has a host that can be one";
            report.extend(base, Some(Fault::new("sni", "this key is missing", allowed)));
        }
        Some(_) | None => {}
    }
    let identity = match (&raw.cert_file, &raw.key_file) {
        (None, None) => None,
        (Some(_), Some(_)) => Some(pair(raw.cert_file.as_ref(), raw.key_file.as_ref(), report)),
        (cert, _) => {
            let (there, missing) = if cert.is_some() { ("cert_file", "key_file") } else { ("key_file", "cert_file") };
            let fault = Fault::new(there, "this alone", format!("`{missing}` beside it"));
            report.extend(base, Some(fault));
            None
        }
    };
    let files = ClientFiles { ca_file: raw.ca_file.as_ref().map(|file| path(Some(file), report)), identity };
    tell(files.load().map(drop), base, report);
    UpstreamTls { sni: raw.sni.clone(), files }
}

fn pair(cert_file: Option<&String>, key_file: Option<&String>, report: &Report<'_>) -> KeyPair {
    KeyPair { cert_file: path(cert_file, report), key_file: path(key_file, report) }
}

fn path(file: Option<&String>, report: &Report<'_>) -> PathBuf {
    let resolved = files::resolve(report.source, file.map_or("", String::as_str));
    std::path::absolute(&resolved).unwrap_or(resolved)
}

fn tell(loaded: Result<(), Vec<Problem>>, base: &KeyPath, report: &mut Report<'_>) {
    let problems = loaded.err().into_iter().flatten();
    let faults: Vec<_> = problems
        .map(|Problem { key, file, why }| {
            let found = if file.as_os_str().is_empty() { "no such file".to_owned() } else { format!("{file:?}") };
            Fault::new(key, found, format!("{A_FILE} ({why})"))
        })
        .collect();
    report.extend(base, faults);
}
