//! A plain request that its backend has held: what of its channels is for its client, who waits for one response or reads a
//! stream.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::poll_fn;

use bytes::Bytes;

use super::engine::{Channel, MessageId};
use super::hub::{From, Member, Notice, Publication};
use super::position::{Place, Position};
use super::recover::{Recovery, ReplayLimit};
use super::rendered::Message;
use crate::grip::Limits;
use crate::grip::filters::{self, Filters};
use crate::grip::instruct::{Hold, HoldMode};
use crate::grip::item::{Body, HttpResponse, HttpStream, Response};
use crate::grip::meta::Meta;

/// What comes next of a held request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// More of a stream's body.
    Body(Bytes),
    /// The response, where one is waited for.
    Response(Box<Response>),
    /// Items may be missing, or a publisher has said that there is something new: the backend is to be asked.
    Ask,
    /// A publisher has ended it.
    Close,
    /// The client has fallen behind what this node keeps.
    Overrun,
}

/// The channels of a held request.
#[derive(Debug)]
pub struct Held {
    member: Member,
    mode: HoldMode,
    meta: Meta,
    limits: Limits,
    channels: BTreeMap<Channel, Subscription>,
}

#[derive(Debug)]
struct Subscription {
    filters: Filters,
    last_id: String,
}

impl Held {
    /// Subscribes to the channels of a hold, each behind the item that the response has as its last. `meta` is what was
    /// known of the connection before.
    pub fn new(mut member: Member, hold: Hold, meta: Meta, limits: &Limits) -> Self {
        let mut channels = BTreeMap::new();
        for crate::grip::instruct::Channel { name, prev_id, filters } in hold.channels {
            // Both were bounded where they were read, by the same numbers.
            let Ok(channel) = Channel::new(&name) else { continue };
            let last_id = prev_id.unwrap_or_default();
            let from = match (last_id.parse::<Position>(), MessageId::new(&last_id)) {
                _ if last_id.is_empty() => From::Now,
                (Ok(position), _) => From::Place(Place::After(position)),
                (Err(_), Ok(id)) => From::Message(id),
                (Err(_), Err(_)) => From::Now,
            };
            member.subscribe(&channel, from, ReplayLimit { max_entries: u64::MAX, max_bytes: u64::MAX });
            channels.insert(channel, Subscription { filters, last_id });
        }
        let mut all = meta;
        for (name, value) in hold.meta.iter() {
            // What has no place any more was bounded by the backend's own hand.
            let _ = all.set(name, value, limits);
        }
        Self { member, mode: hold.mode, meta: all, limits: limits.clone(), channels }
    }

    /// The channels with the last id of each, where there is one: `Grip-Last`.
    pub fn last(&self) -> Vec<(String, String)> {
        let known = self.channels.iter().filter(|(_, subscription)| !subscription.last_id.is_empty());
        known.map(|(channel, subscription)| (channel.as_str().to_owned(), subscription.last_id.clone())).collect()
    }

    /// What its connection is known by, for the hold that follows on this one.
    pub fn into_meta(self) -> Meta {
        self.meta
    }

    /// What comes next. Cancel-safe.
    pub async fn next(&mut self) -> Next {
        loop {
            let next = match poll_fn(|cx| self.member.poll_next(cx)).await {
                Notice::Publication(publication) => self.publication(&publication),
                Notice::Subscribed { recovery: Recovery::Gap(_), .. } | Notice::Gap { .. } => Some(Next::Ask),
                Notice::Subscribed { .. } | Notice::Region { .. } => None,
                Notice::Overrun(_) => Some(Next::Overrun),
            };
            if let Some(next) = next {
                return next;
            }
        }
    }

    fn publication(&mut self, publication: &Publication) -> Option<Next> {
        let rendered = publication.rendered()?;
        let subscription = self.channels.get(&publication.channel)?;
        let last_id = |channel: &str| {
            let channel = Channel::new(channel).ok()?;
            self.channels.get(&channel).map(|subscription| subscription.last_id.as_str())
        };
        let context = filters::Context { subscriber: &self.meta, item: &rendered.meta, last_id: &last_id };
        let filters = &subscription.filters;
        let for_it =
            |content_filters: &Option<Vec<String>>| filters.accept(content_filters.as_deref()) && filters.pass(context);
        // A subscriber for whom an item cannot be rendered does not get it, as GRIP has it.
        let render = |content: &Bytes| match filters.render(content, context, &self.limits).ok()? {
            Cow::Borrowed(_) => Some(content.clone()),
            Cow::Owned(rendered) => Some(rendered.into()),
        };
        let next =
            match (self.mode, &rendered.http_stream, &rendered.http_response) {
                (HoldMode::Stream, Some(HttpStream::Send { content, content_filters }), _) => {
                    if for_it(content_filters) { render(content).map(Next::Body) } else { None }
                }
                (HoldMode::Stream, Some(HttpStream::Close), _) => Some(Next::Close),
                (HoldMode::Stream, Some(HttpStream::Hint), _) => Some(Next::Ask),
                (HoldMode::Response, _, Some(HttpResponse::Send(response))) => {
                    if for_it(&response.content_filters) {
                        respond(response, render)
                    } else {
                        None
                    }
                }
                (HoldMode::Response, _, Some(HttpResponse::Close)) => Some(Next::Close),
                (HoldMode::Response, _, Some(HttpResponse::Hint)) => Some(Next::Ask),
                _ => None,
            };
        if !matches!(rendered.message, Message::Lost)
            && let Some(subscription) = self.channels.get_mut(&publication.channel)
        {
            subscription.last_id.clone_from(&rendered.id);
        }
        next
    }
}

fn respond(response: &Response, render: impl FnOnce(&Bytes) -> Option<Bytes>) -> Option<Next> {
    let body = match &response.body {
        Body::Whole(body) => Body::Whole(render(body)?),
        // What it changes is in no item.
        Body::Patch(patch) => Body::Patch(patch.clone()),
    };
    Some(Next::Response(Box::new(Response { body, ..response.clone() })))
}
