//! What the documents say of the tests is true.

use std::{collections::BTreeSet, fs, path::Path};

use pgcm::model::finding::OVERRIDABLE;

/// Every line of Rust under `dir`.
fn source(dir: &Path, text: &mut String) {
    let mut entries: Vec<_> =
        fs::read_dir(dir).expect("readable").map(|e| e.expect("one")).collect();
    entries.sort_by_key(fs::DirEntry::path);
    for path in entries.into_iter().map(|entry| entry.path()) {
        if path.is_dir() {
            source(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("readable"));
        }
    }
}

/// What stands between backquotes in the paragraphs that begin with `- Shown by:`.
fn shown_by(section: &str) -> BTreeSet<String> {
    let Some((_, names)) = section.split_once("- Shown by:") else { return BTreeSet::new() };
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Names of checks: what the source finds by a literal name, and what can be overridden.
fn checks(source: &str) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = OVERRIDABLE.iter().map(|&name| name.to_owned()).collect();
    for call in ["Finding::refuse(", "Finding::warn("] {
        for rest in source.split(call).skip(1) {
            let quoted = rest.trim_start().strip_prefix('"').and_then(|name| name.split_once('"'));
            names.extend(quoted.map(|(name, _)| name.to_owned()));
        }
    }
    names
}

#[test]
fn every_check_stands_in_its_document_with_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = String::new();
    source(&root.join("src/work/checks"), &mut found);
    source(&root.join("src/work/failover"), &mut found);
    let mut tests = String::new();
    source(&root.join("tests"), &mut tests);
    let document = fs::read_to_string(root.join("docs/checks.md")).expect("readable");
    let mut told = BTreeSet::new();
    for row in document.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (check, rest) = row.split_once('`').expect("a closing quote");
        told.insert(check.to_owned());
        let starred = rest.starts_with('*');
        assert_eq!(starred, OVERRIDABLE.contains(&check), "whether `{check}` can be overridden");
        let shown_by = rest.rsplit(" | ").next().unwrap_or_default();
        let names: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "`{check}` names no test");
        for name in names {
            assert!(
                tests.contains(&format!("fn {name}(")),
                "`{check}` names `{name}`, which is nowhere"
            );
        }
    }
    assert_eq!(told, checks(&found));
}

#[test]
fn every_scenario_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    source(&root.join("tests"), &mut text);
    source(&root.join("src"), &mut text);
    let document = fs::read_to_string(root.join("docs/scenarios.md")).expect("readable");
    let sections: Vec<_> = document.split("\n### ").skip(1).collect();
    assert!(sections.len() > 10, "{} scenarios", sections.len());
    for section in sections {
        let title = section.lines().next().unwrap_or_default();
        let names = shown_by(section);
        assert!(!names.is_empty(), "`{title}` names no test");
        for name in names {
            let exists = match name.strip_prefix("fault ") {
                Some(fault) => text.contains(&format!("=> \"{fault}\"")),
                None => text.contains(&format!("fn {name}(")),
            };
            assert!(exists, "`{title}` names `{name}`, which is nowhere");
        }
    }
}
