//! Every ordering of the ring and of the doorbell is needed: each is made weaker in turn, and some
//! scenario has to fail.
//!
//! The places are found in the source, so a new one is tried without being listed. What may be
//! weaker without harm is not written stronger; if it has to be, [`NOT_NEEDED`] says why.

use std::collections::BTreeSet;
use std::process::Command;

const SOURCES: &[(&str, &str)] = &[
    ("channel.rs", include_str!("../../../sys/src/channel.rs")),
    ("doorbell.rs", include_str!("../../../sys/src/doorbell.rs")),
];

/// Weakenings that no scenario can notice, with the reason: file, what the line contains, what it
/// becomes.
const NOT_NEEDED: &[(&str, &str, &str)] = &[];

/// Preemptions tried first: most of what is wrong shows with few, in a tenth of the time.
const PREEMPTIONS_FIRST: &str = "2";

/// Scenarios that say nothing when they fail, or that do not run, must not count as a catch.
const CAUGHT: &[&str] = &["Causality violation", "deadlock", "assertion", "Model exceeded"];

#[derive(Debug)]
struct Weakening {
    file: &'static str,
    line: usize,
    text: &'static str,
    to: &'static str,
}

#[test]
fn weakened_orderings_are_caught() {
    let mut wrong = Vec::new();
    let mut tried = 0;
    let mut unused: BTreeSet<_> = NOT_NEEDED.iter().collect();
    for weakening in weakenings() {
        tried += 1;
        let listed = NOT_NEEDED.iter().find(|(file, text, to)| {
            weakening.file == *file && weakening.text.contains(text) && weakening.to == *to
        });
        let outcome = try_out(&weakening);
        println!("{}:{} {} {outcome:?}", weakening.file, weakening.line, weakening.to);
        match (outcome, listed) {
            (Outcome::Caught, None) => {}
            (Outcome::Survived, Some(listed)) => drop(unused.remove(listed)),
            (outcome, listed) => {
                wrong.push(format!("{outcome:?}, listed as not needed: {listed:?}, {weakening:?}"));
            }
        }
    }
    wrong.extend(unused.iter().map(|listed| format!("nothing is weakened by {listed:?}")));
    assert!(wrong.is_empty(), "\n  {}\n", wrong.join("\n  "));
    assert!(WEAKENINGS_MIN <= tried, "only {tried} weakenings were found in the sources");
}

/// Fewer would mean that the sources were not read as they are written.
const WEAKENINGS_MIN: usize = 12;

/// Every ordering outside of the tests, with all that is one step weaker.
fn weakenings() -> Vec<Weakening> {
    let mut found = Vec::new();
    for (file, source) in SOURCES {
        let (code, _tests) =
            source.split_once("\n#[cfg(all(test, not(loom)))]\n").expect("tests stand last");
        for (index, text) in code.lines().enumerate() {
            let code = text.split("//").next().unwrap_or_default();
            let mut orderings = code.split("Ordering::").skip(1);
            let Some(ordering) = orderings.next() else { continue };
            assert!(orderings.next().is_none(), "one ordering in a line: {file}: {text}");
            let weaker: &[&str] = match ordering.split(|c: char| !c.is_alphanumeric()).next() {
                Some("SeqCst") if code.contains("fence(") => &["AcqRel", "None"],
                Some("SeqCst") => &["AcqRel"],
                Some("AcqRel") if code.contains("fence(") => &["Acquire", "Release"],
                Some("AcqRel") => &["Acquire", "Release"],
                Some("Acquire" | "Release") if code.contains("fence(") => &["None"],
                Some("Acquire" | "Release") => &["Relaxed"],
                Some("Relaxed") => &[],
                other => panic!("{file}: {other:?} is no ordering"),
            };
            let one = |to: &&'static str| Weakening { file, line: index + 1, text, to };
            found.extend(weaker.iter().map(one));
        }
    }
    found
}

#[derive(Debug, PartialEq)]
enum Outcome {
    /// A scenario failed.
    Caught,
    /// All scenarios pass, and some of them pass the place.
    Survived,
    /// No scenario comes there.
    NotReached,
    /// The scenarios did not run as they should.
    Broken(String),
}

/// Runs the scenarios again, in a process of their own.
fn try_out(weakening: &Weakening) -> Outcome {
    match scenarios(weakening, Some(PREEMPTIONS_FIRST)) {
        Outcome::Survived => scenarios(weakening, None),
        outcome => outcome,
    }
}

fn scenarios(weakening: &Weakening, preemptions: Option<&str>) -> Outcome {
    let Weakening { file, line, to, .. } = weakening;
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["--skip", "weakened", "--nocapture"]);
    command.env("RUSTMQ_WEAKEN", format!("{file}:{line}={to}"));
    if let Some(preemptions) = preemptions {
        command.env("LOOM_MAX_PREEMPTIONS", preemptions);
    }
    let output = command.output().expect("this program runs again");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let reached = said.contains(&format!("weakened {file}:{line}"));
    match (output.status.success(), reached) {
        (true, true) => Outcome::Survived,
        (true, false) => Outcome::NotReached,
        (false, true) if CAUGHT.iter().any(|sign| said.contains(sign)) => Outcome::Caught,
        (false, _) => Outcome::Broken(said.into_owned()),
    }
}
