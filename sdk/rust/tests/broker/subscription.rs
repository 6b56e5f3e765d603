//! Subscriptions of the broker in memory: one batch an answer.

use std::sync::{Arc, Mutex};

use rustmq_protocol::*;
use tokio::sync::Notify;

use super::{Answers, Shared, log_end, write};

/// What a client has said about one subscription.
#[derive(Default)]
pub(super) struct Subscription {
    /// Bytes that may be sent; none once the client has ended it.
    credit: Mutex<Option<i64>>,
    changed: Notify,
}

impl Subscription {
    /// Answers from now on, in a task.
    pub(super) fn open(
        shared: &Arc<Shared>,
        send: &Answers,
        header: FrameHeader,
        body: &[u8],
    ) -> Arc<Subscription> {
        let ask = Subscribe::decode(body).expect("a body");
        let credit = Mutex::new(Some(i64::from(ask.credit)));
        let subscription = Arc::new(Subscription { credit, changed: Notify::new() });
        let (shared, send) = (Arc::clone(shared), Arc::clone(send));
        let own = Arc::clone(&subscription);
        tokio::spawn(async move { own.run(&shared, &send, header, ask).await });
        subscription
    }

    /// What the client says.
    pub(super) fn credit(&self, said: Credit) {
        let mut credit = self.credit.lock().expect("no test panics with the lock");
        *credit = match (said, *credit) {
            (Credit::More { bytes }, Some(left)) => Some(left + i64::from(bytes)),
            (Credit::End, _) | (_, None) => None,
        };
        drop(credit);
        self.changed.notify_one();
    }

    async fn run(&self, shared: &Shared, send: &Answers, header: FrameHeader, ask: Subscribe) {
        let mut next = ask.offset;
        if let Err(code) = head(shared, &ask, next) {
            let mut body = Vec::new();
            ErrorBody { message: "refused by the test".to_owned() }.encode(&mut body);
            // Whoever has gone does not hear it.
            let _ = write(send, header.response(code), &body).await;
            return;
        }
        {
            let mut state = shared.lock();
            state.subscriptions += 1;
            state.subscriptions_open += 1;
        }
        let code = self.send_all(shared, send, header, &ask, &mut next).await;
        shared.lock().subscriptions_open -= 1;
        let mut body = Vec::new();
        SubscriptionEnd { message: "ended".to_owned(), offset: next }.encode(&mut body);
        let _ = write(send, header.response(code), &body).await;
    }

    /// Sends until there is a reason to end it.
    async fn send_all(
        &self,
        shared: &Shared,
        send: &Answers,
        header: FrameHeader,
        ask: &Subscribe,
        next: &mut Offset,
    ) -> ErrorCode {
        let mut opened = false;
        loop {
            let appended = shared.appended.notified();
            let head = match head(shared, ask, *next) {
                Ok(head) => head,
                Err(code) => return code,
            };
            let Some(credit) = *self.credit.lock().expect("no test panics with the lock") else {
                return ErrorCode::Ok;
            };
            let batch = match opened && 0 < credit {
                true => batch_at(shared, ask, *next),
                false => Vec::new(),
            };
            if opened && batch.is_empty() {
                tokio::select! {
                    () = appended => {}
                    () = self.changed.notified() => {}
                }
                continue;
            }
            opened = true;
            shared.lock().sent_bytes += batch.len() as u64;
            if let Ok(header) = BatchHeader::decode(&batch) {
                *next = Offset(header.last_offset().0 + 1);
                let mut credit = self.credit.lock().expect("no test panics with the lock");
                *credit = credit.map(|credit| credit - batch.len() as i64);
            }
            let mut body = Vec::new();
            FetchResponse { head, batches: &batch }.encode(&mut body);
            let header = header.response(ErrorCode::Ok).with_more();
            if write(send, header, &body).await.is_err() {
                return ErrorCode::Ok;
            }
        }
    }
}

/// Where the log begins and ends, if the subscription may be or go on at this offset.
fn head(shared: &Shared, ask: &Subscribe, next: Offset) -> Result<FetchResponseHead, ErrorCode> {
    let state = shared.lock();
    if ask.leader_epoch.0 < state.leader_epoch {
        return Err(ErrorCode::FencedLeaderEpoch);
    }
    let end = log_end(&state.logs[ask.partition.0 as usize]);
    if end < next {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    Ok(FetchResponseHead {
        high_watermark: end,
        log_start_offset: Offset::ZERO,
        log_end_offset: end,
    })
}

/// The batch that holds the offset; empty at the end.
fn batch_at(shared: &Shared, ask: &Subscribe, offset: Offset) -> Vec<u8> {
    let state = shared.lock();
    let last = |batch: &[u8]| BatchHeader::decode(batch).expect("a batch").last_offset();
    let log = &state.logs[ask.partition.0 as usize];
    log.iter().find(|batch| offset <= last(batch)).cloned().unwrap_or_default()
}
