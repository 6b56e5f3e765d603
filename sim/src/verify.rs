//! Reading everything back, and judging it.

use rustmq_checker::{Checker, Process, Report, Value};
use rustmq_protocol::frame::RequestKind;
use rustmq_protocol::{
    ErrorBody, ErrorCode, Fetch, FetchResponse, ListOffsets, ListOffsetsResponse, Offset, OffsetAt,
    batch::batches,
};

use crate::failure::Failure;
use crate::node::Node;
use crate::records;
use crate::workload::{Workload, undecodable, unexpected};

/// The process that reads in the history.
const READER: Process = Process(u32::MAX);

/// Bytes asked for at once.
const FETCH_BYTES: u32 = 256 << 10;

/// Offsets of each log that are looked up by themselves, besides the reading from end to end.
const LOOKED_UP: u64 = 3;

/// What reading everything came to.
#[derive(Default)]
pub(crate) struct Reading {
    /// Bytes of batches that were served.
    pub(crate) bytes: u64,
    /// Ranges that the broker named as damaged.
    pub(crate) damaged: u64,
}

/// Reads every log from its start to its end into the history.
pub(crate) fn read_all(
    workload: &mut Workload,
    node: &mut Node,
    is_honest: bool,
) -> Result<Reading, Failure> {
    let mut reading = Reading::default();
    for (topic, log) in workload.logs() {
        read_log(workload, node, topic, log, is_honest, &mut reading)?;
    }
    Ok(reading)
}

/// What is wrong with the history so far.
pub(crate) fn judge(workload: &Workload, checker: &mut Checker) -> Report {
    checker.check(&workload.history)
}

fn read_log(
    workload: &mut Workload,
    node: &mut Node,
    topic: usize,
    log: usize,
    is_honest: bool,
    reading: &mut Reading,
) -> Result<(), Failure> {
    let number = workload.topics[topic].logs[log].number;
    let start = end_of(workload, node, topic, log, OffsetAt::Earliest)?;
    workload.history.log_start(number, start);
    if !is_honest {
        workload.topics[topic].logs[log].forget_times(0..start);
    }
    let reader = workload.history.assign(READER, number, start);
    let end = end_of(workload, node, topic, log, OffsetAt::Latest)?;
    // A lie may take the end of a log; whether it may is the caller's to judge, by the history.
    let acknowledged = workload.history.acknowledged_end(number);
    if is_honest && end < acknowledged {
        return Err(Failure::broken(format!(
            "log {} ends at {end}, offsets below {acknowledged} were acknowledged",
            number.0
        )));
    }
    let mut next = start;
    while next < end {
        match fetch(workload, node, topic, log, next, FETCH_BYTES)? {
            Fetched::Unreadable => {}
            Fetched::Gone => next = log_start_beyond(workload, node, topic, log, next)?,
            Fetched::Damaged { until } => {
                reading.damaged += 1;
                workload.history.refuse(number, next..until);
                workload.topics[topic].logs[log].forget_times(next..until);
                if until <= next {
                    return Err(Failure::broken("a damaged range that does not hold the offset"));
                }
                next = until;
            }
            Fetched::Bytes(body) => {
                let response = FetchResponse::decode(&body).map_err(undecodable)?;
                let before = next;
                for batch in batches(response.batches) {
                    let (_, bytes) = batch.map_err(|error| Failure::broken(error.to_string()))?;
                    let header = records::read(bytes, |offset, value| {
                        if next <= offset {
                            workload.history.read(reader, offset, Value(value));
                        }
                    });
                    let header = header.map_err(|what| {
                        Failure::broken(format!("log {} from offset {next}: {what}", number.0))
                    })?;
                    next = next.max(header.last_offset().0 + 1);
                    reading.bytes += bytes.len() as u64;
                }
                if next == before {
                    return Err(Failure::broken(format!(
                        "log {}: nothing is served at offset {next}, below the end {end}",
                        number.0
                    )));
                }
            }
        }
    }
    workload.history.read_to_end(reader, end);
    for _ in 0..LOOKED_UP.min(end - start) {
        let offset = workload.choice.between(start, end - 1);
        look_up(workload, node, topic, log, offset)?;
    }
    Ok(())
}

