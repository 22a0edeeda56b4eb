//! From what the user wrote about RabbitMQ to what the program uses.

use super::build::Report;
use super::files;
use super::key_path::KeyPath;
use super::raw_backplane::RawRabbitMq;
use crate::backplane::rabbitmq::Access;
use crate::policy::Fault;

pub(super) fn build(raw: &RawRabbitMq, base: &KeyPath, report: &mut Report<'_>) -> Option<Access> {
    let url = url(raw.url.as_ref()?, base, report);
    let password = match raw.password_file.as_deref() {
        None => Some(None),
        Some(file) => password(file, base, report).map(Some),
    };
    Some(Access { url: url?, username: raw.username.clone(), password: password? })
}

fn url(url: &str, base: &KeyPath, report: &mut Report<'_>) -> Option<String> {
    let rest = url.strip_prefix("amqp://").or_else(|| url.strip_prefix("amqps://"));
    // What comes behind a ? are settings of the connection, which are the gateway's.
    let plain = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(['@', '?', '#']));
    if plain && url.parse::<lapin::uri::AMQPUri>().is_ok() {
        return Some(url.to_owned());
    }
    let allowed = "amqp://HOST:PORT/VHOST or amqps://HOST:PORT/VHOST, without a user, password or query";
    // What stands before an @ may be a secret.
    let found = if url.contains('@') { "a URL with a user".to_owned() } else { format!("{url:?}") };
    report.extend(base, Some(Fault::new("url", found, allowed)));
    None
}

fn password(file: &str, base: &KeyPath, report: &mut Report<'_>) -> Option<String> {
    let read = files::read_secret(report.source, file);
    match read.and_then(|secret| String::from_utf8(secret).map_err(|_| "it is not text".to_owned())) {
        Ok(password) => Some(password),
        Err(why) => {
            let allowed = format!("a file that can be read ({why})");
            report.extend(base, Some(Fault::new("password_file", format!("{file:?}"), allowed)));
            None
        }
    }
}
