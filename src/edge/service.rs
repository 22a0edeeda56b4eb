//! One connection, from accept to its last request: head, client, rule, and then a tunnel or plain HTTP.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use pingora::protocols::http::v2::server::HttpSession;
use tokio::time::Instant;

use super::answer;
use super::client::{Client as _, Http1Client};
use super::fixed::{self, Answered};
use super::gateway::{Action, Gateway, ListenerState, Rule};
use super::head::{self, Beginning, Head, NoHead};
use super::http2::{self, StreamMark};
use super::http2_stream::{self, Http2Client};
use super::plain::PlainProxy;
use super::proxy_protocol;
use super::record::{PlainAnswer, Record};
use super::request::{Arrival, Intent, Request};
use super::routed::{Routed, note_answer};
use super::socket::Socket;
use super::sticky;
use super::tls_accept::{self, NoTls};
use super::upgrade;
use crate::cause::Refusal;
use crate::config::WebSocketMode;
use crate::policy::client_address::{Peer, Source};
use crate::policy::route;
use crate::tunnel::pressure;

/// A request that its rule lets pass.
struct Admitted {
    request: Request,
    rule: Arc<Rule>,
    record: Record,
}

/// What serves connections, shared by all listeners.
pub struct Service {
    /// The configuration at work.
    pub gateway: Arc<Gateway>,
    /// Where plain requests go.
    pub plain: PlainProxy,
}

impl Service {
    /// Serves a connection until it ends or becomes a tunnel.
    pub async fn serve(self: Arc<Self>, listener: Arc<ListenerState>, mut io: Socket, peer: Peer) {
        let gateway = &self.gateway;
        let Some(descriptor) = gateway.take_descriptor() else {
            return self.refuse(&listener, io, peer, None, Refusal::ProcessConnections).await;
        };
        if pressure::is_over() {
            return self.refuse(&listener, io, peer, None, Refusal::ProcessMemory).await;
        }
        upgrade::tune_client(&io);
        // One deadline for all that comes before the end of the first head.
        let mut deadline = Instant::now() + listener.config.head.timeout;
        let (named, mut read) = match self.read_proxy_header(&listener, &mut io, peer, deadline).await {
            Ok(read) => read,
            Err(NoHead::Quiet) => return,
            Err(NoHead::Refused(refusal)) => return self.refuse(&listener, io, peer, None, refusal).await,
        };
        let mut identity = None;
        if let Some(tls) = &listener.tls {
            // Boxed: TLS is large, and a cleartext connection should not own the room for it.
            match Box::pin(tls_accept::accept(io, read, tls.current(), deadline)).await {
                Ok(accepted) => (io, read, identity) = (accepted.io, Bytes::new(), accepted.identity),
                Err(no_tls) => return self.refuse_tls(&listener, peer, named, no_tls).await,
            }
        }
        let arrival = Arrival { peer, named, tls: listener.tls.is_some(), identity };
        if io.has_agreed_on_http2() {
            return Box::pin(http2::serve(self, listener, io, read, arrival, descriptor, deadline)).await;
        }
        // Under TLS the protocol is agreed on before it is spoken: RFC 9113 §3.3.
        let may_be_http2 = listener.config.http2 && listener.tls.is_none();
        let mut first = true;
        loop {
            if !first {
                deadline = Instant::now() + listener.config.head.timeout;
            }
            let head = tokio::select! {
                biased;
                head = head::read(&mut io, read, &listener.config.head, deadline, first, may_be_http2 && first) => head,
                // Between two requests nothing of a client's is lost.
                () = gateway.refusing(), if !first => return,
            };
            let head = match head {
                Ok(Beginning::Request(head)) => head,
                Ok(Beginning::Http2(read)) => {
                    return Box::pin(http2::serve(self, listener, io, read, arrival, descriptor, deadline)).await;
                }
                Err(NoHead::Quiet) => return,
                Err(NoHead::Refused(refusal)) => return self.refuse(&listener, io, peer, None, refusal).await,
            };
            let Admitted { request, rule, record } = match self.admit(&listener, &arrival, head) {
                Ok(admitted) => admitted,
                Err(refusal) => return Box::pin(answer::refuse(io, &refusal)).await,
            };
            let started = std::time::Instant::now();
            let answered = match &rule.action {
                Action::Upstream(upstream) => {
                    let upstream = upstream.clone();
                    let choice = sticky::choose(&rule, &upstream, &request);
                    let routed = Routed { request, rule, upstream, choice, record };
                    if routed.request.intent == Intent::WebSocket {
                        let client = Http1Client::new(io);
                        // Boxed, as below: a connection that waits for a head should not own what an answer needs.
                        return Box::pin(upgrade::serve(gateway, &listener, client, routed, Some(descriptor))).await;
                    }
                    let Some(upstream_descriptor) = gateway.take_descriptor() else {
                        return self
                            .refuse(&listener, io, peer, Some(routed.record), Refusal::ProcessConnections)
                            .await;
                    };
                    let source = listener.config.client_address.clone();
                    let log = gateway.access_log;
                    match Box::pin(self.plain.serve(io, routed, source, log, upstream_descriptor)).await {
                        Some((stream, unread)) => (io, read) = (stream, unread),
                        None => return,
                    }
                    first = false;
                    continue;
                }
                Action::Redirect(redirect) => {
                    let fixed = fixed::redirect(&request, &rule, redirect);
                    Box::pin(fixed.write(io, &request, &rule)).await
                }
                Action::Respond(respond) => {
                    let fixed = fixed::respond(&rule, respond);
                    Box::pin(fixed.write(io, &request, &rule)).await
                }
            };
            self.note_fixed(&rule, &record, &answered, started);
            match answered.io {
                Some((stream, unread)) => (io, read) = (stream, unread),
                None => return,
            }
            first = false;
        }
    }

