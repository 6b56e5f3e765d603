//! Rules about the repository itself: who may import whom, what pure code is, how long a file may
//! be, and that the documents speak of what is there.
//!
//! Everything is read from the working tree; nothing is built or started but `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Who may import whom of ours. What is not listed is not allowed; the root package and the benches
/// join everything and are not restricted.
const IMPORTS: &[(&str, &[&str])] = &[
    ("rustmq-planted", &[]),
    ("rustmq-protocol", &[]),
    ("rustmq-wal", &["rustmq-planted", "rustmq-protocol"]),
    ("rustmq-metadata", &["rustmq-protocol"]),
    ("rustmq-engine", &["rustmq-planted", "rustmq-protocol", "rustmq-wal", "rustmq-metadata"]),
    ("rustmq-sys", &[]),
    ("rustmq-config", &[]),
    (
        "rustmq-server",
        &[
            "rustmq-planted",
            "rustmq-protocol",
            "rustmq-wal",
            "rustmq-metadata",
            "rustmq-engine",
            "rustmq-sys",
            "rustmq-config",
        ],
    ),
    ("rustmq-client", &["rustmq-protocol"]),
    ("rustmq-checker", &[]),
    ("rustmq-loom-tests", &["rustmq-sys"]),
    (
        "sim",
        &[
            "rustmq-planted",
            "rustmq-protocol",
            "rustmq-wal",
            "rustmq-sys",
            "rustmq-config",
            "rustmq-server",
            "rustmq-checker",
        ],
    ),
    ("rustmq-fuzz-targets", &["rustmq-protocol", "rustmq-wal", "rustmq-metadata", "rustmq-sys"]),
];

/// Joined by nobody's rule: they may import anything of ours.
const UNRESTRICTED: &[&str] = &["rustmq", "rustmq-benches"];

/// Crates that decide and never act, with their folders.
const PURE: &[(&str, &str)] = &[
    ("rustmq-protocol", "protocol"),
    ("rustmq-wal", "wal"),
    ("rustmq-metadata", "raft/metadata"),
    ("rustmq-engine", "shards/engine"),
    ("rustmq-checker", "checker"),
];

/// The crates of others that pure code may use: none of them does I/O, reads a clock or draws.
const PURE_DEPENDENCIES: &[&str] = &["bytes", "crc32c", "minicbor"];
/// And what its tests may use besides.
const PURE_DEV_DEPENDENCIES: &[&str] = &["proptest"];

/// Crates of others with the only ones of ours that may build on them.
const CONFINED: &[(&str, &[&str])] = &[
    ("anyhow", &["rustmq", "rustmq-benches"]),
    ("clap", &["rustmq", "rustmq-benches"]),
    ("fuser", &[]),
    ("futures-io", &["rustmq-sys"]),
    ("glommio", &["rustmq-sys"]),
    ("io-uring", &["rustmq-sys", "rustmq-benches"]),
    ("libc", &["rustmq-sys", "rustmq-benches"]),
    ("openraft", &[]),
    ("quinn", &["rustmq-client", "rustmq-benches"]),
    ("quinn-proto", &["rustmq-server", "rustmq-benches", "sim"]),
    ("quinn-udp", &["rustmq-sys", "rustmq-benches"]),
    ("rand", &[]),
    ("socket2", &["rustmq-sys", "rustmq-client", "rustmq-benches"]),
    ("tokio", &["rustmq", "rustmq-client", "rustmq-benches"]),
];

/// Words that pure code has no use for.
const IMPURE_WORDS: &[&str] = &["async", "await", "unsafe"];
const IMPURE_PATHS: &[&str] = &["std::time", "std::thread", "std::fs", "std::net", "std::env"];

/// Past it a file tells more than one thing.
const FILE_LINES_MAX: usize = 1000;
/// Produce is read from top to bottom, whole, by everybody who works here.
const PRODUCE_LINES_MAX: usize = 200;

/// Places outside the repository. Written in pieces, so that this file does not name them.
const FORBIDDEN: &[&str] =
    &[concat!("/wor", "k/"), concat!("/tm", "p/bash"), concat!("shared/", "research")];

const ARCHITECTURE: &str = "docs/ARCHITECTURE.md";

