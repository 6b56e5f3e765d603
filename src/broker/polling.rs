//! What a shard does when it has nothing to do, and why.

use std::fmt;

use anyhow::{Result, bail};
use rustmq_config::Poll;
use rustmq_sys::runtime::Polling;

use super::cores::CorePlan;

/// What every shard does, and a reason for people.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) polling: Polling,
    pub(super) why: &'static str,
}

/// Chooses for shards on these cores. Whoever looks for news instead of sleeping takes the core from
/// others, and from the kernel's own threads that do the flushes.
pub(super) fn choose(wanted: Poll, plan: &CorePlan) -> Result<Choice> {
    let owns_cores = plan.control.is_some();
    let (polling, why) = match wanted {
        Poll::Sleep => (Polling::Sleep, "as configured"),
        Poll::Busy if owns_cores => {
            (Polling::Busy, "as configured: every shard's core is at full load")
        }
        Poll::Busy => bail!(
            "runtime.poll = busy, and there is no core for each shard and one more for the control \
             thread: run fewer shards (broker.shards), or set runtime.poll = adaptive, which sleeps \
             where cores are shared"
        ),
        Poll::Adaptive if owns_cores => (Polling::Adaptive, "each shard has a core of its own"),
        Poll::Adaptive => (Polling::Sleep, "shards share their cores"),
    };
    Ok(Choice { polling, why })
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.polling {
            Polling::Sleep => "sleep",
            Polling::Adaptive => "adaptive",
            Polling::Busy => "busy",
        };
        write!(f, "{what}: {}", self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shards_with_cores_of_their_own_look_for_news() {
        let (own, shared) = (CorePlan::new(&[0, 1, 2], 2), CorePlan::new(&[0, 1], 2));
        let polling = |wanted, plan| choose(wanted, plan).map(|choice| choice.polling);
        assert_eq!(polling(Poll::Adaptive, &own).unwrap(), Polling::Adaptive);
        assert_eq!(polling(Poll::Adaptive, &shared).unwrap(), Polling::Sleep);
        assert_eq!(polling(Poll::Busy, &own).unwrap(), Polling::Busy);
        let error = polling(Poll::Busy, &shared).unwrap_err().to_string();
        assert!(error.contains("broker.shards") && error.contains("adaptive"), "{error}");
        for plan in [&own, &shared] {
            assert_eq!(polling(Poll::Sleep, plan).unwrap(), Polling::Sleep);
        }
    }
}
