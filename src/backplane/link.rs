//! What a client has missed of a channel and the log does not have any more: its backend is asked for it.
//!
//! While it is asked nothing is taken of the client's channels, so what it answers comes before what was published since:
//! that waits where it waits for a slow client, with the same bounds.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;

use super::backend::{AskError, Asking, Backend, Question, Reply};
use super::subscriber::Missed;
use crate::grip::events::CONTENT_TYPE;
use crate::grip::meta::Meta;

/// How often a link is asked again. A client waits meanwhile: so not for as long as a request with events.
const RETRIES: u32 = 2;

/// Asks for what was missed. A GET may be made again, whatever became of it: RFC 9110 §9.2.1.
pub fn ask(backend: Arc<dyn Backend>, missed: &Missed, meta: Meta) -> Asking {
    let last = (missed.channel.as_str().to_owned(), missed.last_id.clone());
    let question = Question::Link { target: missed.link.clone(), last, meta };
    Box::pin(async move {
        let mut retries = 0;
        loop {
            let answer = backend.ask(question.clone()).await;
            let again = match &answer {
                Ok(reply) => reply.status >= 500,
                Err(error) => *error != AskError::Malformed,
            };
            if !again || retries == RETRIES {
                return answer;
            }
            let pause_ms = (1_000 << retries) + rand::rng().random_range(0..1_000);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            retries += 1;
        }
    })
}

/// Whether the answer has events for the client.
pub fn has_events(reply: &Reply) -> bool {
    reply.status == 200 && reply.headers.get(http::header::CONTENT_TYPE).is_some_and(|value| value == CONTENT_TYPE)
}
