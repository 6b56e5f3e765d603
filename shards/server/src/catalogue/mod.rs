//! The catalogue: topics, WALs and producer ids, agreed on and durable before anyone acts on them.
//!
//! Shard 0 keeps it. A request that changes it is checked against the image, written to the
//! catalogue's log, flushed, applied here and then on every other shard, and answered when all have
//! it. The log carries the commands that a cluster's Raft group will carry later.
//!
//! - [`log`]: the two files on disk.
//! - [`start`]: what a start does: read, add this start, deal the WALs out.
//! - [`requests`]: creating and deleting topics, handing out producer ids.

mod log;
mod requests;
mod start;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustmq_metadata::{ApplyError, Command};
use rustmq_planted::{Bug, planted};
use rustmq_protocol::{ShardId, TopicId};
use rustmq_sys::runtime::{self, Class};
use rustmq_wal::catalogue::CommandEffect;

use crate::error::ShardError;
use crate::mesh::Message;
use crate::notify::WaitList;
use crate::shard::Shard;
use log::CatalogueLogFiles;

pub(crate) use requests::spawn;

/// After so long without a command an empty append records that the last one is durable.
const MARK_AFTER: Duration = Duration::from_millis(50);

/// The keeper of the catalogue; on shard 0 alone.
///
/// Commands are written one after another: who holds the turn has the log to itself. Invariant: the
/// shard's image is the log's state whenever the turn is free.
pub(crate) struct Catalogue {
    /// `None` before the start, and once a write has failed.
    log: RefCell<Option<CatalogueLogFiles>>,
    turn_taken: Cell<bool>,
    turn: WaitList,
    /// For each question to all shards: how many answers are missing, and what came back.
    asked: RefCell<BTreeMap<u64, Asked>>,
    answered: WaitList,
    next_ticket: Cell<u64>,
    /// Shards that have recovered.
    booted: Cell<u16>,
    /// Producer ids that are ours to hand out.
    producer_ids: RefCell<Range<u64>>,
}

#[derive(Default)]
struct Asked {
    missing: usize,
    named: Vec<TopicId>,
}

/// Why a command was not carried out.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// The rules refuse it.
    Refused(ApplyError),
    /// The catalogue has no room for anything new.
    Full,
    /// Writing it failed: the shard ends, and says why.
    Failed,
    /// The catalogue's files were deleted beneath the broker.
    Lost,
}

impl Catalogue {
    /// A catalogue that [`Catalogue::start`] has to open.
    pub(crate) fn new() -> Self {
        Self {
            log: RefCell::default(),
            turn_taken: Cell::new(false),
            turn: WaitList::default(),
            asked: RefCell::default(),
            answered: WaitList::default(),
            next_ticket: Cell::new(0),
            booted: Cell::new(0),
            producer_ids: RefCell::new(0..0),
        }
    }

    /// Reads the log, adds this start to it and hands every shard its part.
    pub(crate) async fn start(&self, shard: &Rc<Shard>) -> Result<(), ShardError> {
        start::start(self, shard).await
    }

    /// Begins the work that is not urgent, once every shard has recovered.
    pub(crate) fn serve(shard: &Rc<Shard>) {
        runtime::spawn(Class::Background, forget_loop(Rc::clone(shard)));
    }

    /// Makes a command durable and has every shard apply it. The caller holds the turn. A request boxes
    /// it: those who wait for the turn have no memory for it yet.
    async fn carry_out(&self, shard: &Rc<Shard>, command: Command) -> Result<(), CommandError> {
        if shard.catalogue_lost.get() {
            return Err(CommandError::Lost);
        }
        rustmq_metadata::check(&shard.image.borrow(), &command).map_err(CommandError::Refused)?;
        let effect = match command {
            Command::DeleteTopic { .. } | Command::ForgetTopic { .. } => CommandEffect::Frees,
            _ => CommandEffect::Grows,
        };
        if planted(Bug::DeletionNotDurable) && effect == CommandEffect::Frees
            || planted(Bug::ProducerIdTwice)
                && matches!(command, Command::AllocateProducerIds { .. })
        {
            shard.install(&command);
            return Ok(());
        }
        let Some(mut log) = self.take_log() else { return Err(CommandError::Failed) };
        let image = shard.image.borrow().clone();
        match log.write(&image, &[&command], effect).await {
            Ok(has_room) => {
                *self.log.borrow_mut() = Some(log);
                if !has_room {
                    return Err(CommandError::Full);
                }
            }
            Err(error) => {
                shard.fail(error);
                return Err(CommandError::Failed);
            }
        }
        shard.install(&command);
        let command = Arc::new(command);
        self.ask_all(shard, |ticket| Message::Install { command: Arc::clone(&command), ticket })
            .await;
        runtime::spawn(Class::Background, mark_later(Rc::clone(shard)));
        Ok(())
    }

