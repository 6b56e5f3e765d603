//! What a start does to the catalogue, and who owns which WAL afterwards.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;

use rustmq_metadata::{Command, Image, WalUuid, apply};
use rustmq_protocol::ShardId;
use rustmq_sys::fs;
use rustmq_wal::catalogue::CommandEffect;

use super::Catalogue;
use super::log::CatalogueLogFiles;
use crate::error::ShardError;
use crate::mesh::{Boot, Message};
use crate::random;
use crate::shard::Shard;

/// Opens the catalogue, makes this start durable in it, and tells every shard its part.
pub(super) async fn start(catalogue: &Catalogue, shard: &Rc<Shard>) -> Result<(), ShardError> {
    let dir = &shard.config.broker.data_dir;
    let file_bytes = shard.config.test.catalogue_bytes as usize;
    let (mut log, image) = CatalogueLogFiles::open(dir, file_bytes).await?;
    let mut commands = Vec::new();
    let before = match image {
        Some(image) => image,
        None => {
            refuse_orphans(dir).await?;
            commands.push(Command::FormatCluster { cluster_id: random::bytes() });
            Image::new()
        }
    };
    let broker = shard.node.broker;
    let mut wals = before.broker(broker).map(|known| known.wals.clone()).unwrap_or_default();
    while wals.len() < usize::from(shard.node.shard_count) {
        wals.push(WalUuid(random::uuid()));
    }
    let owners = deal(&wals, shard.node.shard_count);
    let shard_count = shard.node.shard_count;
    commands.push(Command::StartBroker { broker, shard_count, wals });

    let refused = |why: String| ShardError::Refused { dir: dir.clone(), why };
    let mut image = before.clone();
    for command in &commands {
        apply(&mut image, command).map_err(|error| refused(format!("starting: {error}")))?;
    }
    let slices: Vec<&Command> = commands.iter().collect();
    if !log.write(&before, &slices, CommandEffect::Frees).await? {
        return Err(refused("the catalogue has no room even for a start".to_owned()));
    }
    *catalogue.log.borrow_mut() = Some(log);
    for other in 1..shard_count {
        let boot = Boot { image: image.clone(), owners: owners.clone() };
        shard.mesh.send(ShardId(other), Message::Boot(Box::new(boot)));
    }
    shard.boot.put(Boot { image, owners });
    Ok(())
}

/// Deals the WALs out to the shards in turn. Fewer shards than before own more WALs each; records
/// never move.
fn deal(wals: &[WalUuid], shards: u16) -> BTreeMap<WalUuid, ShardId> {
    let numbered = wals.iter().enumerate();
    numbered.map(|(index, wal)| (*wal, ShardId((index % usize::from(shards)) as u16))).collect()
}

/// WALs without a catalogue are not a new broker: their topics would look deleted.
async fn refuse_orphans(dir: &Path) -> Result<(), ShardError> {
    let names = match fs::list(dir).await {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let (doing, error) = ("listing", error.to_string());
            return Err(ShardError::Device { doing, dir: dir.to_owned(), error });
        }
    };
    match names.iter().find(|name| name.starts_with("wal-")) {
        None => Ok(()),
        Some(name) => Err(ShardError::Refused {
            dir: dir.to_owned(),
            why: format!(
                "there is {name} and no catalogue that knows it: restore catalogue-a.log and \
                 catalogue-b.log from a copy, or move the WAL away to begin anew"
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_shards_own_more_wals_and_each_wal_has_one_owner() {
        let wals: Vec<WalUuid> = (0..3).map(|n| WalUuid([n; 16])).collect();
        let owners = deal(&wals, 2);
        assert_eq!(owners[&wals[0]], ShardId(0));
        assert_eq!(owners[&wals[1]], ShardId(1));
        assert_eq!(owners[&wals[2]], ShardId(0));
        assert!(deal(&wals, 1).values().all(|owner| *owner == ShardId(0)));
    }
}
