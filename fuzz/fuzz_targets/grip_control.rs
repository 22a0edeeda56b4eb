//! Control messages of a backend: what is taken keeps its bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::grip::control::{Control, OnGap, Outgoing, parse};
use sluicegate::grip::{Kind, Limits};
use sluicegate::ws::close::CloseCode;

fuzz_target!(|input: &[u8]| {
    let limits = Limits { control_bytes: 1024, channel_bytes: 16, id_bytes: 16, kept_bytes: 64, ..Limits::default() };
    let control = match parse(input, &limits) {
        Ok(control) => control,
        Err(error) => {
            assert!(error.close().is_none_or(|code| code == CloseCode::INTERNAL_ERROR));
            return;
        }
    };
    assert!(input.len() <= 1024);
    match control {
        Control::Subscribe(subscribe) => {
            assert!((1..=16).contains(&subscribe.channel.len()));
            assert!(subscribe.filters.as_slice().len() <= limits.filters);
            assert!(subscribe.prev_id.is_none_or(|id| (1..=16).contains(&id.len())));
            match subscribe.recover.on_gap {
                OnGap::Ignore => {}
                OnGap::Link(link) => assert!(link.starts_with('/') && !link.starts_with("//") && link.is_ascii()),
                OnGap::Send(content) => assert!(content.len() <= 64 && std::str::from_utf8(&content).is_ok()),
                OnGap::Close(code) => assert!(code.is_valid_on_wire()),
            }
        }
        Control::Unsubscribe { channel } => assert!((1..=16).contains(&channel.len())),
        Control::Session { id } => assert!(id.is_none_or(|id| (1..=16).contains(&id.len()))),
        Control::SetMeta { name, .. } => assert!((1..=limits.meta_name_bytes).contains(&name.len())),
        Control::KeepAlive(Some(keep_alive)) => {
            assert!((1..=86_400).contains(&keep_alive.timeout_secs));
            assert_sendable(&keep_alive.message);
        }
        Control::SendDelayed { message, timeout_secs } => {
            assert!(timeout_secs <= 86_400);
            assert_sendable(&message);
        }
        Control::KeepAlive(None) | Control::Detach | Control::FlushDelayed => {}
    }
});

/// What is kept to be sent can be sent.
fn assert_sendable(message: &Outgoing) {
    assert!(message.content.len() <= 64);
    match message.kind {
        Kind::Text => assert!(std::str::from_utf8(&message.content).is_ok()),
        Kind::Binary | Kind::Ping | Kind::Pong => {}
    }
}