    /// The log, for whoever has the turn. It is gone for good once a write has failed, which is not
    /// tried again: who has the turn until the shard has ended gets none.
    fn take_log(&self) -> Option<CatalogueLogFiles> {
        self.log.borrow_mut().take()
    }

    /// Sends a question to every other shard and waits for all answers.
    async fn ask_all(&self, shard: &Shard, question: impl Fn(u64) -> Message) -> Vec<TopicId> {
        let ticket = self.next_ticket.get() + 1;
        self.next_ticket.set(ticket);
        let others = 1..shard.node.shard_count;
        let asked = Asked { missing: others.len(), named: Vec::new() };
        self.asked.borrow_mut().insert(ticket, asked);
        for other in others {
            shard.mesh.send(ShardId(other), question(ticket));
        }
        self.answered
            .until(|| {
                let mut asked = self.asked.borrow_mut();
                let done = asked.get(&ticket).is_some_and(|asked| asked.missing == 0);
                done.then(|| asked.remove(&ticket).expect("just seen").named)
            })
            .await
    }

    fn answer(&self, ticket: u64, named: Vec<TopicId>) {
        if let Some(asked) = self.asked.borrow_mut().get_mut(&ticket) {
            asked.missing -= 1;
            asked.named.extend(named);
        }
        self.answered.wake_all();
    }

    async fn take_turn(&self) {
        self.turn.until(|| (!self.turn_taken.replace(true)).then_some(())).await;
    }

    fn give_turn(&self) {
        self.turn_taken.set(false);
        self.turn.wake_first();
    }
}

/// This shard has recovered: tells shard 0, or takes note on shard 0.
pub(crate) fn booted(shard: &Rc<Shard>) {
    match &shard.catalogue {
        Some(_) => handle(shard, Message::Booted { shard: shard.id }),
        None => shard.mesh.send(ShardId(0), Message::Booted { shard: shard.id }),
    }
}

/// Takes a message that only shard 0 gets.
pub(crate) fn handle(shard: &Rc<Shard>, message: Message) {
    let catalogue = shard.catalogue.as_ref().expect("only shard 0 is told this");
    match message {
        Message::Booted { .. } => {
            catalogue.booted.set(catalogue.booted.get() + 1);
            if catalogue.booted.get() == shard.node.shard_count {
                for other in 1..shard.node.shard_count {
                    shard.mesh.send(ShardId(other), Message::Serve);
                }
                shard.may_serve.notify();
            }
        }
        Message::Installed { ticket } => catalogue.answer(ticket, Vec::new()),
        Message::StillNamed { topics, ticket } => catalogue.answer(ticket, topics),
        _ => unreachable!("the mesh passes on what is for the catalogue"),
    }
}

/// Records, once things are quiet, that the last command is durable.
async fn mark_later(shard: Rc<Shard>) {
    runtime::sleep(MARK_AFTER).await;
    let Some(catalogue) = &shard.catalogue else {
        return;
    };
    catalogue.take_turn().await;
    if let Some(mut log) = catalogue.take_log() {
        match log.mark().await {
            Ok(()) => *catalogue.log.borrow_mut() = Some(log),
            Err(error) => shard.fail(error),
        }
    }
    catalogue.give_turn();
}

/// Forgets deleted topics once no segment of any shard names them.
async fn forget_loop(shard: Rc<Shard>) {
    let Some(catalogue) = &shard.catalogue else {
        return;
    };
    let pause = Duration::from_millis(shard.config.test.retention_check_ms);
    loop {
        runtime::sleep(pause).await;
        let deleted: Vec<TopicId> =
            shard.image.borrow().tombstones().map(|(topic, _)| topic).collect();
        if deleted.is_empty() {
            continue;
        }
        let question = |ticket| Message::Named { topics: deleted.clone(), ticket };
        let mut named = catalogue.ask_all(&shard, question).await;
        named.extend(shard.named_topics(deleted.clone()));
        for id in deleted.into_iter().filter(|topic| !named.contains(topic)) {
            catalogue.take_turn().await;
            let forgotten = catalogue.carry_out(&shard, Command::ForgetTopic { id }).await;
            catalogue.give_turn();
            if let Err(error) = forgotten {
                tracing::warn!(topic = %id, ?error, "a deleted topic is not forgotten yet");
            }
        }
    }
}
