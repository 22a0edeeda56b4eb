//! The filters of a subscription: which of a channel's messages one subscriber gets, and what it reads in them.
//!
//! They look at metadata of the subscriber's connection and of the published item. Two subscribers with the same filters
//! and the same entries that these read get the same bytes, so a message can be rendered once for both.

use std::borrow::Cow;

use super::Limits;
use super::meta::Meta;

/// A filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// `skip-self`: drops a message whose `sender` is the connection's `user`.
    SkipSelf,
    /// `skip-users`: drops a message whose `skip_users`, a comma-separated list, has the connection's `user`.
    SkipUsers,
    /// `require-sub`: drops a message whose `require_sub` is a channel that the connection is not subscribed to.
    RequireSub,
    /// `build-id`: puts an id in the place of `%I` and `%(id)I`.
    BuildId,
    /// `var-subst`: puts the connection's metadata in the place of `%(name)s`.
    VarSubst,
}

impl Filter {
    /// Every filter.
    pub const ALL: [Self; 5] = [Self::SkipSelf, Self::SkipUsers, Self::RequireSub, Self::BuildId, Self::VarSubst];

    /// Its name in GRIP.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SkipSelf => "skip-self",
            Self::SkipUsers => "skip-users",
            Self::RequireSub => "require-sub",
            Self::BuildId => "build-id",
            Self::VarSubst => "var-subst",
        }
    }

    /// The filter of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|filter| filter.name() == name)
    }

    /// Whether it changes what a subscriber reads.
    pub const fn changes_content(self) -> bool {
        matches!(self, Self::BuildId | Self::VarSubst)
    }
}

/// Why a list of filters was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FiltersError {
    /// A name is none that is known here.
    #[error("unknown filter")]
    Unknown,
    /// More than [`Limits::filters`].
    #[error("too many filters")]
    TooMany,
}

/// The filters of a subscription, in the order in which they work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filters(Vec<Filter>);

impl FromIterator<Filter> for Filters {
    fn from_iter<I: IntoIterator<Item = Filter>>(filters: I) -> Self {
        Self(filters.into_iter().collect())
    }
}

/// What the filters look at, of one subscriber and one item.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Metadata of the subscriber's connection.
    pub subscriber: &'a Meta,
    /// Metadata of the item.
    pub item: &'a Meta,
    /// The id of the last message of a channel for a connection that is subscribed to it, which may be empty; `None`
    /// for one that is not.
    pub last_id: &'a dyn Fn(&str) -> Option<&'a str>,
}

/// Why a message cannot be rendered for a subscriber, who does not get it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// A `%` without what belongs behind it.
    #[error("incomplete directive")]
    Incomplete,
    /// A directive that the filter does not have, or one that needs an argument without one.
    #[error("unknown directive")]
    Unknown,
    /// A variable, a channel or an id that there is none of.
    #[error("no such variable")]
    NoSuchVariable,
    /// `id_encoding` is another than `hex`.
    #[error("unsupported id_encoding")]
    Encoding,
    /// The message would be longer than [`Limits::rendered_bytes`].
    #[error("message becomes too long")]
    TooLong,
}

impl Filters {
    /// Reads names.
    ///
    /// # Errors
    /// `TooMany`, and `Unknown`, in this order.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>, limits: &Limits) -> Result<Self, FiltersError> {
        let names: Vec<&str> = names.into_iter().take(limits.filters.saturating_add(1)).collect();
        if names.len() > limits.filters {
            return Err(FiltersError::TooMany);
        }
        names
            .into_iter()
            .map(|name| Filter::from_name(name).ok_or(FiltersError::Unknown))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The filters.
    pub fn as_slice(&self) -> &[Filter] {
        &self.0
    }

    /// Whether an item that names `content-filters` is for this subscriber: it has to have the same ones that change
    /// content, in any order.
    pub fn accept(&self, content_filters: Option<&[String]>) -> bool {
        let Some(wanted) = content_filters else { return true };
        let has = |filter: Filter| wanted.iter().any(|name| name == filter.name());
        let own = |filter: &&Filter| filter.changes_content();
        self.0.iter().filter(own).all(|filter| has(*filter))
            && wanted.iter().all(|name| self.0.iter().filter(own).any(|filter| filter.name() == name))
    }

