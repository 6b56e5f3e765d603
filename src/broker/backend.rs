//! Which of the kernel's interfaces the shards run on, and why.

use anyhow::{Result, bail};
use rustmq_config::RuntimeBackend;
use rustmq_sys::runtime::Backend;

/// What runs, and a reason for people.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) backend: Backend,
    pub(super) why: String,
}

/// Chooses the backend; `probe` tells why io_uring cannot be used.
pub(super) fn choose(
    wanted: RuntimeBackend,
    probe: impl FnOnce() -> Result<(), String>,
) -> Result<Choice> {
    let (backend, why) = match (wanted, probe) {
        (RuntimeBackend::Epoll, _) => (Backend::Epoll, "as configured".to_owned()),
        (RuntimeBackend::Uring, probe) => match probe() {
            Ok(()) => (Backend::Uring, "as configured".to_owned()),
            Err(why) => bail!(
                "runtime.backend = uring, and {why}; allow it, or set runtime.backend = auto to \
                 run on epoll where it is not allowed"
            ),
        },
        (RuntimeBackend::Auto, probe) => match probe() {
            Ok(()) => (Backend::Uring, "the kernel allows it".to_owned()),
            Err(why) => (Backend::Epoll, why),
        },
    };
    Ok(Choice { backend, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Result<(), String> {
        Err("io_uring is denied".to_owned())
    }

    #[test]
    fn auto_takes_io_uring_where_it_is_allowed_and_says_why_not_elsewhere() {
        let chosen = choose(RuntimeBackend::Auto, || Ok(())).unwrap();
        assert_eq!(chosen.backend, Backend::Uring);
        let chosen = choose(RuntimeBackend::Auto, denied).unwrap();
        assert_eq!(chosen.backend, Backend::Epoll);
        assert_eq!(chosen.why, "io_uring is denied");
    }

    #[test]
    fn what_is_configured_runs_or_the_start_fails() {
        let unasked = || unreachable!("epoll needs no probe");
        assert_eq!(choose(RuntimeBackend::Epoll, unasked).unwrap().backend, Backend::Epoll);
        assert_eq!(choose(RuntimeBackend::Uring, || Ok(())).unwrap().backend, Backend::Uring);
        let error = choose(RuntimeBackend::Uring, denied).unwrap_err().to_string();
        assert!(error.contains("io_uring is denied") && error.contains("auto"), "{error}");
    }
}
