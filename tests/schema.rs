//! docs/sluicegate.schema.json: it is what `sluicegate schema` prints, and the shipped files fit it.
//!
//! The file is written by this test, never by hand: `SLUICEGATE_UPDATE=1 cargo test --test schema`.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).expect("the folder");
    entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|of| of == "yaml"))
        .collect()
}

/// The examples as files in a folder that has the certificate that one of them names, and the rules beside it.
fn examples_in(folder: &Path) -> Vec<PathBuf> {
    std::os::unix::fs::symlink(root().join("rules"), folder.join("rules")).expect("a link");
    let folder = folder.join("examples");
    for name in ["tls", "ticker"] {
        std::fs::create_dir_all(folder.join(name)).expect("a folder");
    }
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["app.example.com".to_owned()]).expect("a certificate");
    std::fs::write(folder.join("tls/app.crt"), cert.pem()).expect("a certificate");
    std::fs::write(folder.join("tls/app.key"), signing_key.serialize_pem()).expect("a key");
    let copied = |path: PathBuf, folder: &Path| {
        let copy = folder.join(path.file_name().expect("a name"));
        std::fs::copy(&path, &copy).expect("it can be copied");
        copy
    };
    let tls = files("examples/tls").into_iter().map(|path| copied(path, &folder.join("tls")));
    let ticker = files("examples/ticker").into_iter().map(|path| copied(path, &folder.join("ticker")));
    files("examples").into_iter().map(|path| copied(path, &folder)).chain(tls).chain(ticker).collect()
}

fn printed(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sluicegate")).args(args).output().expect("the command runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_shipped_schema_is_what_the_command_prints() {
    let path = root().join("docs/sluicegate.schema.json");
    let schema = printed(&["schema"]);
    if std::env::var_os("SLUICEGATE_UPDATE").is_some() {
        std::fs::write(&path, &schema).expect("the file can be written");
    }
    let shipped = std::fs::read_to_string(&path).unwrap_or_default();
    let update = "run SLUICEGATE_UPDATE=1 cargo test --test schema";
    assert!(shipped == schema, "docs/sluicegate.schema.json is not current: {update}");
}

#[test]
fn the_shipped_files_fit_it() {
    let validator = jsonschema::validator_for(&sluicegate::config::schema()).expect("a schema");
    for path in ["examples", "examples/tls", "examples/ticker", "rules"].into_iter().flat_map(files) {
        let text = std::fs::read_to_string(&path).expect("text");
        let value: serde_json::Value = serde_yaml::from_str(&text).expect("YAML");
        let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
    }
    for (text, fits) in [
        ("rules: [{ name: a, upstream: b }]", true),
        ("rules: [{ name: a, respond: { status: 503 } }]", true),
        ("rules: [{ name: a }]", false),
        ("rules: [{ name: a, upstream: b, respond: { status: 503 } }]", false),
        ("rules: [{ name: a, upstream: b, redirect: {} }]", false),
        ("rules: [{ name: a, upstream: b, keepalive: { timeot: 1s } }]", false),
    ] {
        let value: serde_json::Value = serde_yaml::from_str(text).expect("YAML");
        assert_eq!(validator.is_valid(&value), fits, "{text}");
    }
}

#[test]
fn what_config_prints_is_a_file_that_check_accepts() {
    let folder = tempfile::tempdir().expect("a folder");
    for path in examples_in(folder.path()) {
        let printed_first = printed(&["config", "-c", &path.display().to_string()]);
        let copy = folder.path().join("effective.yaml").display().to_string();
        std::fs::write(&copy, &printed_first).expect("written");
        assert!(printed(&["check", "-c", &copy]).contains("sound"), "{}", path.display());
        assert_eq!(printed(&["config", "-c", &copy]), printed_first);
    }
}
