//! `rustmq wal inspect`, `verify` and `salvage`, on the files of a broker that was killed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::corruption::{self, Model, PARTITIONS, check, copy, read, segments};
use crate::support::broker::{Backend, Node, wal_dirs};
use crate::support::cli::{Cli, Outcome};
use crate::support::damage::Damage;
use crate::support::{client, machine};

fn wal(node: &Node, arguments: &[&str]) -> Result<Outcome> {
    let mut all = vec!["wal"];
    all.extend(arguments);
    Cli::new(node.data_dir()).run(&all)
}

/// A data directory with several segments, its broker killed.
fn killed() -> Result<(Node, Model)> {
    let node = corruption::node(Backend::Epoll)?;
    let model = corruption::write(&node)?;
    Ok((node, model))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

#[test]
fn inspect_prints_every_block_and_entry() -> Result<()> {
    let _machine = machine::shared();
    let (node, _) = killed()?;
    let segments = segments(node.data_dir())?;
    for segment in [&segments[0], segments.last().context("a tail")?] {
        let path = node.data_dir().join(&segment.file);
        let outcome = wal(&node, &["inspect", text(&path)?, "--format", "json"])?;
        ensure!(outcome.code == 0, "{}", outcome.stderr);
        let shown: Value = serde_json::from_slice(&outcome.stdout)?;
        ensure!(shown["header"]["sequence"] == segment.header.sequence.0, "{}", shown["header"]);
        let blocks = shown["blocks"].as_array().context("blocks")?;
        let entries: usize =
            blocks.iter().map(|block| block["entries"].as_array().map_or(0, Vec::len)).sum();
        ensure!(entries == segment.entries.len(), "{entries} of {}", segment.entries.len());
        ensure!(shown["end"]["position"] == segment.blocks_end as u64, "{}", shown["end"]);
        let outcome = wal(&node, &["inspect", text(&path)?])?;
        let lines = String::from_utf8(outcome.stdout)?;
        for word in ["segment ", "block ", "checkpoint of", "offsets ", "blocks end at"] {
            ensure!(lines.contains(word), "{word:?} is missing in\n{lines}");
        }
    }
    Ok(())
}

#[test]
fn verify_tells_a_whole_log_from_a_damaged_one() -> Result<()> {
    let _machine = machine::shared();
    let (node, _) = killed()?;
    let dir = text(node.data_dir())?.to_owned();
    let whole = wal(&node, &["verify", &dir])?;
    ensure!(whole.code == 0, "a killed broker leaves a whole log: {whole:?}");
    let before = fs::read_dir(&dir)?.count();
    let all = segments(node.data_dir())?;
    let middle = &all[all.len() / 2];
    let tail = all.last().context("a tail")?;
    let end = middle.bytes.len();
    let data = middle.data()?.clone();
    let cases = [
        ("payload", middle, Damage::Flip(data.payload.start + 40), "offsets "),
        ("entry header", middle, Damage::Flip(data.entry + 20), "offsets "),
        ("block header", middle, Damage::Flip(data.block.start + 50), "nothing is lost"),
        ("directory", tail, Damage::Flip(tail.data()?.block.start + 130), "nothing is lost"),
        ("header", middle, Damage::Flip(44), "nothing is lost"),
        ("trailer", middle, Damage::Flip(end - 4096 + 50), "footer"),
        ("checkpoint", tail, Damage::Flip(tail.checkpoint()?.payload.start + 30), "state"),
        ("page", middle, Damage::Zero(data.block.start..data.block.start + 4096), "offsets "),
        ("cut", middle, Damage::Cut(end / 2), "was cut"),
        ("middle gone", middle, Damage::Remove, "gone"),
        ("tail gone", tail, Damage::Remove, "gone"),
    ];
    for (name, segment, damage, words) in cases {
        let path = node.data_dir().join(&segment.file);
        damage.apply(&path)?;
        let outcome = wal(&node, &["verify", &dir])?;
        let said = String::from_utf8(outcome.stdout)?;
        ensure!(outcome.code == 1, "{name}: code {}\n{said}{}", outcome.code, outcome.stderr);
        ensure!(said.contains(words), "{name}: {words:?} is missing in\n{said}");
        if !matches!(damage, Damage::Remove) {
            let name_of_file = path.file_name().context("a name")?.to_string_lossy().into_owned();
            ensure!(said.contains(&name_of_file), "{name}: {name_of_file} is missing in\n{said}");
            let alone = wal(&node, &["verify", text(&path)?])?;
            let state_only = matches!(name, "trailer");
            ensure!(alone.code == 1 || state_only, "{name} by itself: {alone:?}");
        }
        let json = wal(&node, &["verify", &dir, "--format", "json"])?;
        ensure!(json.code == 1, "{name}");
        serde_json::from_slice::<Value>(&json.stdout)?;
        fs::write(&path, &segment.bytes)?;
    }
    ensure!(wal(&node, &["verify", &dir])?.code == 0, "as it was");
    ensure!(fs::read_dir(&dir)?.count() == before, "verify leaves nothing behind");
    Ok(())
}

#[test]
fn commands_on_a_directory_in_use_or_none_are_refused() -> Result<()> {
    let _machine = machine::shared();
    let node = Node::new(Backend::Epoll)?;
    let dir = text(node.data_dir())?.to_owned();
    let out = format!("{dir}-out");
    let broker = node.start()?;
    for arguments in [vec!["verify", &dir], vec!["salvage", &dir, "--out", &out]] {
        let outcome = wal(&node, &arguments)?;
        ensure!(outcome.code == 2, "{outcome:?}");
        ensure!(outcome.stderr.contains("in use by process"), "{outcome:?}");
    }
    let outcome = wal(&node, &["salvage", &dir, "--in-place"])?;
    ensure!(outcome.code == 2, "{outcome:?}");
    ensure!(!Path::new(&out).exists(), "salvage wrote beside a running broker");
    broker.stop()?;
    for arguments in [
        vec!["verify", "/nonexistent"],
        vec!["salvage", "/nonexistent", "--out", &out],
        vec!["salvage", &dir],
        vec!["salvage", &dir, "--out", &dir],
    ] {
        let outcome = wal(&node, &arguments)?;
        ensure!(outcome.code == 2, "{arguments:?}: {outcome:?}");
    }
    Ok(())
}

/// What a broker refuses to open, salvage makes open: everything undamaged is served.
#[test]
fn salvage_saves_everything_that_is_whole() -> Result<()> {
    let _machine = machine::shared();
    let (node, model) = killed()?;
    let pristine = node.data_dir().with_file_name("pristine");
    fs::rename(node.data_dir(), &pristine)?;
    let all = segments(&pristine)?;
    let middle = &all[all.len() / 2];
    let tail = all.last().context("a tail")?;
    let data = tail.data()?.clone();
    // Name, file, damage, whether records are given up, whether offsets behind the last record are.
    let flipped = Damage::Flip(middle.data()?.payload.start + 40);
    let cut = Damage::Cut(data.block.start);
    // Every partition has records behind this one.
    let page = Damage::Zero(data.block.start..data.block.start + 4096);
    let cases = [
        ("nothing", middle, None, false, false),
        ("a payload", middle, Some(flipped), true, false),
        ("the newest file is gone", tail, Some(Damage::Remove), true, true),
        ("the newest file is cut", tail, Some(cut), true, true),
        ("the middle file is gone", middle, Some(Damage::Remove), true, false),
        ("a page of the newest", tail, Some(page), true, false),
    ];
    for (name, segment, damage, loses, loses_behind) in cases {
        for in_place in [false, true] {
            copy(&pristine, node.data_dir())?;
            if let Some(damage) = &damage {
                damage.apply(&node.data_dir().join(&segment.file))?;
            }
            let dir = text(node.data_dir())?.to_owned();
            let out = format!("{dir}-out");
            let outcome = match in_place {
                true => wal(&node, &["salvage", &dir, "--in-place"])?,
                false => wal(&node, &["salvage", &dir, "--out", &out])?,
            };
            let said = String::from_utf8(outcome.stdout)?;
            ensure!(outcome.code == 0, "{name}: {said}{}", outcome.stderr);
            ensure!(
                said.contains("given up") == loses || said.contains("that are given up"),
                "{name}: {said}"
            );
            ensure!(said.contains("given up: ") == loses, "{name}: {said}");
            ensure!(said.contains("may have held records") == loses_behind, "{name}: {said}");
            if !in_place {
                fs::remove_dir_all(&dir)?;
                fs::rename(&out, &dir)?;
            }
            whole_on_disk(node.data_dir())?;
            let verified = wal(&node, &["verify", &dir])?;
            let found = String::from_utf8(verified.stdout)?;
            ensure!(loses || verified.code == 0, "{name}: {found}");
            let broker = node.start().with_context(|| format!("{name}, in place: {in_place}"))?;
            let mut refused = 0;
            client::runtime()?
                .block_on(async {
                    let client = client::connect(node.data_dir()).await?;
                    for partition in 0..PARTITIONS {
                        let read = read(&client, partition).await?;
                        refused += check(partition, &read, &model[partition as usize])?;
                    }
                    client.close().await;
                    anyhow::Ok(())
                })
                .with_context(|| format!("{name}, in place: {in_place}\n{said}\n{found}"))?;
            ensure!((0 < refused) == loses, "{name}: {refused} records are refused");
            Cli::new(node.data_dir()).check_health("after")?;
            broker.stop()?;
            fs::remove_dir_all(&dir)?;
        }
    }
    Ok(())
}

/// Every byte of every segment file has its place on the disk: writing it later takes no more space.
fn whole_on_disk(data_dir: &Path) -> Result<()> {
    let mut files = 0;
    for wal in wal_dirs(data_dir)? {
        if wal.extension().is_some() {
            continue;
        }
        for file in fs::read_dir(wal)? {
            let path = file?.path();
            let metadata = fs::metadata(&path)?;
            // What the system counts in, whatever the blocks of the file system.
            let held = metadata.blocks() * 512;
            let name = path.display();
            ensure!(metadata.len() <= held, "{name}: {held} of {} bytes", metadata.len());
            files += 1;
        }
    }
    ensure!(0 < files, "there is no segment");
    Ok(())
}
