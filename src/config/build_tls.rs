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

#[cfg(test)]
mod tests {
    use crate::config::{Config, Text, load, parse};
    use crate::tls::fixtures::Folder;

    /// The faults of a file in this folder, whose listener and upstream have these keys.
    fn faults(folder: &Folder, listener: &str, upstream: &str) -> Vec<String> {
        let text = format!(
            "listeners: [{{ name: a, bind: \"127.0.0.1:0\", hosts: [a.example]{listener} }}]\n\
             upstreams: [{{ name: b, endpoints: [\"b.example:1\"]{upstream} }}]\n"
        );
        let name = folder.path("main.yaml").display().to_string();
        let parsed = parse(Text { name: &name, text: &text }, &[], &|_| None);
        parsed
            .err()
            .unwrap_or_default()
            .iter()
            .map(|fault| format!("{}: {} {}", fault.path, fault.found, fault.allowed))
            .collect()
    }

    #[test]
    fn each_file_is_tried_and_named_by_its_key() {
        let folder = Folder::new();
        folder.certificate("a", &["a.example"]);
        folder.certificate("b", &["b.example"]);
        folder.authority();
        let sound = "certificates: [{ cert_file: a.crt, key_file: a.key }]";
        for (listener, upstream, expected) in [
            (format!(", tls: {{ {sound} }}"), "", None),
            (String::new(), ", tls: { ca_file: ca.crt, cert_file: a.crt, key_file: a.key }", None),
            (
                ", tls: { certificates: [{ cert_file: a.crt, key_file: b.key }] }".to_owned(),
                "",
                Some(("listeners[0].tls.certificates[0].key_file", "it is not the key of")),
            ),
            (
                ", tls: { certificates: [{ cert_file: none.crt, key_file: a.key }] }".to_owned(),
                "",
                Some(("listeners[0].tls.certificates[0].cert_file", "No such file")),
            ),
            (
                format!(", tls: {{ {sound}, client_ca_file: a.key }}"),
                "",
                Some(("listeners[0].tls.client_ca_file", "no certificate")),
            ),
            (
                format!(", tls: {{ {sound}, client_auth: optional }}"),
                "",
                Some(("listeners[0].tls.client_auth", "`client_ca_file` beside it")),
            ),
            (
                format!(", tls: {{ {sound}, min_version: \"1.1\" }}"),
                "",
                Some(("listeners[0].tls.min_version", "1.2, 1.3")),
            ),
            (", tls: {}".to_owned(), "", Some(("listeners[0].tls.certificates", "missing"))),
            (String::new(), ", tls: { ca_file: none }", Some(("upstreams[0].tls.ca_file", "No such file"))),
            (
                String::new(),
                ", tls: { ca_file: ca.crt, cert_file: a.crt }",
                Some(("upstreams[0].tls.cert_file", "`key_file` beside it")),
            ),
            (
                String::new(),
                ", tls: { ca_file: ca.crt, sni: \"b.example:443\" }",
                Some(("upstreams[0].tls.sni", "without a port")),
            ),
            (", mode: \"0660\"".to_owned(), "", Some(("listeners[0].mode", "`bind: unix:PATH` beside it"))),
        ] {
            let found = faults(&folder, &listener, upstream);
            match expected {
                None => assert!(found.is_empty(), "{found:?}"),
                Some((key, why)) => {
                    assert!(found.len() == 1 && found[0].starts_with(key) && found[0].contains(why), "{found:?}");
                }
            }
        }
    }

    #[test]
    fn unix_sockets_have_their_own_faults() {
        let folder = Folder::new();
        folder.authority();
        let of = |text: &str| {
            let name = folder.path("main.yaml").display().to_string();
            let faults = parse(Text { name: &name, text }, &[], &|_| None).err().unwrap_or_default();
            faults.iter().map(|fault| format!("{}: {}", fault.path, fault.allowed)).collect::<Vec<_>>()
        };
        let listeners = "listeners: [{ name: a, bind: \"unix:a.sock\", mode: \"0888\" }, \
                         { name: b, bind: \"unix:./a.sock\" }, { name: c, bind: \"unix:\" }]\n";
        let long = "x".repeat(110);
        let found = of(&format!(
            "{listeners}upstreams: [{{ name: b, endpoints: [\"unix:{long}\", \"unix:b.sock\"], tls: {{ ca_file: ca.crt }} }}]\n"
        ));
        let keys: Vec<&str> = found.iter().filter_map(|fault| fault.split(": ").next()).collect();
        let expected = [
            "listeners[0].mode",
            "listeners[1].bind",
            "listeners[2].bind",
            "upstreams[0].endpoints[0]",
            "upstreams[0].tls.sni",
        ];
        assert_eq!(keys, expected, "{found:#?}");
    }

    #[test]
    fn what_config_prints_comes_back_as_it_was_and_from_elsewhere() {
        let folder = Folder::new();
        folder.certificate("a", &["a.example"]);
        folder.authority();
        let text = "listeners:\n  - { name: a, bind: \"127.0.0.1:0\", tls: { certificates: [{ cert_file: a.crt, key_file: a.key }], \
                    client_ca_file: ca.crt } }\nupstreams:\n  - { name: b, endpoints: [\"b.example:1\"], tls: { ca_file: ca.crt, \
                    cert_file: a.crt, key_file: a.key } }\n";
        let config = load(&folder.file("main.yaml", text)).expect("sound").config;
        let elsewhere = tempfile::tempdir().expect("a folder");
        let printed = config.effective.yaml();
        let path = elsewhere.path().join("effective.yaml");
        std::fs::write(&path, &printed).expect("written");
        let back = load(&path).unwrap_or_else(|faults| panic!("{printed}\n{faults:#?}")).config;
        let tls = |config: &Config| (config.listeners[0].tls.clone(), config.upstreams[0].tls.clone());
        assert_eq!(tls(&back), tls(&config));
        assert!(printed.contains("client_auth: required") && printed.contains("min_version: '1.2'"), "{printed}");
        assert!(!printed.contains("PRIVATE KEY"));
    }
}
