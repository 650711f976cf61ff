//! The arrows of ARCHITECTURE.md point down only.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What each layer may name, itself included.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("model", &["model", "error"]),
    ("edge", &["edge", "model", "error"]),
    ("work", &["work", "edge", "model", "error", "exit"]),
    (
        "command",
        &["command", "work", "edge", "model", "error", "exit", "config", "cli", "telemetry"],
    ),
    ("config", &["config", "error"]),
    ("telemetry", &["telemetry", "error"]),
];

#[test]
fn arrows_point_down_only() {
    let mut upward = Vec::new();
    for (layer, allowed) in ALLOWED {
        for file in rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(layer)) {
            let text = fs::read_to_string(&file).expect("readable source");
            // Tests may borrow what production code may not.
            let production = text.split("#[cfg(test)]").next().unwrap_or_default();
            for named in modules_named(production) {
                if !allowed.contains(&named.as_str()) {
                    upward.push(format!("{} names crate::{named}", file.display()));
                }
            }
        }
    }
    assert!(upward.is_empty(), "{}", upward.join("\n"));
}

#[test]
fn an_upward_arrow_would_be_seen() {
    let text = "use crate::{\n    error::chain,\n    work::{api, proxy},\n};\nlet x = crate::config::Config;";
    assert_eq!(modules_named(text), ["config", "error", "work"]);
}

/// The top-level modules that `text` names through `crate::`.
fn modules_named(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_heads(group)),
            None => found.push(head(rest)),
        }
    }
    found.retain(|name| !name.is_empty());
    found.sort();
    found.dedup();
    found
}

/// The first segment of each path in a `{…}` group, whose opening brace is gone.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0;
    let mut start = true;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && !c.is_whitespace() => {
                heads.push(head(&group[at..]));
                start = false;
            }
            _ => {}
        }
    }
    heads
}

fn head(path: &str) -> String {
    path.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("a source folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if is_production(&path) {
            files.push(path);
        }
    }
    files
}

/// Tests that stand in files of their own may borrow what production code may not.
fn is_production(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".rs") && !name.ends_with("tests.rs")
}
