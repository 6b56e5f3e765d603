//! How blocks become durable, and why.

use std::fmt;
use std::io;

use rustmq_config::FlushPlan as Wanted;
use rustmq_sys::runtime::{Backend, FlushPlan};

use super::cores::CorePlan;

/// What every shard does, and a reason for people.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) plan: FlushPlan,
    why: String,
}

/// Chooses for shards on these cores and this runtime. `probe` tells whether the kernel's threads may
/// run before a shard that is busy; see [`rustmq_sys::cpu::probe_give_way`].
pub(super) fn choose(
    wanted: Wanted,
    cores: &CorePlan,
    backend: Backend,
    probe: impl FnOnce() -> io::Result<()>,
) -> Choice {
    let choice = |plan, why: &str| Choice { plan, why: why.to_owned() };
    match (backend, wanted) {
        (Backend::Epoll, _) => choice(FlushPlan::WriteThrough, "the way of epoll"),
        (Backend::Glommio, _) => choice(FlushPlan::WriteFlush, "the way of glommio"),
        (Backend::Uring, Wanted::WriteFlush) => choice(FlushPlan::WriteFlush, "as configured"),
        (Backend::Uring, Wanted::WriteThrough) => choice(FlushPlan::WriteThrough, "as configured"),
        (Backend::Uring, Wanted::Auto) if cores.control.is_none() => {
            choice(FlushPlan::WriteFlush, "shards share their cores")
        }
        (Backend::Uring, Wanted::Auto) => match probe() {
            Ok(()) => choice(FlushPlan::WriteThrough, "each shard has a core of its own"),
            Err(error) => choice(FlushPlan::WriteFlush, &error.to_string()),
        },
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.plan {
            FlushPlan::WriteFlush => "write_flush",
            FlushPlan::WriteThrough => "write_through",
        };
        write!(f, "{what}: {}", self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shards_with_cores_of_their_own_write_through_unasked() {
        let (own, shared) = (CorePlan::new(&[0, 1, 2], 2), CorePlan::new(&[0, 1], 2));
        let plan = |wanted, cores, backend| choose(wanted, cores, backend, || Ok(())).plan;
        assert_eq!(plan(Wanted::Auto, &own, Backend::Uring), FlushPlan::WriteThrough);
        assert_eq!(plan(Wanted::Auto, &shared, Backend::Uring), FlushPlan::WriteFlush);
        for cores in [&own, &shared] {
            assert_eq!(plan(Wanted::WriteThrough, cores, Backend::Uring), FlushPlan::WriteThrough);
            assert_eq!(plan(Wanted::WriteFlush, cores, Backend::Uring), FlushPlan::WriteFlush);
            assert_eq!(plan(Wanted::Auto, cores, Backend::Epoll), FlushPlan::WriteThrough);
            assert_eq!(plan(Wanted::Auto, cores, Backend::Glommio), FlushPlan::WriteFlush);
        }
    }

    #[test]
    fn an_older_kernel_gets_a_flush_of_its_own() {
        let own = CorePlan::new(&[0, 1, 2], 2);
        let old = || Err(io::Error::new(io::ErrorKind::Unsupported, "Linux 6.12 does"));
        let choice = choose(Wanted::Auto, &own, Backend::Uring, old);
        assert_eq!(choice.to_string(), "write_flush: Linux 6.12 does");
    }
}
