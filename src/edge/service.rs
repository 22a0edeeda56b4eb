//! One connection, from accept to its last request: head, client, rule, and then a tunnel or plain HTTP.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::answer;
use super::gateway::{Gateway, ListenerState};
use super::head::{self, NoHead};
use super::plain::PlainProxy;
use super::record::Record;
use super::request::{Intent, Request};
use super::upgrade;
use crate::cause::Refusal;
use crate::config::WebSocketMode;
use crate::policy::route;

/// What serves connections, shared by all listeners.
pub struct Service {
    /// The configuration at work.
    pub gateway: Arc<Gateway>,
    /// Where plain requests go.
    pub plain: PlainProxy,
}

impl Service {
    /// Serves a connection until it ends or becomes a tunnel.
    pub async fn serve(self: Arc<Self>, listener: Arc<ListenerState>, mut io: TcpStream, peer: SocketAddr) {
        let gateway = &self.gateway;
        let peer = peer.ip().to_canonical();
        let Some(descriptor) = gateway.take_descriptor() else {
            return self.refuse(&listener, io, peer, None, Refusal::ProcessConnections).await;
        };
        upgrade::tune_client(&io);
        let mut read = Bytes::new();
        let mut first = true;
        loop {
            let head = tokio::select! {
                biased;
                head = head::read(&mut io, read, &listener.config.head, first) => head,
                // Between two requests nothing of a client's is lost.
                () = gateway.refusing(), if !first => return,
            };
            let head = match head {
                Ok(head) => head,
                Err(NoHead::Quiet) => return,
                Err(NoHead::Refused(refusal)) => return self.refuse(&listener, io, peer, None, refusal).await,
            };
            let request = match Request::read(head, peer, &listener, gateway) {
                Ok(request) => request,
                Err(unread) => {
                    let mut record = Record::of_head(&listener.name, peer, &unread.head);
                    record.set_client(unread.client);
                    return self.refuse(&listener, io, peer, Some(record), unread.refusal).await;
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
                _ if gateway.is_refusing() => Err(Refusal::Draining),
                Some(rule) => Ok(rule.clone()),
                None => Err(Refusal::NoRule),
            };
            let rule = match rule {
                Ok(rule) => rule,
                Err(refusal) => return self.refuse(&listener, io, peer, Some(record), refusal).await,
            };
            record.set_rule(&rule.name);
            if request.intent == Intent::WebSocket {
                return upgrade::serve(gateway, &listener, io, request, rule, record, descriptor).await;
            }
            if rule.websocket == WebSocketMode::Require {
                let refusal = Refusal::UpgradeRequired;
                rule.metrics.refused(&refusal);
                record.refused(&refusal, None);
                return answer::refuse(io, &refusal).await;
            }
            let Some(upstream_descriptor) = gateway.take_descriptor() else {
                return self.refuse(&listener, io, peer, Some(record), Refusal::ProcessConnections).await;
            };
            let source = listener.config.client_address.clone();
            // Boxed: what Pingora needs for a request is large, and a connection that waits for one should not own it.
            let served = Box::pin(self.plain.serve(io, request, source, rule, record, upstream_descriptor)).await;
            match served {
                Some((stream, unread)) => (io, read) = (stream, unread),
                None => return,
            }
            first = false;
        }
    }

    /// Answers a request for which no rule is known.
    async fn refuse(
        &self,
        listener: &ListenerState,
        io: TcpStream,
        peer: IpAddr,
        record: Option<Record>,
        refusal: Refusal,
    ) {
        self.gateway.no_rule.refused(&refusal);
        record.unwrap_or_else(|| Record::of_peer(&listener.name, peer)).refused(&refusal, None);
        answer::refuse(io, &refusal).await;
    }
}