    /// Serves one stream of a connection of HTTP/2.
    pub async fn serve_stream(
        &self,
        listener: &ListenerState,
        arrival: &Arrival,
        session: HttpSession,
        mark: StreamMark,
    ) {
        let gateway = &self.gateway;
        let head = http2_stream::head_of(session.req_header());
        let mut client = Http2Client::new(session, mark);
        let Admitted { request, rule, record } = match self.admit(listener, arrival, head) {
            Ok(admitted) => admitted,
            Err(refusal) => return client.refuse(&refusal).await,
        };
        let started = std::time::Instant::now();
        let fixed = match &rule.action {
            Action::Upstream(upstream) => {
                let upstream = upstream.clone();
                let choice = sticky::choose(&rule, &upstream, &request);
                let routed = Routed { request, rule, upstream, choice, record };
                if routed.request.intent == Intent::WebSocket {
                    return Box::pin(upgrade::serve(gateway, listener, client, routed, None)).await;
                }
                let Some(upstream_descriptor) = gateway.take_descriptor() else {
                    let refusal = Refusal::ProcessConnections;
                    gateway.no_rule.refused(&refusal);
                    routed.record.refused(&refusal, None);
                    return client.refuse(&refusal).await;
                };
                let source = listener.config.client_address.clone();
                let (session, _mark) = client.into_parts();
                let plain = &self.plain;
                let served = plain.serve_stream(session, routed, source, gateway.access_log, upstream_descriptor);
                return Box::pin(served).await;
            }
            Action::Redirect(redirect) => fixed::redirect(&request, &rule, redirect),
            Action::Respond(respond) => fixed::respond(&rule, respond),
        };
        if request.intent == Intent::WebSocket && fixed.is_success() {
            // To a CONNECT it would open a tunnel: RFC 9110 §9.3.6.
            let refusal = Refusal::UpgradeDenied;
            rule.metrics.refused(&refusal);
            record.refused(&refusal, None);
            return client.refuse(&refusal).await;
        }
        let answered = fixed.write_to_stream(&mut client, &request, &rule).await;
        self.note_fixed(&rule, &record, &answered, started);
    }

