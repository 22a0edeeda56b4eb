//! Attacks, played against a backend that checks nothing: direct, through nginx, and through the gateway.
//!
//! A case is a value: what the attacker does, what the backend does, and what harm looks like. [`runner`] plays it on all
//! three ways. `make attacks` plays all of them at full length and writes docs/attacks.md.

mod backend;
mod bytes;
mod case;
mod cases;
mod report;
mod routes;
mod runner;
mod wire;

use case::{Case, Settings};
use cases::{compression, ends, exhaustion, frames, handshake, heads, identity, rules};

/// Makes a test of each case, and a list of them all in the order of the table.
macro_rules! cases {
    ($($file:ident { $($name:ident),* $(,)? })*) => {
        /// Every case.
        fn all() -> Vec<Case> {
            vec![$($($file::$name(),)*)*]
        }
        $($(
            #[test]
            fn $name() {
                runner::play(&$file::$name());
            }
        )*)*
    };
}

cases! {
    handshake {
        a_bad_version_that_opens_a_tunnel,
        a_switch_that_the_backend_chose,
        a_tunnel_for_what_is_no_websocket,
        a_switch_that_nobody_asked_for,
        a_request_behind_the_handshake,
        a_refused_upgrade_that_goes_on,
        an_upgrade_to_something_else,
        an_answer_whose_head_never_ends,
    }
    heads {
        a_body_in_the_handshake,
        headers_that_connection_names,
        old_drafts,
        malformed_upgrades,
        a_head_that_is_too_large,
        garbage_in_the_offers,
        slow_heads,
    }
    rules {
        spellings_of_a_denied_path,
        malformed_hosts,
        spellings_of_an_upgrade,
        an_upgrade_where_none_is_allowed,
        patterns_that_backtrack,
        the_admin_endpoint_on_the_data_port,
        labels_of_the_clients_choice,
    }
    identity {
        foreign_origins,
        origins_beside_a_wildcard,
        a_host_that_was_rebound,
        a_forged_address_for_the_backend,
        forged_addresses_past_a_limit,
        forged_addresses_through_a_proxy,
        addresses_of_one_network,
        too_many_sessions_of_an_address,
        forged_sticky_cookies,
    }
    frames {
        unmasked_frames,
        masked_frames_of_the_backend,
        reserved_bits,
        reserved_bits_of_the_backend,
        reserved_opcodes,
        reserved_opcodes_of_the_backend,
        bad_control_frames,
        bad_control_frames_of_the_backend,
        bad_fragments,
        bad_fragments_of_the_backend,
        lengths_that_lie,
        lengths_of_the_backend_that_lie,
        text_that_is_not_utf8,
        text_of_the_backend_that_is_not_utf8,
    }
    ends {
        bad_close_frames,
        bad_close_frames_of_the_backend,
        data_behind_a_close_frame,
        data_of_the_backend_behind_a_close_frame,
        close_frames_that_nobody_answers,
        connections_closed_by_half,
    }
    compression {
        compression_bombs,
        small_bombs_one_after_another,
        compressed_nothing,
        references_to_an_earlier_message,
        what_hides_in_compressed_payload,
        malformed_offers_of_compression,
        answers_that_nobody_offered,
    }
    exhaustion {
        a_flood_of_empty_fragments,
        a_message_in_tiny_fragments,
        a_message_that_never_ends,
        a_flood_of_pings_without_reading,
        a_flood_of_messages_without_reading,
        clients_that_do_not_read,
        a_client_that_is_dead,
        a_message_that_is_not_finished,
        a_message_that_is_dripped,
    }
}

/// Without this a proxy that serves nobody would stop every attack.
#[test]
fn whoever_is_honest_is_served_on_every_way() {
    for script in cases::honest_ones() {
        for (way, heard) in runner::serve(&Settings::NONE, &[("", cases::echoes())], &script) {
            assert!(bytes::find(&heard.bytes, bytes::HONEST).is_some(), "{way}: {}", heard.bytes.escape_ascii());
        }
    }
}

/// Without this a gateway that takes no cookie at all would stop the forged ones.
#[test]
fn a_sticky_cookie_that_was_not_forged_is_taken() {
    let client = identity::comes_back("/ticket", str::to_owned);
    let [_, _, (_, heard)] = runner::serve(&identity::STICKY, &identity::gives_no_cookie(), &client);
    assert!(identity::cookie_was_taken(&heard.bytes), "{}", heard.bytes.escape_ascii());
}

/// At full length it plays every case and writes the page and the README's table.
#[test]
fn the_pages_have_every_case_as_it_is() {
    if cases::at_full_length() {
        let results: Vec<_> = all()
            .into_iter()
            .map(|case| {
                eprintln!("playing {}", case.name);
                let verdicts = runner::play(&case);
                (case, verdicts)
            })
            .collect();
        report::write(&results);
    } else {
        report::check(&all());
    }
}
