//! Which function serves a request, and whether it may come at all.

use std::rc::Rc;

use rustmq_protocol::frame::{FrameFlags, RequestKind, VersionRange};

use super::{ReplyTo, Request};
use crate::limits::{RETRY_AFTER_MEMORY_MS, SMALL_FRAME_BYTES};
use crate::reply::RequestError;
use crate::shard::Shard;
use crate::{catalogue, hello, metadata, offsets, subscribe};

/// Hands a request to the function that serves its kind.
pub(crate) fn dispatch(shard: &Rc<Shard>, request: Request) {
    let kind = match check(shard, &request) {
        Ok(kind) => kind,
        Err(error) => return request.refuse(shard, &error),
    };
    match kind {
        RequestKind::Hello => hello::hello(shard, request),
        RequestKind::Produce => (shard.spawn_produce)(Rc::clone(shard), request),
        RequestKind::Fetch => (shard.spawn_fetch)(Rc::clone(shard), request),
        RequestKind::ListOffsets => offsets::spawn(shard, request),
        RequestKind::Subscribe => subscribe::subscribe(shard, request),
        RequestKind::Credit => subscribe::credit(shard, request),
        RequestKind::Metadata => metadata::spawn_metadata(shard, request),
        RequestKind::ListTopics => metadata::spawn_list_topics(shard, request),
        RequestKind::CreateTopic | RequestKind::DeleteTopic | RequestKind::InitProducer => {
            catalogue::spawn(shard, request);
        }
    }
}

/// Is this frame one that may come now, in the version agreed?
fn check(shard: &Shard, request: &Request) -> Result<RequestKind, RequestError> {
    let header = &request.header;
    let kind = RequestKind::from_u16(header.kind)
        .ok_or(RequestError::UnknownRequest { kind: header.kind })?;
    if header.flags != FrameFlags::NONE {
        return Err(RequestError::UnexpectedFlags { flags: header.flags.bits() });
    }
    let ReplyTo::Client(client) = &request.reply_to else {
        return Ok(kind);
    };
    // Small requests have a quarter more: whoever says Hello or asks for metadata gets in.
    let requests = &shard.memory.requests;
    let is_small = request.body.len() <= SMALL_FRAME_BYTES;
    if requests.is_exceeded() && !(is_small && requests.used() < requests.bytes_max() * 5 / 4) {
        let what = "too many bytes of requests are being worked on";
        return Err(RequestError::Throttled { what, retry_after_ms: RETRY_AFTER_MEMORY_MS });
    }
    match client.session().version() {
        None if kind != RequestKind::Hello => Err(RequestError::HelloRequired),
        // Hello has the same layout in every version, and always the first in its header.
        _ if kind == RequestKind::Hello => Ok(kind),
        Some(version) if version != header.version => Err(RequestError::UnsupportedVersion {
            supported: VersionRange { min: version, max: version },
        }),
        Some(version) if version < kind.version_min() => {
            Err(RequestError::UnknownRequest { kind: header.kind })
        }
        _ => Ok(kind),
    }
}
