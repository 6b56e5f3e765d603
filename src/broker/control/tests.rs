use super::*;
use crate::broker::admin::metrics::tests::snapshot;
use rustmq_server::ShardError;
use rustmq_server::mesh;
use rustmq_server::metrics::Stage;

/// The shards' side of the mesh, played by the test.
pub(in crate::broker) struct Shards {
    ports: Vec<MeshPort>,
    ended: mpsc::Sender<Ended>,
}

/// A control thread, and shards that do what the test tells them.
pub(in crate::broker) fn control(shards: u16) -> (Control, Shards) {
    let mut ports = mesh::build(usize::from(shards) + 1).unwrap();
    let (ended, receiver) = mpsc::channel(usize::from(shards));
    let control = Control::new(ports.pop().unwrap(), receiver).unwrap();
    (control, Shards { ports, ended })
}

impl Shards {
    pub(in crate::broker) fn tell(&mut self, shard: u16, message: Message) {
        self.leave(shard, message);
        self.ports[usize::from(shard)].bells.last().unwrap().ring();
    }

    /// Tells without a bell.
    fn leave(&mut self, shard: u16, message: Message) {
        let port = &mut self.ports[usize::from(shard)];
        let sent = port.senders.last_mut().unwrap().as_mut().unwrap().try_push(message);
        assert!(sent.is_ok());
    }

    pub(in crate::broker) fn serve(&mut self) {
        for shard in 0..self.ports.len() as u16 {
            self.tell(shard, Message::Serving { shard: ShardId(shard) });
        }
    }

    fn heard(&mut self, shard: u16) -> Option<Message> {
        let port = &mut self.ports[usize::from(shard)];
        port.receivers.last_mut().unwrap().as_mut().unwrap().try_pop()
    }

    fn end(&self, shard: u16, result: Result<(), Failure>) {
        assert!(self.ended.try_send(Ended { shard: ShardId(shard), result }).is_ok());
    }
}

pub(in crate::broker) fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

#[test]
fn the_broker_is_ready_once_every_shard_serves() {
    block_on(async {
        let (mut control, mut shards) = control(2);
        let handle = control.handle();
        assert_eq!(handle.status(), Status::Starting { serving: 0, shards: 2 });
        shards.tell(1, Message::Serving { shard: ShardId(1) });
        assert!(control.turn().await.unwrap() == Turn::Done);
        assert_eq!(handle.status().to_string(), "starting: 1 of 2 shards serve");
        shards.tell(0, Message::Serving { shard: ShardId(0) });
        assert!(control.until_serving().await.unwrap());
        assert_eq!(handle.status(), Status::Serving);
    });
}