/// One offset, which must be in the first batch that comes.
fn look_up(
    workload: &mut Workload,
    node: &mut Node,
    topic: usize,
    log: usize,
    offset: u64,
) -> Result<(), Failure> {
    let body = match fetch(workload, node, topic, log, offset, 1)? {
        Fetched::Bytes(body) => body,
        Fetched::Gone => return log_start_beyond(workload, node, topic, log, offset).map(|_| ()),
        Fetched::Unreadable | Fetched::Damaged { .. } => return Ok(()),
    };
    let response = FetchResponse::decode(&body).map_err(undecodable)?;
    let first = batches(response.batches).next();
    let held = first.and_then(Result::ok).is_some_and(|(header, _)| {
        header.base_offset.0 <= offset && offset <= header.last_offset().0
    });
    match held {
        true => Ok(()),
        false => Err(Failure::broken(format!("asked for offset {offset}, another batch came"))),
    }
}

/// Where the log begins now, which is behind an offset that could not be read any more.
fn log_start_beyond(
    workload: &mut Workload,
    node: &mut Node,
    topic: usize,
    log: usize,
    offset: u64,
) -> Result<u64, Failure> {
    let number = workload.topics[topic].logs[log].number;
    let start = end_of(workload, node, topic, log, OffsetAt::Earliest)?;
    if start <= offset {
        return Err(Failure::broken(format!(
            "log {} begins at {start}, and offset {offset} is out of its range",
            number.0
        )));
    }
    workload.history.log_start(number, start);
    Ok(start)
}

enum Fetched {
    /// The log does not have this offset.
    Gone,
    /// The disk did not give it this time.
    Unreadable,
    Bytes(Vec<u8>),
    /// The broker says that records up to before this offset are damaged.
    Damaged {
        until: u64,
    },
}

fn fetch(
    workload: &Workload,
    node: &mut Node,
    topic: usize,
    log: usize,
    offset: u64,
    bytes_max: u32,
) -> Result<Fetched, Failure> {
    let topic = &workload.topics[topic];
    let info = topic.logs[log].info;
    let ask = Fetch {
        topic: topic.id.expect("a topic that lives has an id"),
        partition: info.partition,
        leader_epoch: info.leader_epoch,
        offset: Offset(offset),
        wait_ms_max: 0,
        bytes_min: 1,
        bytes_max,
    };
    let mut body = Vec::new();
    ask.encode(&mut body);
    let answer = node.ask(info.shard, RequestKind::Fetch, body)?;
    match answer.code {
        ErrorCode::Ok => Ok(Fetched::Bytes(answer.body)),
        ErrorCode::OffsetOutOfRange => Ok(Fetched::Gone),
        ErrorCode::StorageCorrupt => {
            let said = ErrorBody::decode(&answer.body).map_err(undecodable)?.message;
            match damaged_until(&said) {
                Some(until) => Ok(Fetched::Damaged { until }),
                None if node.reads_may_fail() => Ok(Fetched::Unreadable),
                None => Err(unexpected("reading", &answer)),
            }
        }
        _ => Err(unexpected("reading", &answer)),
    }
}

/// The end of a named range: "records 3 to before 5 are damaged on disk".
fn damaged_until(said: &str) -> Option<u64> {
    let (_, rest) = said.split_once(" to before ")?;
    rest.split_whitespace().next()?.parse().ok()
}

fn end_of(
    workload: &Workload,
    node: &mut Node,
    topic: usize,
    log: usize,
    at: OffsetAt,
) -> Result<u64, Failure> {
    let topic = &workload.topics[topic];
    let info = topic.logs[log].info;
    let ask = ListOffsets {
        topic: topic.id.expect("a topic that lives has an id"),
        partition: info.partition,
        leader_epoch: info.leader_epoch,
        at,
    };
    let mut body = Vec::new();
    ask.encode(&mut body);
    let answer = node.ask(info.shard, RequestKind::ListOffsets, body)?;
    if answer.code != ErrorCode::Ok {
        return Err(unexpected("asking for an offset", &answer));
    }
    Ok(ListOffsetsResponse::decode(&answer.body).map_err(undecodable)?.offset.0)
}
