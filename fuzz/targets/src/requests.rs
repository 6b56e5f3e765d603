//! The bodies of all requests and responses.
//!
//! Input: one byte that chooses the kind and whether the rest is a body or what a value is made
//! from.

use std::fmt::Debug;

use rustmq_protocol::{
    CreateTopic, CreateTopicResponse, Credit, DecodeError, DeleteTopic, DeleteTopicResponse,
    ErrorBody, ErrorCode, Fetch, FetchResponse, FrameFlags, Hello, HelloResponse, InitProducer,
    InitProducerResponse, ListOffsets, ListOffsetsResponse, ListTopics, ListTopicsResponse,
    Metadata, MetadataResponse, Produce, ProduceResponse, RequestKind, Subscribe, SubscriptionEnd,
    ThrottledBody, UnsupportedVersionBody, batches,
};

use crate::batch;
use crate::memory::{Bound, bounded};

mod made;

/// A name takes two bytes on the wire at least and 24 in a list; an entry of a configuration four
/// and 48. A list is reserved for what the bytes left could hold, inside of another one.
const ASKED_MAX: Bound = Bound::per_byte(20);

/// How many bodies there are to choose from: requests and responses of the kinds up to ListOffsets,
/// errors, and those of subscriptions. What is added goes behind, so that the corpus keeps its meaning.
const BODIES: u8 = 25;

/// The body of an answer to a subscription, and of its end.
const SUBSCRIPTION_ANSWER: u8 = 22;
const SUBSCRIPTION_END: u8 = 23;

/// The chosen body is refused or read, and what was read is encoded as it was; a value that is
/// made reads back.
pub fn target(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let index = choice % 32 % BODIES;
    let kind = RequestKind::ALL[usize::from(index / 2) % RequestKind::ALL.len()];
    let (response, more) = (FrameFlags::RESPONSE, FrameFlags::RESPONSE.with(FrameFlags::MORE));
    match (*choice < 128, index) {
        (true, 18) => any_body(kind, response, ErrorCode::Internal as u16, rest),
        (true, 19) => any_body(kind, response, ErrorCode::UnsupportedVersion as u16, rest),
        (true, 20) => any_body(kind, response, ErrorCode::Throttled as u16, rest),
        (true, 21) => any_body(RequestKind::Subscribe, FrameFlags::NONE, 0, rest),
        (true, SUBSCRIPTION_ANSWER) => any_body(RequestKind::Subscribe, more, 0, rest),
        (true, SUBSCRIPTION_END) => any_body(RequestKind::Subscribe, response, 0, rest),
        (true, 24) => any_body(RequestKind::Credit, FrameFlags::NONE, 0, rest),
        (true, index) if index % 2 == 1 => any_body(kind, response, 0, rest),
        (true, _) => any_body(kind, FrameFlags::NONE, 0, rest),
        (false, index) => made::reads_back(index, rest),
    }
}

