//! Ports that stay the same over restarts of one broker.
//!
//! A broker that is killed and started again must be found where it was, so it cannot ask for any
//! free port each time. These lie below the range from which the system hands out ports by itself,
//! so that no client's socket takes one while its broker is down.

use std::net::UdpSocket;
use std::sync::Mutex;

use anyhow::{Result, bail};

/// The first port that is given out.
const FIRST: u16 = 10_000;

/// One past the last; the system's own range begins at 32,768.
const END: u16 = 32_000;

/// Ports of one broker beside its first: shard i has 100 + i more.
const SHARD_PORT_OFFSET: u16 = 100;

/// From one broker's port to the next one's: room for this many shards.
const STEP: u16 = 8;

/// The next port to try. Brokers of one block of 100 ports do not meet one another's shards.
static NEXT: Mutex<Option<u16>> = Mutex::new(None);

/// A port for a broker of a few shards, free at this moment and not given to another test.
pub(crate) fn reserve() -> Result<u16> {
    let mut next = NEXT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // Programs that run at the same time begin at different places.
    let begin = FIRST + (std::process::id() % 100) as u16 * 200;
    let mut port = next.unwrap_or(begin);
    for _ in 0..(END - FIRST) / STEP {
        let candidate = port;
        port += STEP;
        // The second hundred belongs to the shards of the first.
        if port % 200 >= 100 {
            port = port - port % 200 + 200;
        }
        if END <= port + 200 {
            port = FIRST;
        }
        let shards = (0..STEP).map(|shard| candidate + SHARD_PORT_OFFSET + shard);
        if shards.chain([candidate]).all(is_free) {
            *next = Some(port);
            return Ok(candidate);
        }
    }
    bail!("no free ports between {FIRST} and {END}")
}

fn is_free(port: u16) -> bool {
    UdpSocket::bind(("127.0.0.1", port)).is_ok()
}
