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

/// Chooses the backend; `probe` tells why one cannot be used.
pub(super) fn choose(
    wanted: RuntimeBackend,
    probe: impl FnOnce(Backend) -> Result<(), String>,
) -> Result<Choice> {
    let (backend, why) = match wanted {
        RuntimeBackend::Epoll => (Backend::Epoll, "as configured".to_owned()),
        RuntimeBackend::Uring => match probe(Backend::Uring) {
            Ok(()) => (Backend::Uring, "as configured".to_owned()),
            Err(why) => bail!(
                "runtime.backend = uring, and {why}; allow it, or set runtime.backend = auto to \
                 run on epoll where it is not allowed"
            ),
        },
        RuntimeBackend::Glommio => match probe(Backend::Glommio) {
            Ok(()) => (Backend::Glommio, "as configured".to_owned()),
            Err(why) => bail!(
                "runtime.backend = glommio, and {why}; or set runtime.backend = auto, which does \
                 without it"
            ),
        },
        RuntimeBackend::Auto => match probe(Backend::Uring) {
            Ok(()) => (Backend::Uring, "the kernel allows it".to_owned()),
            Err(why) => (Backend::Epoll, why),
        },
    };
    Ok(Choice { backend, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(_: Backend) -> Result<(), String> {
        Ok(())
    }

    fn denied(_: Backend) -> Result<(), String> {
        Err("io_uring is denied".to_owned())
    }

    #[test]
    fn auto_takes_io_uring_where_it_is_allowed_and_says_why_not_elsewhere() {
        let chosen = choose(RuntimeBackend::Auto, allowed).unwrap();
        assert_eq!(chosen.backend, Backend::Uring);
        let chosen = choose(RuntimeBackend::Auto, denied).unwrap();
        assert_eq!(chosen.backend, Backend::Epoll);
        assert_eq!(chosen.why, "io_uring is denied");
    }

    #[test]
    fn what_is_configured_runs_or_the_start_fails() {
        let unasked = |_| unreachable!("epoll needs no probe");
        assert_eq!(choose(RuntimeBackend::Epoll, unasked).unwrap().backend, Backend::Epoll);
        let configured =
            [(RuntimeBackend::Uring, Backend::Uring), (RuntimeBackend::Glommio, Backend::Glommio)];
        for (wanted, backend) in configured {
            assert_eq!(choose(wanted, allowed).unwrap().backend, backend);
            let error = choose(wanted, denied).unwrap_err().to_string();
            assert!(error.contains("io_uring is denied") && error.contains("auto"), "{error}");
        }
    }

    #[test]
    #[cfg(not(feature = "glommio"))]
    fn glommio_has_to_be_built_in() {
        let error = choose(RuntimeBackend::Glommio, rustmq_sys::runtime::probe).unwrap_err();
        assert!(error.to_string().contains("--features glommio"), "{error}");
    }
}