    /// Reads a request and finds the rule that lets it pass. What is refused is counted and logged, and has to be
    /// answered.
    fn admit(&self, listener: &ListenerState, arrival: &Arrival, head: Head) -> Result<Admitted, Refusal> {
        let gateway = &self.gateway;
        let unruled = |record: &Record, refusal: Refusal| {
            gateway.no_rule.refused(&refusal);
            record.refused(&refusal, None);
            refusal
        };
        let request = match Request::read(head, arrival, &listener.config, &gateway.trusted_proxies) {
            Ok(request) => request,
            Err(unread) => {
                let mut record = Record::of_head(&listener.name, arrival.peer, &unread.head);
                record.set_client(unread.client);
                return Err(unruled(&record, unread.refusal));
            }
        };
        let mut record = Record::of_request(&listener.name, &request);
        let route = route::Request {
            listener: &listener.config.name,
            host: request.host(),
            path: &request.path,
            headers: &request.head.request.headers,
        };
        let rule = match gateway.route(&route) {
            _ if gateway.is_refusing() => return Err(unruled(&record, Refusal::Draining)),
            _ if pressure::is_over() => return Err(unruled(&record, Refusal::ProcessMemory)),
            Some(rule) => rule.clone(),
            None => return Err(unruled(&record, Refusal::NoRule)),
        };
        record.set_rule(&rule.name);
        if let Err(refusal) = self.check(&rule, &request, &record) {
            rule.metrics.refused(&refusal);
            record.refused(&refusal, None);
            return Err(refusal);
        }
        Ok(Admitted { request, rule, record })
    }

    fn note_fixed(&self, rule: &Rule, record: &Record, answered: &Answered, started: std::time::Instant) {
        let line = PlainAnswer {
            upstream: None,
            endpoint: None,
            status: answered.status,
            duration: started.elapsed(),
            bytes_in: 0,
            bytes_out: answered.body_bytes,
            broken: false,
        };
        note_answer(self.gateway.access_log, rule, record, &line);
    }

    /// Whose connection a hop says that this is, where the listener asks for it; and what was read behind that.
    async fn read_proxy_header(
        &self,
        listener: &ListenerState,
        io: &mut Socket,
        peer: Peer,
        deadline: Instant,
    ) -> Result<(Option<IpAddr>, Bytes), NoHead> {
        if listener.config.client_address != Source::ProxyProtocol {
            return Ok((None, Bytes::new()));
        }
        if !self.gateway.trusted_proxies.contains(peer) {
            return Err(NoHead::Refused(Refusal::ProxyHeader));
        }
        Box::pin(proxy_protocol::read(io, deadline)).await
    }

    /// The policies that hold for every request of a rule.
    fn check(&self, rule: &Rule, request: &Request, record: &Record) -> Result<(), Refusal> {
        rule.judge(rule.check_client(request.client), record)?;
        if request.intent == Intent::WebSocket {
            return Ok(());
        }
        if rule.websocket == WebSocketMode::Require {
            rule.judge(Err(Refusal::UpgradeRequired), record)?;
        }
        match rule.http.max_body_size {
            Some(limit) if request.declares_body_over(limit) => rule.judge(Err(Refusal::BodyTooLarge), record),
            _ => Ok(()),
        }
    }

    /// Ends a connection that came to no TLS.
    async fn refuse_tls(&self, listener: &ListenerState, peer: Peer, named: Option<IpAddr>, no_tls: NoTls) {
        let mut record = Record::of_peer(&listener.name, peer);
        record.set_client(named.map_or(peer, Peer::from));
        match no_tls {
            NoTls::Quiet => {}
            NoTls::Cleartext(io) => self.refuse(listener, io, peer, Some(record), Refusal::CleartextOnTls).await,
            NoTls::Failed(why) => {
                self.gateway.no_rule.refused(&Refusal::TlsHandshake);
                record.refused(&Refusal::TlsHandshake, Some(why));
            }
        }
    }

    /// Answers a request for which no rule is known.
    async fn refuse(&self, listener: &ListenerState, io: Socket, peer: Peer, record: Option<Record>, refusal: Refusal) {
        self.gateway.no_rule.refused(&refusal);
        record.unwrap_or_else(|| Record::of_peer(&listener.name, peer)).refused(&refusal, None);
        // Before its TLS a client can read an answer only when it speaks in the clear.
        let readable = listener.tls.is_none() || io.is_tls() || refusal == Refusal::CleartextOnTls;
        if readable {
            Box::pin(answer::refuse(io, &refusal)).await;
        }
    }
}
