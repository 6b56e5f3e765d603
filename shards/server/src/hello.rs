//! The first request of every connection: versions and limits.

use std::rc::Rc;

use rustmq_protocol::frame::VersionRange;
use rustmq_protocol::limits::{FRAME_BYTES_MAX, PRODUCER_BATCHES_IN_FLIGHT_MAX};
use rustmq_protocol::{Hello, HelloResponse};

use crate::reply::{RequestError, Response};
use crate::session::{ReplyTo, Request};
use crate::shard::Shard;

/// Agrees on a protocol version and tells the client what it may do.
pub(crate) fn hello(shard: &Rc<Shard>, request: Request) {
    let ReplyTo::Client(client) = &request.reply_to else {
        unreachable!("Hello is answered where it arrives, never forwarded");
    };
    let agreed =
        Hello::decode(&request.body.to_vec()).map_err(RequestError::from).and_then(|ask| {
            let supported = VersionRange::SUPPORTED;
            let common = supported.newest_common(ask.versions());
            common.ok_or(RequestError::UnsupportedVersion { supported })
        });
    let version = match agreed {
        Ok(version) => version,
        Err(error) => return request.refuse(shard, &error),
    };
    client.session().set_version(version);
    let config = &shard.config;
    let response = HelloResponse {
        version,
        cluster_id: shard.image.borrow().cluster_id().unwrap_or_default(),
        broker_id: shard.node.broker,
        shard: shard.id,
        shard_count: shard.node.shard_count,
        flush: shard.flush_mode(),
        frame_bytes_max: FRAME_BYTES_MAX as u32,
        record_bytes_max: config.topics.record_bytes_max as u32,
        producer_batches_in_flight_max: PRODUCER_BATCHES_IN_FLIGHT_MAX,
        idle_timeout_ms: config.network.idle_timeout_ms as u32,
    };
    let response = Response::encoded(|out| response.encode(out));
    request.answer(shard, response);
}
