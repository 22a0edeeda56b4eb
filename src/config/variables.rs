//! `${NAME}` and `${NAME:-default}` in values.
//!
//! Replaced inside scalar values after the file was parsed, so a variable can never add a key, and once, so what a
//! variable holds is not looked at again. Keys are left alone. A dollar sign that begins neither `${` nor `$$` stands
//! for itself.

use serde_json::Value;

use super::fault::ConfigFault;
use super::key_path::KeyPath;
use super::yaml::Source;

/// Looks up a variable of the environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces the variables of a file; a value with a fault stays as it is.
pub fn replace(source: &mut Source, environment: Environment<'_>) -> Vec<ConfigFault> {
    let mut tree = std::mem::take(&mut source.tree);
    let mut faults = Vec::new();
    walk(&mut tree, &KeyPath::default(), &mut |path, text| match expand(text, environment) {
        Ok(expanded) => *text = expanded,
        Err((found, allowed)) => faults.push((path.clone(), found, allowed)),
    });
    let faults = faults.into_iter().map(|(path, found, allowed)| {
        path.prune(&mut tree);
        source.fault(&path, found, allowed)
    });
    let faults = faults.collect();
    source.tree = tree;
    faults
}

fn walk(value: &mut Value, path: &KeyPath, act: &mut dyn FnMut(&KeyPath, &mut String)) {
    match value {
        Value::String(text) => act(path, text),
        Value::Array(list) => {
            for (index, item) in list.iter_mut().enumerate() {
                walk(item, &path.index(index), act);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                walk(item, &path.key(key), act);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// # Errors
/// What was found and what is allowed.
fn expand(text: &str, environment: Environment<'_>) -> Result<String, (String, &'static str)> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('{') {
            let Some((variable, after)) = inner.split_once('}') else {
                return Err((format!("{text:?}"), "`${NAME}` with its closing brace, or `$$` for a dollar sign"));
            };
            expanded.push_str(&look_up(variable, environment)?);
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn look_up(variable: &str, environment: Environment<'_>) -> Result<String, (String, &'static str)> {
    let (name, default) = match variable.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (variable, None),
    };
    let is_name = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !is_name {
        let allowed = "`${NAME}` or `${NAME:-default}`, the name of letters, digits and \"_\"";
        return Err((format!("\"${{{variable}}}\""), allowed));
    }
    match (environment(name), default) {
        // As in a shell, `:-` also stands in for a variable that is empty.
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            let found = format!("the environment has no variable {name}");
            Err((found, "a variable that is set, or `${NAME:-default}`"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let environment = |name: &str| match name {
            "PORT" => Some("9001".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${PORT}".to_owned()),
            _ => None,
        };
        expand(text, &environment).map_err(|(found, _)| found)
    }

    #[test]
    fn variables_are_replaced_once_inside_values() {
        for (text, expected) in [
            ("127.0.0.1:${PORT}", "127.0.0.1:9001"),
            ("${NONE:-a b}-${PORT}", "a b-9001"),
            ("${EMPTY:-x}", "x"),
            ("${EMPTY}", ""),
            ("${NONE:-}", ""),
            ("${NESTED}", "${PORT}"),
            ("$$", "$"),
            ("$${PORT}", "${PORT}"),
            ("^v2$", "^v2$"),
            ("$PORT", "$PORT"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_a_fault() {
        for text in ["${NONE}", "${PORT", "${}", "${1A}", "${A B}", "${A:x}"] {
            assert!(expanded(text).is_err(), "{text}");
        }
    }
}
