//! A connection of HTTP/2: what it may hold, its streams, and how it ends.
//!
//! One task drives the connection, and each stream is served by a task of its own. A client that resets its streams at
//! once has no more work in flight for it than one that waits for its answers (rapid reset, CVE-2023-44487): what is over
//! the limit is reset, and who goes on is sent away. RFC 9113.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use pingora::protocols::http::v2::server::{H2Accept, H2Options, HttpSession, default_h2_options};
use pingora::protocols::{Digest, Stream};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::answer;
use super::gateway::ListenerState;
use super::record::Record;
use super::request::Arrival;
use super::service::Service;
use super::socket::Socket;
use super::stream::PrereadStream;
use crate::cause::Refusal;
use crate::config::HeadLimits;
use crate::policy::connection_limit::Guard;

/// The most streams of a connection that are served at once.
const MAX_STREAMS: u32 = 100;

/// What a client may send on a stream before it is read, in bytes. The window of the connection is that of all its
/// streams, so that no number of streams which are not read holds another back.
const STREAM_WINDOW_BYTES: u32 = 32 << 10;

/// What a stream may write ahead of its client's windows, in bytes. Beyond it the stream waits, and what it carries.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// What the frames of DATA that a connection holds unread may take besides what is in them, by h2's count of 256 less
/// their length each, in bytes. Messages of WebSockets are small: by h2's default, half the connection's window, a few
/// dozen streams whose upstreams take nothing for a while would cost their client the whole connection.
const FRAMES_UNREAD_BYTES: usize = 8 << 20;

/// So many streams of a connection may be malformed, or over the limit, before it is closed.
const MAX_FAULTS: usize = 32;

/// A connection: whose it is, and what it has in flight.
struct Connection {
    service: Arc<Service>,
    listener: Arc<ListenerState>,
    arrival: Arrival,
    streams: Streams,
    /// Its place under the limit of descriptors, until its last stream is over.
    _descriptor: Guard,
}

type Http2 = h2::server::Connection<Stream, Bytes>;

/// Serves a connection, of which `read` was read, until its last stream is over. Its preface is due by `deadline`.
pub async fn serve(
    service: Arc<Service>,
    listener: Arc<ListenerState>,
    io: Socket,
    read: Bytes,
    arrival: Arrival,
    descriptor: Guard,
    deadline: Instant,
) {
    let limits = listener.config.head;
    let stream = PrereadStream::whole(io, read);
    let connection =
        Arc::new(Connection { service, listener, arrival, streams: Streams::default(), _descriptor: descriptor });
    match timeout_at(deadline, options(&limits).handshake(stream)).await {
        Ok(Ok(http2)) => connection.drive(http2, limits.timeout).await,
        // It is gone, as it may be between two requests.
        Ok(Err(error)) if error.is_io() => {}
        Ok(Err(_)) => connection.note(Refusal::MalformedRequest),
        Err(_) => connection.note(Refusal::HeadTimeout),
    }
}

