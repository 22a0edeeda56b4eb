//! Why a TLS handshake failed, in words of ours: what a peer presented may be in rustls's own.

use std::io;

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

/// Why a handshake or a TLS connection failed; `None` when it was not for TLS.
pub fn reason(error: &io::Error) -> Option<&'static str> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(of(error))
}

/// Whether the peer presented a certificate that was refused.
pub fn is_certificate(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    matches!(error, Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented))
}

/// The same of rustls's error.
pub fn of(error: &Error) -> &'static str {
    match error {
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::NoCertificatesPresented => "the peer presented no certificate",
        Error::AlertReceived(alert) => of_alert(*alert),
        Error::PeerIncompatible(_) => "no version of TLS, cipher suite or group in common",
        Error::NoApplicationProtocol => "no application protocol in common",
        Error::InvalidMessage(_) => "what the peer sent is no TLS",
        Error::PeerMisbehaved(_) | Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            "the peer broke the protocol of TLS"
        }
        Error::DecryptError | Error::PeerSentOversizedRecord => "a record could not be decrypted",
        _ => "the TLS handshake failed",
    }
}

fn of_certificate(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "the certificate has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate is not valid yet"
        }
        // The latter: it bears the name of a CA that is trusted, and another's signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the certificate is issued by no CA that is trusted here"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate is for another name"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the certificate is for another purpose"
        }
        CertificateError::Revoked => "the certificate is revoked",
        _ => "the certificate is not valid",
    }
}

fn of_alert(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA => "the peer does not know the CA of our certificate",
        AlertDescription::BadCertificate
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::UnsupportedCertificate => "the peer refused our certificate",
        AlertDescription::CertificateRequired => "the peer requires a certificate of ours",
        AlertDescription::ProtocolVersion => "the peer speaks no version of TLS that we do",
        AlertDescription::HandshakeFailure => "the peer found nothing in common",
        _ => "the peer ended the handshake with an alert",
    }
}
