//! permessage-deflate: offers and answers are the same once written, and what is answered was offered.
#![no_main]

use http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_EXTENSIONS};
use libfuzzer_sys::fuzz_target;
use sluicegate::ws::extensions::{MAX_OFFERS, accept, answer, is_valid_list, offers, write_offers};

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok());
    // The first line is an answer, those behind it are offers.
    let answered = lines.next().into_iter().collect::<Vec<_>>();
    let offered = lines.collect::<Vec<_>>();
    let valid = |lines: &[HeaderValue]| lines.iter().all(|line| is_valid_list(line.as_bytes()));
    let Ok(list) = offers(&headers(&offered)) else { return };
    assert!(valid(&offered) && list.len() <= MAX_OFFERS);
    assert_eq!(offers(&headers(&[value(&write_offers(&list))])), Ok(list.clone()));

    for bits in 9..=15 {
        // What the gateway accepts by itself is a correct answer.
        let accepted = accept(&list, bits);
        let written = accepted.map(|accepted| value(&accepted.to_string()));
        assert_eq!(answer(&list, &headers(written.as_slice())), Ok(accepted));
    }
    let Ok(Some(chosen)) = answer(&list, &headers(&answered)) else { return };
    assert!(valid(&answered) && chosen.client_max_window_bits != Some(None));
    assert_eq!(answer(&list, &headers(&[value(&chosen.to_string())])), Ok(Some(chosen)));
    assert!(list.iter().any(|offer| {
        let server = offer
            .server_max_window_bits
            .is_none_or(|most| chosen.server_max_window_bits.is_some_and(|bits| bits <= most));
        let client = chosen.client_max_window_bits.is_none() || offer.client_max_window_bits.is_some();
        server && client && (chosen.server_no_context_takeover || !offer.server_no_context_takeover)
    }));
});

fn headers(lines: &[HeaderValue]) -> HeaderMap {
    lines.iter().map(|line| (SEC_WEBSOCKET_EXTENSIONS, line.clone())).collect()
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("what is written is ASCII")
}
