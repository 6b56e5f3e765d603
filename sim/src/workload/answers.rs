//! What producers are told, and whether it may be.

use rustmq_protocol::{ErrorCode, ProduceResponse};

use super::{REPEATABLE, Repeated, Workload, undecodable, unexpected};
use crate::answer::Answer;
use crate::failure::Failure;
use crate::node::Node;

impl Workload {
    /// Takes the answers that have come.
    pub(crate) fn receive(&mut self, node: &mut Node) -> Result<(), Failure> {
        for index in 0..self.producers.len() {
            let mut at = 0;
            while let Some(sent) = self.producers[index].in_flight.get(at) {
                match sent.ticket.and_then(|ticket| node.take_answer(ticket)) {
                    None => at += 1,
                    Some(answer) => {
                        self.answered(index, at, &answer)?;
                        at = 0;
                    }
                }
            }
        }
        let tickets: Vec<u64> = self.copies.keys().copied().collect();
        for ticket in tickets {
            if let Some(answer) = node.take_answer(ticket) {
                let copy = self.copies[&ticket];
                self.copies.remove(&ticket);
                self.copy_answered(copy, &answer)?;
            }
        }
        Ok(())
    }

    fn answered(&mut self, index: usize, at: usize, answer: &Answer) -> Result<(), Failure> {
        match answer.code {
            ErrorCode::Ok => {
                let response = ProduceResponse::decode(&answer.body).map_err(undecodable)?;
                self.acknowledge(index, at, &response)
            }
            _ if !self.is_live(index) => {
                // The topic goes: what becomes of its records is nobody's business.
                self.producers[index].in_flight.clear();
                Ok(())
            }
            ErrorCode::StorageFull
            | ErrorCode::Throttled
            | ErrorCode::Timeout
            | ErrorCode::Interrupted
            | ErrorCode::ShuttingDown
            | ErrorCode::OutOfOrderSequence => {
                self.refused_full += u64::from(answer.code == ErrorCode::StorageFull);
                self.unanswered += u64::from(answer.code == ErrorCode::Interrupted);
                let producer = &mut self.producers[index];
                producer.in_flight[at].ticket = None;
                producer.blocked = true;
                Ok(())
            }
            ErrorCode::UnknownProducerId if self.producers[index].in_flight[at].may_be_first => {
                // It overtook the first.
                let producer = &mut self.producers[index];
                producer.in_flight[at].ticket = None;
                producer.blocked = true;
                Ok(())
            }
            _ => Err(unexpected("producing", answer)),
        }
    }

    fn acknowledge(
        &mut self,
        index: usize,
        at: usize,
        response: &ProduceResponse,
    ) -> Result<(), Failure> {
        let producer = &mut self.producers[index];
        let sent = producer.in_flight.remove(at).expect("the caller saw it");
        let base = response.base_offset.0;
        for (offset, send) in (base..).zip(&sent.sends) {
            self.history.acknowledge(*send, Some(offset));
        }
        producer.settled.push_back((sent.sequence, base, sent.batch));
        if REPEATABLE < producer.settled.len() {
            producer.settled.pop_front();
        }
        self.acknowledged += 1;
        let (topic, partition) = (producer.topic, producer.partition);
        let log = &mut self.topics[topic].logs[partition];
        self.history.log_start(log.number, response.log_start_offset.0);
        if sent.repeated {
            return Ok(());
        }
        let time = response.append_time.0;
        let before = log.times.range(..base).next_back();
        let after = log.times.range(base..).next();
        if before.is_some_and(|(_, before)| time < *before)
            || after.is_some_and(|(_, after)| *after < time)
        {
            let number = log.number.0;
            return Err(Failure::broken(format!(
                "the append time of log {number} goes back at offset {base}"
            )));
        }
        log.times.insert(base, time);
        Ok(())
    }

    /// A repeated batch has to be where the first one is.
    fn copy_answered(&mut self, copy: Repeated, answer: &Answer) -> Result<(), Failure> {
        let Repeated { index, sequence, was_acknowledged } = copy;
        if !self.is_live(index) {
            return Ok(());
        }
        match answer.code {
            ErrorCode::Ok => {}
            // The first one was not taken either.
            ErrorCode::StorageFull
            | ErrorCode::Throttled
            | ErrorCode::Timeout
            | ErrorCode::Interrupted
            | ErrorCode::ShuttingDown => return Ok(()),
            // It overtook what was sent before it.
            ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducerId if !was_acknowledged => {
                return Ok(());
            }
            _ => return Err(unexpected("repeating a batch", answer)),
        }
        let response = ProduceResponse::decode(&answer.body).map_err(undecodable)?;
        if let Some(at) =
            self.producers[index].in_flight.iter().position(|sent| sent.sequence == sequence)
        {
            // The copy's answer is as good as the first one's, which will come and say the same.
            let ticket = self.producers[index].in_flight[at].ticket;
            self.acknowledge(index, at, &response)?;
            if let Some(ticket) = ticket {
                self.copies.insert(ticket, copy);
            }
            return Ok(());
        }
        match self.offset_of(index, sequence) {
            Some(offset) if offset != response.base_offset.0 => Err(Failure::broken(format!(
                "a batch was acknowledged at offset {offset} and, repeated, at {}",
                response.base_offset.0
            ))),
            _ => Ok(()),
        }
    }

    /// On a damaged disk: where the first one is, or not at all.
    pub(super) fn check_repetition(&self, offset: u64, answer: &Answer) -> Result<(), Failure> {
        match answer.code {
            ErrorCode::Ok => {
                let response = ProduceResponse::decode(&answer.body).map_err(undecodable)?;
                match response.base_offset.0 == offset {
                    true => Ok(()),
                    false => Err(Failure::broken(format!(
                        "a batch is served at offset {offset} and was taken again at {}",
                        response.base_offset.0
                    ))),
                }
            }
            ErrorCode::OutOfOrderSequence
            | ErrorCode::UnknownProducerId
            | ErrorCode::DuplicateSequence
            | ErrorCode::StorageFull
            | ErrorCode::Throttled => Ok(()),
            _ => Err(unexpected("repeating a batch on a damaged disk", answer)),
        }
    }

    fn offset_of(&self, index: usize, sequence: u32) -> Option<u64> {
        let settled = self.producers[index].settled.iter();
        settled.rev().find(|settled| settled.0 == sequence).map(|settled| settled.1)
    }
}