#[test]
fn crates_import_only_whom_the_table_allows() {
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let table: BTreeMap<&str, &[&str]> = IMPORTS.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in &packages {
        if UNRESTRICTED.contains(&package.name.as_str()) {
            continue;
        }
        let Some(allowed) = table.get(package.name.as_str()) else {
            wrong.push(format!("{} is not in the table of imports", package.name));
            continue;
        };
        for import in package.imports.iter().filter(|import| ours.contains(import.as_str())) {
            if !allowed.contains(&import.as_str()) {
                wrong.push(format!("{} imports {import}", package.name));
            }
        }
    }
    for name in table.keys().filter(|name| !ours.contains(*name)) {
        wrong.push(format!("{name} is in the table of imports and not in the workspace"));
    }
    assert_none(&wrong);
}

#[test]
fn pure_crates_use_no_crate_that_acts() {
    let packages = packages();
    let mut wrong = Vec::new();
    for (name, _) in PURE {
        let package = packages.iter().find(|package| package.name == *name);
        let package = package.unwrap_or_else(|| panic!("{name} is not in the workspace"));
        let foreign = |import: &&String| !import.starts_with("rustmq-");
        for import in package.imports.iter().filter(foreign) {
            if !PURE_DEPENDENCIES.contains(&import.as_str()) {
                wrong.push(format!("{name} uses {import}"));
            }
        }
        for import in package.dev_imports.iter().filter(foreign) {
            if !PURE_DEPENDENCIES.contains(&import.as_str())
                && !PURE_DEV_DEPENDENCIES.contains(&import.as_str())
            {
                wrong.push(format!("the tests of {name} use {import}"));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn crates_that_act_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for package in packages() {
        for (foreign, users) in CONFINED {
            if package.imports.contains(*foreign) && !users.contains(&package.name.as_str()) {
                wrong.push(format!("{} uses {foreign}", package.name));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn pure_code_has_no_clock_no_files_and_never_waits() {
    let mut wrong = Vec::new();
    for (_, folder) in PURE {
        for file in files_under(&root().join(folder).join("src"), "rs") {
            for (number, line) in code_of(&read(&file)).lines().enumerate() {
                let found = IMPURE_WORDS.iter().find(|word| has_word(line, word));
                let found = found.or_else(|| IMPURE_PATHS.iter().find(|path| line.contains(*path)));
                if let Some(found) = found {
                    wrong.push(format!("{}:{}: {found}", shown(&file), number + 1));
                }
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn unsafe_is_written_in_sys_alone() {
    let mut wrong = Vec::new();
    for file in files_under(&root(), "rs") {
        let name = shown(&file);
        // What a test needs to bring a process into a bad place stands apart, with its reason.
        if name.starts_with("sys/") || name.starts_with("tests/e2e/support/") {
            continue;
        }
        for (number, line) in code_of(&read(&file)).lines().enumerate() {
            if has_word(line, "unsafe") {
                wrong.push(format!("{name}:{}", number + 1));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn every_crate_says_what_it_is_and_keeps_the_workspace_lints() {
    let mut wrong = Vec::new();
    for package in packages() {
        let folder = package.manifest.parent().expect("a manifest lies in a folder");
        let sources = [folder.join("src/lib.rs"), folder.join("src/main.rs")];
        for source in sources.iter().filter(|source| source.exists()) {
            if !read(source).starts_with("//! ") {
                wrong.push(format!("{} does not begin with a doc comment", shown(source)));
            }
        }
        if !read(&package.manifest).contains("[lints]\nworkspace = true\n") {
            wrong.push(format!("{} does not take the workspace's lints", package.name));
        }
    }
    assert_none(&wrong);
}

#[test]
fn no_file_is_too_long() {
    let mut wrong = Vec::new();
    for extension in ["rs", "md", "toml"] {
        for file in files_under(&root(), extension) {
            let lines = read(&file).lines().count();
            if FILE_LINES_MAX < lines {
                wrong.push(format!("{}: {lines} lines, of {FILE_LINES_MAX}", shown(&file)));
            }
        }
    }
    let produce = "shards/server/src/produce.rs";
    let lines = read(&root().join(produce)).lines().count();
    if PRODUCE_LINES_MAX <= lines {
        wrong.push(format!("{produce}: {lines} lines, of fewer than {PRODUCE_LINES_MAX}"));
    }
    assert_none(&wrong);
}

#[test]
fn nothing_names_a_place_outside_the_repository() {
    let mut wrong = Vec::new();
    for file in all_files(&root()) {
        let Ok(text) = String::from_utf8(fs::read(&file).expect("listed a moment ago")) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            for word in FORBIDDEN.iter().filter(|word| line.contains(**word)) {
                wrong.push(format!("{}:{}: {word}", shown(&file), number + 1));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let mut wrong = Vec::new();
    for file in files_under(&root(), "md") {
        for target in links(&read(&file)) {
            let path = target.split('#').next().expect("split gives at least one part");
            let folder = file.parent().expect("a file lies in a folder");
            if !path.is_empty() && !folder.join(path).exists() {
                wrong.push(format!("{}: {target}", shown(&file)));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn the_architecture_names_what_is_there() {
    let text = read(&root().join(ARCHITECTURE));
    let packages = packages();
    let mut wrong = Vec::new();
    for span in code_spans(&text) {
        let is_file = [".rs", ".md", ".toml"].iter().any(|end| span.ends_with(end));
        if is_path(span) && (span.contains('/') || is_file) {
            if !root().join(span).exists() {
                wrong.push(format!("{span} does not exist"));
            }
        } else if span.starts_with("rustmq-")
            && !packages.iter().any(|package| package.name == span)
        {
            wrong.push(format!("{span} is no crate of the workspace"));
        }
    }
    for package in packages.iter().filter(|package| package.name != "rustmq") {
        let folder = shown(package.manifest.parent().expect("a manifest lies in a folder"));
        if !text.contains(&format!("`{folder}/`")) {
            wrong.push(format!("the crate in {folder}/ is not named"));
        }
    }
    for file in files_under(&root().join("docs/adr"), "md") {
        let name = file.file_name().expect("a file has a name").to_string_lossy();
        if !text.contains(&format!("(adr/{name})")) {
            wrong.push(format!("docs/adr/{name} is not linked"));
        }
    }
    assert_none(&wrong);
}

#[test]
fn the_path_of_a_record_goes_through_ten_files() {
    let text = read(&root().join(ARCHITECTURE));
    let (_, section) =
        text.split_once("\n## The path of a record\n").expect("the section is there");
    let section = section.split("\n## ").next().expect("split gives at least one part");
    let rows: Vec<&str> =
        section.lines().filter(|line| line.starts_with("| ") && line.contains(".rs`")).collect();
    assert_eq!(rows.len(), 10, "{rows:#?}");
}

#[test]
fn every_error_code_is_in_the_wire_document() {
    let source = read(&root().join("protocol/src/error_code.rs"));
    let document = read(&root().join("docs/formats/wire.md"));
    // A declaration: `65 FencedLeaderEpoch "FENCED_LEADER_EPOCH" retry definite`.
    let declared = source.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next()?.parse::<u16>().ok()?;
        words.nth(1)?.strip_prefix('"')?.strip_suffix('"')
    });
    let declared: Vec<&str> = declared.collect();
    assert!(declared.contains(&"OK") && declared.contains(&"INTERNAL"), "the list was not found");
    let missing: Vec<String> = declared
        .iter()
        .filter(|name| !document.contains(&format!("`{name}`")))
        .map(|name| format!("{name} is not in docs/formats/wire.md"))
        .collect();
    assert_none(&missing);
}

#[test]
fn every_metric_is_in_the_document_of_metrics() {
    let document = root().join("docs/operations/metrics.md");
    let Ok(document) = fs::read_to_string(document) else { return };
    let mut wrong = Vec::new();
    let sources = files_under(&root().join("src/broker"), "rs");
    for file in sources.iter().filter(|file| !file.ends_with("tests.rs")) {
        for name in metric_names(&read(file)) {
            if !document.contains(&format!("`{name}`")) {
                wrong.push(format!("{}: {name}", shown(file)));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn comments_and_texts_are_told_from_code() {
    let source = "a/*b/*c*/d*/e \"f\\\"g\" 'h' &'i r#\"j\"k\"# b'\\'' l// m\nn";
    let code: String = code_of(source).split_whitespace().collect();
    assert_eq!(code, "ae&'ibln");
    assert_eq!(code_of(source).lines().count(), 2, "lines stay where they are");
}

/// A package of the workspace, and what its manifest imports.
struct Package {
    name: String,
    manifest: PathBuf,
    imports: BTreeSet<String>,
    dev_imports: BTreeSet<String>,
}

fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("cargo lists packages");
    packages.iter().map(Package::read).collect()
}

impl Package {
    fn read(package: &Value) -> Self {
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let dependencies = package["dependencies"].as_array().expect("a list");
        let of_kind = |dev: bool| {
            let chosen = dependencies.iter().filter(|one| (one["kind"] == "dev") == dev);
            chosen.map(|one| text(&one["name"])).collect()
        };
        Self {
            name: text(&package["name"]),
            manifest: PathBuf::from(text(&package["manifest_path"])),
            imports: of_kind(false),
            dev_imports: of_kind(true),
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A path as people write it: from the root of the repository.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}

/// All files of the repository below `folder`, but for what git ignores and keeps for itself.
fn all_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", shown(folder))) {
        let entry = entry.expect("the folder is readable");
        let name = entry.file_name();
        let ignored = ["target", ".git", "rustmq-data"].iter().any(|ignored| name == *ignored);
        match entry.file_type().expect("just listed") {
            _ if ignored => {}
            kind if kind.is_dir() => found.extend(all_files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found.sort();
    found
}

fn files_under(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = all_files(folder);
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n  {}\n", wrong.join("\n  "));
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !is_word(c)).any(|found| found == word)
}

/// The code alone: comments, texts and characters are blanked, lines stay where they are.
fn code_of(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < source.len() {
        let skipped = skipped_bytes(&source[at..], source[..at].chars().next_back());
        if skipped == 0 {
            let next = source[at..].chars().next().expect("not at the end");
            code.push(next);
            at += next.len_utf8();
        } else {
            let newlines = source[at..at + skipped].matches('\n').count();
            code.push(' ');
            code.extend(std::iter::repeat_n('\n', newlines));
            at += skipped;
        }
    }
    code
}

/// The length of the comment, text or character that `rest` begins with; 0 if it begins with code.
fn skipped_bytes(rest: &str, before: Option<char>) -> usize {
    let end_of = |from: usize, end: &str| {
        rest[from..].find(end).map_or(rest.len(), |found| from + found + end.len())
    };
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_bytes(rest);
    }
    if let Some(text) = rest.strip_prefix('"') {
        return 1 + escaped_bytes(text, b'"');
    }
    if let Some(text) = rest.strip_prefix('\'') {
        let is_char = rest.starts_with("'\\") || rest.chars().nth(2) == Some('\'');
        return if is_char { 1 + escaped_bytes(text, b'\'') } else { 0 };
    }
    if rest.starts_with('r') && !before.is_some_and(|c| is_word(c) && c != 'b') {
        let hashes = rest[1..].bytes().take_while(|byte| *byte == b'#').count();
        if rest[1 + hashes..].starts_with('"') {
            return end_of(2 + hashes, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    0
}

fn block_comment_bytes(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match rest.as_bytes().get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") if depth == 1 => return at + 2,
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn escaped_bytes(rest: &str, end: u8) -> usize {
    let mut bytes = rest.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            _ if byte == end => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Targets of Markdown links that stay in the repository, outside of code.
fn links(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for line in outside_of_fences(text) {
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().expect("split gives at least one part");
            if !target.contains("://") && !target.starts_with("mailto:") {
                found.push(target);
            }
        }
    }
    found
}

/// What stands between backticks.
fn code_spans(text: &str) -> Vec<&str> {
    outside_of_fences(text).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

fn outside_of_fences(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

fn is_path(span: &str) -> bool {
    span.chars().all(|c| is_word(c) || "./-".contains(c))
}

/// Literals that begin with `rustmq_`, as far as they are a name.
fn metric_names(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    for part in source.split("\"rustmq_").skip(1) {
        let name: String = part.chars().take_while(|c| is_word(*c)).collect();
        if !name.is_empty() {
            names.push(format!("rustmq_{name}"));
        }
    }
    names
}
