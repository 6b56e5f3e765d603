//! What is asked of the host, and measured on it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustmq_sys::cpu;
use rustmq_sys::probe::{self, Host, Percentiles, Storage};
use serde_json::json;

/// Durable writes that are measured: a tenth of a second on a fast disk, some seconds on a slow one.
pub(super) const DURABLE_WRITES: usize = 500;

/// Wake-ups that are measured.
const WAKE_UPS: usize = 1000;

/// What is known of the host.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) host: Host,
    pub(super) cores: usize,
    /// The folder that was looked at: that of the data, or the nearest above it that exists.
    pub(super) folder: PathBuf,
    pub(super) storage: Storage,
    /// None where files cannot bypass the page cache, or the measurement failed.
    pub(super) durable_write: Option<Percentiles>,
    /// Flushes that the disk counted during the measured writes.
    pub(super) flushes: Option<u64>,
    pub(super) wake_up: Option<Percentiles>,
    /// The kernel's threads run before a shard that is busy, or why they do not.
    pub(super) gives_way: Result<(), String>,
}

impl Facts {
    /// Asks and measures, with a broker's data in this directory. Leaves nothing behind.
    pub(super) fn gather(data_dir: &Path) -> anyhow::Result<Facts> {
        let folder = existing(data_dir)?;
        let storage =
            probe::storage(&folder).with_context(|| format!("looking at {}", folder.display()))?;
        let flushes = || storage.device.as_ref().and_then(|device| device.flushes());
        let flushes_before = flushes();
        let durable_write = match storage.direct {
            Ok(()) => probe::durable_write(&folder, DURABLE_WRITES).ok(),
            Err(_) => None,
        };
        let flushes = flushes_before.zip(flushes()).map(|(before, after)| after - before);
        Ok(Facts {
            host: probe::host(),
            cores: cpu::available_cores().len(),
            folder,
            storage,
            durable_write,
            flushes,
            wake_up: probe::wake_up(WAKE_UPS).ok(),
            gives_way: cpu::probe_give_way().map_err(|error| error.to_string()),
        })
    }

    /// The numbers, for programs.
    pub(super) fn json(&self) -> serde_json::Value {
        let us = |time: Duration| time.as_nanos() as f64 / 1e3;
        let device = self.storage.device.as_ref();
        json!({
            "kernel": self.host.kernel,
            "cores": self.cores,
            "io_uring": self.host.uring.is_ok(),
            "glommio": self.host.glommio.is_ok(),
            "memlock_bytes": self.host.memlock_bytes,
            "udp_receive_buffer_bytes_max": self.host.receive_buffer_bytes_max,
            "udp_send_buffer_bytes_max": self.host.send_buffer_bytes_max,
            "udp_gso_segments": self.host.gso_segments,
            "udp_gro": self.host.gro,
            "folder": self.folder.display().to_string(),
            "file_system": self.storage.file_system,
            "o_direct": self.storage.direct.is_ok(),
            "free_bytes": self.storage.free_bytes,
            "device": device.map(|device| device.name.clone()),
            "volatile_cache": device.and_then(|device| device.volatile_cache),
            "fua": device.and_then(|device| device.force_unit_access),
            "durable_write_p50_us": self.durable_write.map(|write| us(write.p50)),
            "durable_write_p99_us": self.durable_write.map(|write| us(write.p99)),
            "flushes_counted": self.flushes,
            "wake_up_p50_us": self.wake_up.map(|wake_up| us(wake_up.p50)),
            "wake_up_p99_us": self.wake_up.map(|wake_up| us(wake_up.p99)),
            "time_slices": self.gives_way.is_ok(),
        })
    }
}

/// The folder, or the nearest above it that exists.
fn existing(folder: &Path) -> anyhow::Result<PathBuf> {
    let absolute =
        std::path::absolute(folder).with_context(|| format!("looking at {}", folder.display()))?;
    let found = absolute.ancestors().find(|folder| folder.is_dir());
    Ok(found.unwrap_or_else(|| Path::new("/")).to_owned())
}

/// A host that is as it should be.
#[cfg(test)]
pub(super) fn good() -> Facts {
    let time = |us| Percentiles { p50: Duration::from_micros(us), p99: Duration::from_micros(us) };
    Facts {
        host: Host {
            kernel: Some("6.18.0".to_owned()),
            uring: Ok(()),
            glommio: Ok(()),
            memlock_bytes: Some(u64::MAX),
            may_lock_memory: Some(true),
            receive_buffer_bytes_max: Some(16 << 20),
            send_buffer_bytes_max: Some(16 << 20),
            gso_segments: Some(64),
            gro: Some(true),
        },
        cores: 4,
        folder: PathBuf::from("/data"),
        storage: Storage {
            file_system: "ext4".to_owned(),
            direct: Ok(()),
            free_bytes: 1 << 40,
            device: None,
        },
        durable_write: Some(time(95)),
        flushes: Some(DURABLE_WRITES as u64),
        wake_up: Some(time(5)),
        gives_way: Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_that_does_not_exist_is_judged_by_what_it_would_be_in() {
        assert_eq!(existing(Path::new("/nowhere/at/all")).unwrap(), Path::new("/"));
        assert_eq!(existing(Path::new("/tmp")).unwrap(), Path::new("/tmp"));
    }
}
