//! Loom's atomics, one place of which can be made weaker than the source says: so that a test shows
//! that the scenarios would notice.
//!
//! The environment names the place and what it becomes, `RUSTMQ_WEAKEN=channel.rs:120=Relaxed`; for
//! a fence also `None`, which leaves it out. The first time that the place is passed it says so on
//! stderr. `loom-tests/tests/interleavings/weakened.rs` does this for every place.

use std::io::Write as _;
use std::panic::Location;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool as StdBool, Ordering as StdOrdering};

use loom::sync::atomic::{self, Ordering};

/// One place, weakened.
struct Weakened {
    file: String,
    line: u32,
    /// `None` leaves a fence out.
    ordering: Option<Ordering>,
    passed: StdBool,
}

fn weakened() -> Option<&'static Weakened> {
    static WEAKENED: OnceLock<Option<Weakened>> = OnceLock::new();
    let read = || std::env::var("RUSTMQ_WEAKEN").ok().map(|text| Weakened::read(&text));
    WEAKENED.get_or_init(read).as_ref()
}

impl Weakened {
    fn read(text: &str) -> Self {
        let parts = text.split_once('=').and_then(|(place, ordering)| {
            let (file, line) = place.split_once(':')?;
            Some((file.to_owned(), line.parse().ok()?, ordering))
        });
        let (file, line, ordering) = parts.expect("RUSTMQ_WEAKEN is FILE:LINE=ORDERING");
        let ordering = match ordering {
            "Relaxed" => Some(Ordering::Relaxed),
            "Acquire" => Some(Ordering::Acquire),
            "Release" => Some(Ordering::Release),
            "AcqRel" => Some(Ordering::AcqRel),
            "None" => None,
            other => panic!("{other} is no ordering"),
        };
        Self { file, line, ordering, passed: StdBool::new(false) }
    }
}

/// What the place of the caller is to have instead of `ordering`.
#[track_caller]
fn of(ordering: Ordering) -> Option<Ordering> {
    let place = Location::caller();
    let Some(weakened) = weakened() else { return Some(ordering) };
    if place.line() != weakened.line || !place.file().ends_with(&weakened.file) {
        return Some(ordering);
    }
    if !weakened.passed.swap(true, StdOrdering::Relaxed) {
        // In one write: other threads may be telling of a panic.
        let said = format!("weakened {}:{}\n", weakened.file, weakened.line);
        std::io::stderr().write_all(said.as_bytes()).expect("stderr is open");
    }
    weakened.ordering
}

#[track_caller]
fn of_access(ordering: Ordering) -> Ordering {
    of(ordering).expect("only a fence can be left out")
}

#[derive(Debug)]
pub(crate) struct AtomicUsize(atomic::AtomicUsize);

impl AtomicUsize {
    pub(crate) fn new(value: usize) -> Self {
        Self(atomic::AtomicUsize::new(value))
    }

    #[track_caller]
    pub(crate) fn load(&self, ordering: Ordering) -> usize {
        self.0.load(of_access(ordering))
    }

    #[track_caller]
    pub(crate) fn store(&self, value: usize, ordering: Ordering) {
        self.0.store(value, of_access(ordering));
    }
}

#[derive(Debug)]
pub(crate) struct AtomicBool(atomic::AtomicBool);

impl AtomicBool {
    pub(crate) fn new(value: bool) -> Self {
        Self(atomic::AtomicBool::new(value))
    }

    #[track_caller]
    pub(crate) fn load(&self, ordering: Ordering) -> bool {
        self.0.load(of_access(ordering))
    }

    #[track_caller]
    pub(crate) fn store(&self, value: bool, ordering: Ordering) {
        self.0.store(value, of_access(ordering));
    }

    #[track_caller]
    pub(crate) fn swap(&self, value: bool, ordering: Ordering) -> bool {
        self.0.swap(value, of_access(ordering))
    }
}

#[track_caller]
pub(crate) fn fence(ordering: Ordering) {
    if let Some(ordering) = of(ordering) {
        atomic::fence(ordering);
    }
}