fn options(limits: &HeadLimits) -> H2Options {
    // Pingora's: what is not set here has a bound all the same.
    let mut options = default_h2_options();
    options
        .enable_connect_protocol()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(MAX_STREAMS * STREAM_WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(limits.max_bytes).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .data_frame_budget(FRAMES_UNREAD_BYTES);
    options
}

impl Connection {
    /// Drives the connection to its end. `idle_timeout` is how long it may be without a stream in flight.
    async fn drive(self: Arc<Self>, mut http2: Http2, idle_timeout: Duration) {
        // What Pingora would tell its hooks of the connection, which ours do not ask.
        let digest = Arc::new(Digest::default());
        let gateway = self.service.gateway.clone();
        let mut refusing = pin!(gateway.refusing());
        let mut faults = 0;
        let mut leaving = false;
        loop {
            let idle_for = if leaving { answer::LINGER } else { idle_timeout };
            let accepted = tokio::select! {
                biased;
                () = &mut refusing, if !leaving => None,
                accepted = HttpSession::from_h2_conn(&mut http2, digest.clone()) => Some(accepted),
                () = self.streams.idle_for(idle_for) => None,
            };
            let fault = match accepted {
                // Said already, and the client goes on without a stream: it need not be heard any more.
                None if leaving => return,
                None => {
                    // GOAWAY. The streams in flight go on, and those that the client opens before it knows.
                    http2.graceful_shutdown();
                    leaving = true;
                    continue;
                }
                Some(Err(_) | Ok(None)) => return,
                Some(Ok(Some(H2Accept::Session(mut session)))) => match self.streams.begin() {
                    true => {
                        let mark = StreamMark(self.clone());
                        tokio::spawn(self.clone().serve_stream(session, mark));
                        continue;
                    }
                    false => {
                        session.shutdown_with_reason(Reason::REFUSED_STREAM);
                        Refusal::StreamLimit
                    }
                },
                // Pingora has reset it, or has answered 400.
                Some(Ok(Some(H2Accept::Rejected))) => Refusal::MalformedRequest,
            };
            self.note(fault);
            faults += 1;
            if faults >= MAX_FAULTS {
                return send_away(http2, &digest).await;
            }
        }
    }

    async fn serve_stream(self: Arc<Self>, session: HttpSession, mark: StreamMark) {
        let Self { service, listener, arrival, .. } = &*self;
        service.serve_stream(listener, arrival, session, mark).await;
    }

    /// Counts and logs what came to no request.
    fn note(&self, refusal: Refusal) {
        self.service.gateway.no_rule.refused(&refusal);
        let mut record = Record::of_peer(&self.listener.name, self.arrival.peer);
        record.set_http2();
        if let Some(named) = self.arrival.named {
            record.set_client(named.into());
        }
        record.refused(&refusal, None);
    }
}

/// Closes a connection whose client is not worth more work. Its streams end with it.
async fn send_away(mut http2: Http2, digest: &Arc<Digest>) {
    http2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    let gone = async {
        // It is polled until the GOAWAY is written.
        while let Ok(Some(_)) = HttpSession::from_h2_conn(&mut http2, digest.clone()).await {}
    };
    let _ = timeout(answer::LINGER, gone).await;
}

/// The streams of a connection that are served.
#[derive(Default)]
struct Streams {
    count: AtomicUsize,
    none: Notify,
}

impl Streams {
    /// Takes a place for a stream, which a [`StreamMark`] gives back; `false` when all are taken.
    fn begin(&self) -> bool {
        let begun = self.count.fetch_add(1, Ordering::Relaxed) < MAX_STREAMS as usize;
        if !begun {
            self.end();
        }
        begun
    }

    fn end(&self) {
        if self.count.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.none.notify_one();
        }
    }

    /// Resolves when there was no stream for so long. Whatever begins one asks anew.
    async fn idle_for(&self, time: Duration) {
        while self.count.load(Ordering::Relaxed) > 0 {
            self.none.notified().await;
        }
        tokio::time::sleep(time).await;
    }
}

/// A stream in flight, until this is dropped.
pub struct StreamMark(Arc<Connection>);

impl Drop for StreamMark {
    fn drop(&mut self) {
        self.0.streams.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_when_its_last_stream_is_over() {
        let streams = Streams::default();
        for _ in 0..MAX_STREAMS {
            assert!(streams.begin());
        }
        assert!(!streams.begin() && !streams.begin(), "all places are taken");
        {
            let mut idle = pin!(streams.idle_for(Duration::from_secs(1)));
            assert!((&mut idle).now_or_never().is_none());
            tokio::time::advance(Duration::from_secs(10)).await;
            assert!((&mut idle).now_or_never().is_none());
        }
        for _ in 1..MAX_STREAMS {
            streams.end();
        }
        assert!(streams.begin());
        streams.end();
        let mut idle = pin!(streams.idle_for(Duration::from_secs(1)));
        assert!((&mut idle).now_or_never().is_none(), "one is left");
        streams.end();
        let began = Instant::now();
        idle.await;
        assert_eq!(began.elapsed(), Duration::from_secs(1));
    }
}