/// The body of a frame of this kind, as the peer that gets it reads it.
pub(crate) fn any_body(kind: RequestKind, flags: FrameFlags, status: u16, body: &[u8]) {
    let is_response = flags.contains(FrameFlags::RESPONSE);
    let more = flags.contains(FrameFlags::MORE);
    if is_response && kind == RequestKind::Subscribe && !more {
        exact(body, SubscriptionEnd::decode, SubscriptionEnd::encode);
    }
    if is_response && status != ErrorCode::Ok as u16 {
        return error_body(status, body);
    }
    match (kind, is_response) {
        (RequestKind::Hello, false) => exact(body, Hello::decode, Hello::encode),
        (RequestKind::Hello, true) => exact(body, HelloResponse::decode, HelloResponse::encode),
        (RequestKind::Metadata, false) => exact(body, Metadata::decode, Metadata::encode),
        (RequestKind::Metadata, true) => metadata_response(body),
        (RequestKind::CreateTopic, false) => exact(body, CreateTopic::decode, CreateTopic::encode),
        (RequestKind::CreateTopic, true) => {
            exact(body, CreateTopicResponse::decode, CreateTopicResponse::encode);
        }
        (RequestKind::DeleteTopic, false) => exact(body, DeleteTopic::decode, DeleteTopic::encode),
        (RequestKind::DeleteTopic, true) => {
            exact(body, DeleteTopicResponse::decode, DeleteTopicResponse::encode);
        }
        (RequestKind::ListTopics, false) => exact(body, ListTopics::decode, ListTopics::encode),
        (RequestKind::ListTopics, true) => {
            exact(body, ListTopicsResponse::decode, ListTopicsResponse::encode);
        }
        (RequestKind::InitProducer, false) => {
            exact(body, InitProducer::decode, InitProducer::encode);
        }
        (RequestKind::InitProducer, true) => {
            exact(body, InitProducerResponse::decode, InitProducerResponse::encode);
        }
        (RequestKind::Produce, false) => {
            exact(body, Produce::decode, Produce::encode);
            if let Ok(produce) = Produce::decode(body) {
                batch::holds(produce.batch);
            }
        }
        (RequestKind::Produce, true) => {
            exact(body, ProduceResponse::decode, ProduceResponse::encode);
        }
        (RequestKind::Fetch, false) => exact(body, Fetch::decode, Fetch::encode),
        (RequestKind::Fetch, true) => fetched(body),
        (RequestKind::ListOffsets, false) => exact(body, ListOffsets::decode, ListOffsets::encode),
        (RequestKind::ListOffsets, true) => {
            exact(body, ListOffsetsResponse::decode, ListOffsetsResponse::encode);
        }
        (RequestKind::Subscribe, false) => exact(body, Subscribe::decode, Subscribe::encode),
        (RequestKind::Subscribe, true) if more => fetched(body),
        (RequestKind::Credit, false) => exact(body, Credit::decode, Credit::encode),
        // The end of a subscription is read above; a credit that is taken is not answered.
        (RequestKind::Subscribe | RequestKind::Credit, true) => {}
    }
}

/// Batches that were fetched, or sent to a subscriber.
fn fetched(body: &[u8]) {
    exact(body, FetchResponse::decode, FetchResponse::encode);
    if let Ok(response) = FetchResponse::decode(body) {
        batches(response.batches).flatten().for_each(|(_, batch)| batch::holds(batch));
    }
}

/// Decodes; what is a value is encoded to the very same bytes.
fn exact<'a, T: Debug>(
    body: &'a [u8],
    decode: impl FnOnce(&'a [u8]) -> Result<T, DecodeError>,
    encode: impl FnOnce(&T, &mut Vec<u8>),
) {
    match bounded(body.len(), &ASKED_MAX, || decode(body)) {
        Ok(value) => {
            let mut out = Vec::with_capacity(body.len());
            encode(&value, &mut out);
            assert!(out == body, "{value:?} was {body:x?} and is encoded as {out:x?}");
        }
        Err(error) => says_something(&error),
    }
}

/// An error code of a later version is read as the one for what is not known, and only that is
/// encoded differently.
fn metadata_response(body: &[u8]) {
    match bounded(body.len(), &ASKED_MAX, || MetadataResponse::decode(body)) {
        Ok(value) => {
            let mut out = Vec::with_capacity(body.len());
            value.encode(&mut out);
            if value.topics.iter().any(|topic| topic.error == ErrorCode::Internal) {
                assert_eq!(out.len(), body.len());
                assert_eq!(MetadataResponse::decode(&out), Ok(value));
            } else {
                assert!(out == body, "{value:?} was {body:x?} and is encoded as {out:x?}");
            }
        }
        Err(error) => says_something(&error),
    }
}

fn error_body(status: u16, body: &[u8]) {
    if status == ErrorCode::UnsupportedVersion as u16 {
        exact(body, UnsupportedVersionBody::decode, UnsupportedVersionBody::encode);
    }
    if status == ErrorCode::Throttled as u16 {
        exact(body, ThrottledBody::decode, ThrottledBody::encode);
    }
    // What follows the message of an error belongs to its code.
    match bounded(body.len(), &ASKED_MAX, || ErrorBody::decode(body)) {
        Ok(value) => {
            let mut out = Vec::with_capacity(body.len());
            value.encode(&mut out);
            assert!(body.starts_with(&out), "{value:?} was {body:x?} and is encoded as {out:x?}");
        }
        Err(error) => says_something(&error),
    }
}

fn says_something(error: &DecodeError) {
    assert!(!error.to_string().is_empty());
}