    /// Whether the subscriber gets the message.
    pub fn pass(&self, context: Context<'_>) -> bool {
        let user = context.subscriber.get("user").filter(|user| !user.is_empty());
        self.0.iter().all(|filter| match filter {
            Filter::SkipSelf => user.is_none() || context.item.get("sender") != user,
            Filter::SkipUsers => {
                let skipped = context.item.get("skip_users").unwrap_or_default();
                user.is_none_or(|user| !skipped.split(',').any(|skipped| skipped.trim() == user))
            }
            Filter::RequireSub => {
                let channel = context.item.get("require_sub").filter(|channel| !channel.is_empty());
                channel.is_none_or(|channel| (context.last_id)(channel).is_some())
            }
            Filter::BuildId | Filter::VarSubst => true,
        })
    }

    /// What the subscriber reads: `content` itself where nothing is changed.
    ///
    /// One pass for each filter that changes content. A directive is `%` and a letter, or `%(argument)` and a letter, in
    /// whose argument `\` stands in front of any byte; `%%` is a percent sign.
    ///
    /// # Errors
    /// [`RenderError`]: this subscriber does not get the message.
    pub fn render<'c>(
        &self,
        content: &'c [u8],
        context: Context<'_>,
        limits: &Limits,
    ) -> Result<Cow<'c, [u8]>, RenderError> {
        let most = limits.rendered_bytes;
        let mut content = Cow::Borrowed(content);
        for filter in &self.0 {
            let rendered = match filter {
                Filter::BuildId => build_id(&content, context, most)?,
                Filter::VarSubst => {
                    substitute(&content, most, &mut |out, letter, argument| match (letter, argument) {
                        (b's', Some(name)) => {
                            let name = std::str::from_utf8(&name).map_err(|_| RenderError::NoSuchVariable)?;
                            let value = context.subscriber.get(name).ok_or(RenderError::NoSuchVariable)?;
                            out.extend_from_slice(value.as_bytes());
                            Ok(())
                        }
                        _ => Err(RenderError::Unknown),
                    })?
                }
                _ => None,
            };
            if let Some(rendered) = rendered {
                content = Cow::Owned(rendered);
            }
        }
        Ok(content)
    }
}

fn build_id(content: &[u8], context: Context<'_>, most: usize) -> Result<Option<Vec<u8>>, RenderError> {
    let hex = match context.subscriber.get("id_encoding") {
        None => false,
        Some("hex") => true,
        Some(_) => return Err(RenderError::Encoding),
    };
    let format = context.subscriber.get("id_format").ok_or(RenderError::NoSuchVariable)?;
    // Made once, and only when a message asks for it.
    let mut default = None;
    substitute(content, most, &mut |out, letter, argument| {
        if letter != b'I' {
            return Err(RenderError::Unknown);
        }
        let id = match (&argument, &default) {
            (Some(id), _) | (None, Some(id)) => id,
            (None, None) => default.insert(default_id(format, context, most)?),
        };
        if hex {
            let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0') as u8;
            out.extend(id.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
        } else {
            out.extend_from_slice(id);
        }
        Ok(())
    })
}

fn default_id(format: &str, context: Context<'_>, most: usize) -> Result<Vec<u8>, RenderError> {
    let id = substitute(format.as_bytes(), most, &mut |out, letter, argument| match (letter, argument) {
        (b's', Some(channel)) => {
            let channel = std::str::from_utf8(&channel).map_err(|_| RenderError::NoSuchVariable)?;
            let id = (context.last_id)(channel).ok_or(RenderError::NoSuchVariable)?;
            out.extend_from_slice(id.as_bytes());
            Ok(())
        }
        _ => Err(RenderError::Unknown),
    })?;
    Ok(id.unwrap_or_else(|| format.as_bytes().to_vec()))
}

/// Appends what stands for a directive: its letter and its argument.
type Directive<'a> = dyn FnMut(&mut Vec<u8>, u8, Option<Vec<u8>>) -> Result<(), RenderError> + 'a;

/// Puts what `directive` says in the place of each directive. `None` when there is none.
fn substitute(text: &[u8], most: usize, directive: &mut Directive<'_>) -> Result<Option<Vec<u8>>, RenderError> {
    if !text.contains(&b'%') {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(text.len().min(most));
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut letter = bytes.next().ok_or(RenderError::Incomplete)?;
            let mut argument = None;
            if letter == b'(' {
                argument = Some(self::argument(&mut bytes)?);
                letter = bytes.next().ok_or(RenderError::Incomplete)?;
            }
            match (letter, &argument) {
                (b'%', None) => out.push(b'%'),
                _ => directive(&mut out, letter, argument)?,
            }
        } else {
            out.push(byte);
        }
        if out.len() > most {
            return Err(RenderError::TooLong);
        }
    }
    Ok(Some(out))
}

