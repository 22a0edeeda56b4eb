//! A request that has found its rule and its upstream, as it goes on to a tunnel or to plain HTTP.

use std::sync::Arc;

use super::gateway::Rule;
use super::record::{PlainAnswer, Record};
use super::request::Request;
use super::sticky::Choice;
use super::upstreams::Upstream;
use crate::config::AccessLog;

/// A request that goes to an upstream.
pub struct Routed {
    /// The request.
    pub request: Request,
    /// Its rule.
    pub rule: Arc<Rule>,
    /// Where it goes.
    pub upstream: Arc<Upstream>,
    /// Which endpoint it should get.
    pub choice: Choice,
    /// What the log will say.
    pub record: Record,
}

/// Counts and logs the answer to a plain request.
pub fn note_answer(log: AccessLog, rule: &Rule, record: &Record, answer: &PlainAnswer<'_>) {
    rule.metrics.answered(answer.status, answer.duration);
    let logged = match log {
        AccessLog::On => true,
        AccessLog::Errors => answer.status >= 400 || answer.broken,
        AccessLog::Off => false,
    };
    if logged {
        record.answered(answer);
    }
}
