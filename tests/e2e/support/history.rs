//! What the clients of a test were told: written down by their threads, judged by the checker.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use rustmq_checker::{Checker, History, Process};

/// Who sends.
pub(crate) const PRODUCER: Process = Process(0);

/// Who reads.
pub(crate) const CONSUMER: Process = Process(1);

/// The history of one topic, in the order in which the test saw it.
#[derive(Clone, Default)]
pub(crate) struct Recorder {
    history: Arc<Mutex<History>>,
}

impl Recorder {
    /// To write something down, or to look something up.
    pub(crate) fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything so far must be free of anomalies; the error names them.
    pub(crate) fn check(&self) -> Result<()> {
        let report = Checker::default().check(&self.lock());
        ensure!(report.is_clean(), "{report}");
        Ok(())
    }
}