/// What stands up to the closing parenthesis.
fn argument(bytes: &mut impl Iterator<Item = u8>) -> Result<Vec<u8>, RenderError> {
    let mut argument = Vec::new();
    loop {
        match bytes.next().ok_or(RenderError::Incomplete)? {
            b')' => return Ok(argument),
            b'\\' => argument.push(bytes.next().ok_or(RenderError::Incomplete)?),
            byte => argument.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn meta(entries: &[(&str, &str)]) -> Meta {
        let mut meta = Meta::default();
        for (name, value) in entries {
            meta.set(name, value, &Limits::default()).unwrap();
        }
        meta
    }

    fn filters(names: &[&str]) -> Filters {
        Filters::from_names(names.iter().copied(), &Limits::default()).unwrap()
    }

    fn passes(filter: &str, subscriber: &[(&str, &str)], item: &[(&str, &str)]) -> bool {
        let (subscriber, item) = (meta(subscriber), meta(item));
        let last_id = |channel: &str| (channel == "subscribed").then_some("");
        filters(&[filter]).pass(Context { subscriber: &subscriber, item: &item, last_id: &last_id })
    }

    fn rendered(names: &[&str], subscriber: &[(&str, &str)], content: &str) -> Result<String, RenderError> {
        let (subscriber, item) = (meta(subscriber), Meta::default());
        let last_id = |channel: &str| match channel {
            "a" => Some("1"),
            "b)" => Some("2"),
            _ => None,
        };
        let context = Context { subscriber: &subscriber, item: &item, last_id: &last_id };
        let limits = Limits { rendered_bytes: 64, ..Limits::default() };
        filters(names)
            .render(content.as_bytes(), context, &limits)
            .map(|content| String::from_utf8(content.into_owned()).unwrap())
    }

    #[test]
    fn names_are_known_bounded_and_keep_their_order() {
        assert!(Filter::ALL.iter().all(|filter| Filter::from_name(filter.name()) == Some(*filter)));
        let limits = Limits::default();
        assert_eq!(Filters::from_names(["skip-self", "http-check"], &limits), Err(FiltersError::Unknown));
        assert_eq!(Filters::from_names(["x"; 6], &limits), Err(FiltersError::TooMany));
        assert_eq!(filters(&["var-subst", "skip-self"]).as_slice(), [Filter::VarSubst, Filter::SkipSelf]);
    }

    #[test]
    fn senders_skipped_users_and_strangers_get_nothing() {
        let user = [("user", "u1")];
        for (filter, subscriber, item, expected) in [
            ("skip-self", &user[..], &[("sender", "u1")][..], false),
            ("skip-self", &user, &[("sender", "u2")], true),
            ("skip-self", &user, &[], true),
            ("skip-self", &[], &[("sender", "u1")], true),
            ("skip-self", &[("user", "")], &[("sender", "")], true),
            ("skip-users", &user, &[("skip_users", "u0, u1 ,u2")], false),
            ("skip-users", &user, &[("skip_users", "u11,1")], true),
            ("skip-users", &[("user", "")], &[("skip_users", ",")], true),
            ("skip-users", &[], &[("skip_users", "u1")], true),
            ("require-sub", &[], &[("require_sub", "subscribed")], true),
            ("require-sub", &[], &[("require_sub", "other")], false),
            ("require-sub", &[], &[("require_sub", "")], true),
            ("require-sub", &[], &[], true),
            ("var-subst", &user, &[("sender", "u1")], true),
        ] {
            assert_eq!(passes(filter, subscriber, item), expected, "{filter} {subscriber:?} {item:?}");
        }
    }

    #[test]
    fn variables_are_put_in() {
        let vars = [("user", "u1"), ("a)b", "x"), ("empty", "")];
        let read = |content: &str| rendered(&["var-subst"], &vars, content);
        for (content, expected) in [
            ("no directive", "no directive"),
            ("hello %(user)s, 100%%", "hello u1, 100%"),
            (r"%(a\)b)s%(empty)s.", "x."),
        ] {
            assert_eq!(read(content).as_deref(), Ok(expected), "{content}");
        }
        for (content, error) in [
            ("%", RenderError::Incomplete),
            ("%(user", RenderError::Incomplete),
            ("%(user)", RenderError::Incomplete),
            ("%(user\\", RenderError::Incomplete),
            ("%s", RenderError::Unknown),
            ("%(user)d", RenderError::Unknown),
            ("%(user)%", RenderError::Unknown),
            ("%(none)s", RenderError::NoSuchVariable),
            (&"%(user)s".repeat(40), RenderError::TooLong),
        ] {
            assert_eq!(read(content), Err(error), "{content}");
        }
    }

    #[test]
    fn ids_are_built_from_the_last_ones() {
        let format = [("id_format", r"%(a)s-%(b\))s")];
        let hex = [format[0], ("id_encoding", "hex")];
        assert_eq!(rendered(&["build-id"], &format, "id: %I %%").as_deref(), Ok("id: 1-2 %"));
        assert_eq!(rendered(&["build-id"], &format, "id: %(x)I").as_deref(), Ok("id: x"));
        assert_eq!(rendered(&["build-id"], &hex, "%I %(\u{ff})I").as_deref(), Ok("312d32 c3bf"));
        assert_eq!(rendered(&["build-id"], &[("id_format", "plain")], "%I").as_deref(), Ok("plain"));
        assert_eq!(rendered(&["build-id"], &[("id_format", "%(c)s")], "%I"), Err(RenderError::NoSuchVariable));
        assert_eq!(rendered(&["build-id"], &[("id_format", "%(c)s")], "none").as_deref(), Ok("none"));
        assert_eq!(rendered(&["build-id"], &[], "%I"), Err(RenderError::NoSuchVariable));
        assert_eq!(rendered(&["build-id"], &format, "%s"), Err(RenderError::Unknown));
        let other = [format[0], ("id_encoding", "base64")];
        assert_eq!(rendered(&["build-id"], &other, "%I"), Err(RenderError::Encoding));
        // The one works on what the other leaves.
        let both = [format[0], ("user", "u")];
        assert_eq!(rendered(&["build-id", "var-subst"], &both, "%I %%(user)s").as_deref(), Ok("1-2 u"));
    }

    #[test]
    fn content_filters_have_to_be_the_same() {
        let wanted = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let both = filters(&["skip-self", "build-id", "var-subst"]);
        assert!(both.accept(None));
        assert!(both.accept(Some(&wanted(&["var-subst", "build-id"]))));
        assert!(!both.accept(Some(&wanted(&["var-subst"]))));
        assert!(!both.accept(Some(&wanted(&["var-subst", "build-id", "skip-self"]))));
        assert!(filters(&["skip-self"]).accept(Some(&[])));
    }

    proptest! {
        #[test]
        fn an_escaped_text_comes_out_as_it_was(text in "\\PC{0,40}") {
            let escaped = text.replace('%', "%%");
            let limits = Limits::default();
            let empty = Meta::default();
            let context = Context { subscriber: &empty, item: &empty, last_id: &|_| None };
            let read = filters(&["var-subst"]).render(escaped.as_bytes(), context, &limits);
            prop_assert_eq!(read.as_deref(), Ok(text.as_bytes()));
        }
    }
}
