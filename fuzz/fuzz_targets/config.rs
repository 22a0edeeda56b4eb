//! Main files: faults name the file and a line of it; a sound file, printed, is the same configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::config::{Text, parse};

fuzz_target!(|text: &str| {
    // Files that one names are looked for where there are none, and nothing else is opened.
    if text.contains("_file") && text.contains("/dev") {
        return;
    }
    let read =
        |text| parse(Text { name: "/nowhere/a.yaml", text }, &[], &|name| (name == "A").then(|| "1s".to_owned()));
    match read(text) {
        Ok(loaded) => {
            let printed = loaded.config.effective.yaml();
            let again = read(&printed).unwrap_or_else(|faults| panic!("{printed}\n{faults:#?}"));
            assert_eq!(again.config.effective, loaded.config.effective);
        }
        Err(faults) => {
            assert!(!faults.is_empty());
            // A parser may place what is missing behind the end.
            let lines = text.split(['\n', '\r']).count() + 1;
            assert!(faults.iter().all(|fault| fault.file == "/nowhere/a.yaml" && fault.line <= lines), "{faults:#?}");
        }
    }
});