#[test]
fn those_who_scrape_at_once_share_one_answer() {
    block_on(async {
        let (mut control, mut shards) = control(2);
        let handle = control.handle();
        let scrapes = async { tokio::join!(handle.scrape(), handle.scrape()) };
        let turns = async {
            // Both wait for the same copies.
            while control.round.as_ref().is_none_or(|round| round.waiting.len() < 2) {
                control.turn().await.unwrap();
            }
            for shard in [1, 0] {
                assert!(matches!(shards.heard(shard), Some(Message::Scrape(_))));
                assert!(shards.heard(shard).is_none(), "asked once");
                shards.tell(shard, Message::Scraped(Box::new(snapshot(shard))));
            }
            while control.round.is_some() {
                control.turn().await.unwrap();
            }
        };
        let ((first, second), ()) = tokio::join!(scrapes, turns);
        let (first, second) = (first.unwrap(), second.unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        let answered: Vec<_> = first.snapshots.iter().map(|snapshot| snapshot.shard.0).collect();
        assert_eq!(answered, [0, 1]);
        assert!(first.silent.is_empty());
    });
}

#[test]
fn an_answer_is_found_without_a_bell() {
    block_on(async {
        let (mut control, mut shards) = control(1);
        let (sender, receiver) = oneshot::channel();
        control.begin_scrape(sender);
        shards.leave(0, Message::Scraped(Box::new(snapshot(0))));
        while control.round.is_some() {
            control.turn().await.unwrap();
        }
        assert_eq!(receiver.await.unwrap().snapshots.len(), 1);
    });
}

#[test]
fn a_silent_shard_is_left_out_and_not_asked_again() {
    block_on(async {
        let (mut control, mut shards) = control(2);
        for _ in 0..2 {
            let (sender, receiver) = oneshot::channel();
            control.begin_scrape(sender);
            shards.tell(0, Message::Scraped(Box::new(snapshot(0))));
            control.turn().await.unwrap();
            control.end_scrape();
            let scrape = receiver.await.unwrap();
            assert_eq!(scrape.snapshots.len(), 1);
            assert_eq!(scrape.silent, [ShardId(1)]);
        }
        assert!(matches!(shards.heard(1), Some(Message::Scrape(_))));
        assert!(shards.heard(1).is_none());
        // Its late answer is one to the next scrape.
        let (sender, receiver) = oneshot::channel();
        control.begin_scrape(sender);
        shards.tell(0, Message::Scraped(Box::new(snapshot(0))));
        shards.tell(1, Message::Scraped(Box::new(snapshot(1))));
        control.turn().await.unwrap();
        assert!(receiver.await.unwrap().silent.is_empty());
    });
}

#[test]
fn an_answer_is_of_the_whole_time_and_one_that_nobody_waited_for_is_counted() {
    block_on(async {
        let (mut control, mut shards) = control(1);
        for (value, count) in [(5_000, 1), (7_000, 2), (9_000, 3), (2_000, 4)] {
            let (sender, receiver) = oneshot::channel();
            control.begin_scrape(sender);
            let Some(Message::Scrape(empty)) = shards.heard(0) else { panic!("not asked") };
            assert_eq!(empty.len(), Stage::ALL.len());
            assert!(empty.iter().all(|stage| stage.is_empty() && stage.max() == 0));
            let mut answer = snapshot(0);
            answer.stages[Stage::Fetch as usize].record(value).unwrap();
            if count == 2 {
                control.end_scrape();
            }
            shards.tell(0, Message::Scraped(Box::new(answer)));
            control.turn().await.unwrap();
            let scrape = receiver.await.unwrap();
            let Some(answered) = scrape.snapshots.first() else {
                assert_eq!(count, 2, "the others waited");
                continue;
            };
            let all = &answered.stages[Stage::Fetch as usize];
            assert_eq!(all.len(), count);
            assert_eq!(all.max(), all.highest_equivalent(if count == 1 { 5_000 } else { 9_000 }));
            assert!(answered.stages[Stage::Produce as usize].is_empty());
        }
    });
}

#[test]
fn too_many_scrapes_are_refused() {
    block_on(async {
        let (mut control, _shards) = control(1);
        let mut waiting = Vec::new();
        for _ in 0..=SCRAPES_MAX {
            let (sender, receiver) = oneshot::channel();
            control.begin_scrape(sender);
            waiting.push(receiver);
        }
        control.end_scrape();
        assert!(waiting.pop().unwrap().await.is_err());
        for receiver in waiting {
            assert_eq!(receiver.await.unwrap().silent, [ShardId(0)]);
        }
    });
}

#[test]
fn drained_shards_end_and_nothing_is_left() {
    block_on(async {
        let (mut control, mut shards) = control(2);
        shards.serve();
        control.until_serving().await.unwrap();
        shards.end(0, Ok(()));
        shards.end(1, Ok(()));
        let handle = control.handle();
        control.drain().await.unwrap();
        assert_eq!(handle.status(), Status::Draining);
        assert!(matches!(shards.heard(0), Some(Message::Drain)));
        assert!(matches!(shards.heard(1), Some(Message::Drain)));
    });
}

#[test]
fn a_shard_that_ends_by_itself_ends_the_process_with_an_error() {
    block_on(async {
        let memory = ShardError::Memory { error: "none left".to_owned() };
        let failures = [
            (Err(Failure::Error(memory)), "none left"),
            (Err(Failure::Panic("index out of bounds".to_owned())), "index out of bounds"),
            (Ok(()), "without being asked"),
        ];
        for (result, said) in failures {
            let (mut control, mut shards) = control(2);
            shards.serve();
            control.until_serving().await.unwrap();
            shards.end(1, result);
            let error = format!("{:#}", control.until_signalled().await.unwrap_err());
            assert!(error.contains("shard 1") && error.contains(said), "{error}");
        }
    });
}
