//! Damage to the files of a broker that was killed: one place of one file at a time, and then the
//! shipped executable is started. It makes the damage good, or it refuses the records, or the
//! start, by name; what is not damaged is served as it was written.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustmq_client::{Client, Offset, OffsetAt, PartitionId, Partitions, Start};
use rustmq_protocol::{ErrorCode, ProduceResponse, ProducerStamp};
use rustmq_wal::{
    BLOCK_ALIGN, BlockSequence, EntryKind, FooterTrailer, Scan, SegmentHeader, SegmentState,
};

use crate::support::broker::{Backend, Node, wal_dirs};
use crate::support::cli::Cli;
use crate::support::damage::Damage;
use crate::support::process::wait_until;
use crate::support::raw::{self, Raw};
use crate::support::{client, machine};

/// The topic and its partitions.
const TOPIC: &str = "log";
pub(crate) const PARTITIONS: u32 = 4;

/// Segments written: twice as many as there is room for, so that each file was used again.
const SEGMENTS_WRITTEN: u64 = 20;

/// Rounds of writes to the newest segment, each a block or more of about 100 KB: enough for every
/// case, and not enough to fill it.
const TAIL_ROUNDS: u32 = 5;

/// What every partition was sent, by offset.
pub(crate) type Model = Vec<Vec<String>>;

/// What has to come of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    /// Every record is served.
    Whole,
    /// Some records are refused by partition, offsets and file; all others are served.
    Named,
    /// The start is refused, naming the file and what to do.
    Refused,
}

/// One damage.
struct Case {
    name: String,
    /// Below the data directory.
    file: PathBuf,
    damage: Damage,
    expect: Expect,
}

/// A data entry and the block it is in.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) block: Range<usize>,
    pub(crate) kind: EntryKind,
    pub(crate) entry: usize,
    pub(crate) payload: Range<usize>,
}

/// A segment in use, as its blocks show it.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) file: PathBuf,
    pub(crate) header: SegmentHeader,
    pub(crate) entries: Vec<Found>,
    /// Where its blocks end, and where the last of them begins if that is a seal.
    pub(crate) blocks_end: usize,
    pub(crate) bytes: Vec<u8>,
}

impl Segment {
    /// The data entry in the middle.
    pub(crate) fn data(&self) -> Result<&Found> {
        let data: Vec<_> = self.entries.iter().filter(|e| e.kind == EntryKind::Data).collect();
        data.get(data.len() / 2).copied().context("a segment with records")
    }

    pub(crate) fn checkpoint(&self) -> Result<&Found> {
        self.entries.iter().rfind(|e| e.kind == EntryKind::Checkpoint).context("a checkpoint")
    }
}

#[test]
fn damage_anywhere_is_made_good_named_or_refused() -> Result<()> {
    let _machine = machine::shared();
    let node = node(Backend::Epoll)?;
    let model = write(&node)?;
    let pristine = node.data_dir().with_file_name("pristine");
    fs::rename(node.data_dir(), &pristine)?;
    let cases = cases(&pristine)?;
    ensure!(60 <= cases.len(), "{} cases", cases.len());
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        copy(&pristine, node.data_dir())?;
        case.damage.apply(&node.data_dir().join(&case.file))?;
        match outcome(&node, case, &model, index % 8 == 0) {
            Ok(came) if came == case.expect => {}
            Ok(came) => wrong.push(format!("{}: {came:?}, expected {:?}", case.name, case.expect)),
            Err(error) => wrong.push(format!("{}: {error:#}", case.name)),
        }
        fs::remove_dir_all(node.data_dir())?;
    }
    ensure!(wrong.is_empty(), "of {} cases:\n{}", cases.len(), wrong.join("\n"));
    Ok(())
}

/// The segment before the newest one was cut, to its header or before its seal, and nothing but a
/// checkpoint is in the newest: it may never have been in use. The start that cannot know leaves both as
/// they are.
#[test]
fn a_start_that_is_refused_changes_no_segment() -> Result<()> {
    let _machine = machine::shared();
    let node = node(Backend::Epoll)?;
    write(&node)?;
    let wal = wal_dirs(node.data_dir())?.pop().context("a WAL")?;
    let segments = segments(node.data_dir())?;
    let [.., before, tail] = &segments[..] else { bail!("{} segments", segments.len()) };
    let behind = tail.checkpoint()?.block.end..tail.bytes.len() - BLOCK_ALIGN;
    Damage::Zero(behind).apply(&node.data_dir().join(&tail.file))?;
    let path = node.data_dir().join(&before.file);
    let seal = before.blocks_end - BLOCK_ALIGN;
    for bytes in [seal, 2 * BLOCK_ALIGN, 2 * BLOCK_ALIGN - 1, BLOCK_ALIGN] {
        Damage::Cut(bytes).apply(&path)?;
        let found = contents(&wal)?;
        let said = node.refusal()?;
        let name = before.file.file_name().context("a name")?.to_string_lossy();
        ensure!(said.contains(&*name), "{bytes} bytes: {name} is not named in: {said}");
        ensure!(contents(&wal)? == found, "{bytes} bytes: a file was changed");
    }
    Ok(())
}

/// Nothing is left of the only segment, which looks as if making the WAL had been cut off. A topic has a
/// partition in it, so it was not.
#[test]
fn a_start_that_finds_its_only_segment_empty_leaves_it() -> Result<()> {
    let _machine = machine::shared();
    let node = node(Backend::Epoll)?;
    let broker = node.start()?;
    Cli::new(node.data_dir()).check_health(TOPIC)?;
    broker.kill_running()?;
    let wal = wal_dirs(node.data_dir())?.pop().context("a WAL")?;
    let segments = segments(node.data_dir())?;
    let [only] = &segments[..] else { bail!("{} segments", segments.len()) };
    for damage in [Damage::Zero(BLOCK_ALIGN..only.bytes.len()), Damage::Cut(BLOCK_ALIGN)] {
        damage.apply(&node.data_dir().join(&only.file))?;
        let found = contents(&wal)?;
        let said = node.refusal()?;
        ensure!(said.contains("restore"), "{damage:?}: it does not say what to do: {said}");
        ensure!(contents(&wal)? == found, "{damage:?}: a file was changed");
    }
    Ok(())
}

/// The files of a folder.
fn contents(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut contents = BTreeMap::new();
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        contents.insert(name, fs::read(path)?);
    }
    Ok(contents)
}

pub(crate) fn node(backend: Backend) -> Result<Node> {
    Ok(Node::new(backend)?
        .set("wal.capacity_bytes", "10MiB")
        .set("wal.when_full", "delete_oldest")
        .set("test.retention_check_ms", 20))
}

/// Writes until every segment file was used twice, and kills the broker once its log is at rest. It is
/// the second one, so the catalogue has changed files.
pub(crate) fn write(node: &Node) -> Result<Model> {
    node.start()?.kill_running()?;
    let broker = node.start()?;
    Cli::new(node.data_dir()).create_topic(TOPIC, PARTITIONS)?;
    let mut model: Model = vec![Vec::new(); PARTITIONS as usize];
    client::runtime()?.block_on(async {
        let topic = raw::topic(node.data_dir(), TOPIC).await?;
        let mut raw = Raw::greeted(node.data_dir()).await?;
        let mut round = 0_u32;
        let mut left = TAIL_ROUNDS;
        while 0 < left {
            if SEGMENTS_WRITTEN <= broker.metric("rustmq_wal_sealed_segments_total")? {
                left -= 1;
            }
            round += 1;
            // All at once: several entries share a block.
            for partition in 0..PARTITIONS {
                let bytes = [40_000, 700, 9_000, 20][(round + partition) as usize % 4];
                let values = values(partition, round, bytes);
                let lines: Vec<&str> = values.iter().map(String::as_str).collect();
                let batch = raw::batch(&lines, ProducerStamp::NONE);
                raw.send(&raw::produce_frame(&topic, partition, &batch)?).await?;
                model[partition as usize].extend(values);
            }
            for _ in 0..PARTITIONS {
                let (header, body) = raw.answer().await?;
                ensure!(header.error_code() == ErrorCode::Ok, "{}", header.error_code());
                ProduceResponse::decode(&body)?;
            }
        }
        anyhow::Ok(())
    })?;
    // A file that is being made or changed is looked at again.
    let rests = wait_until(|| Ok(is_at_rest(node.data_dir()).unwrap_or(false).then_some(())))?;
    rests.with_context(|| format!("the log does not come to rest\n{}", broker.state()))?;
    broker.kill_running()?;
    Ok(model)
}

/// Does a mark say that the last block was flushed, and has every sealed segment its footer? Then
/// nothing more is written until another record comes.
fn is_at_rest(data_dir: &Path) -> Result<bool> {
    let segments = segments(data_dir)?;
    let (tail, sealed) = segments.split_last().context("a segment")?;
    let has_footer = |segment: &Segment| {
        let trailer = &segment.bytes[segment.bytes.len() - BLOCK_ALIGN..];
        FooterTrailer::decode(trailer, &segment.header).is_ok()
    };
    let last = tail.entries.last().context("a block with entries")?;
    Ok(last.block.end < tail.blocks_end && sealed.iter().all(has_footer))
}

/// Two values, told apart from all others.
fn values(partition: u32, round: u32, bytes: usize) -> Vec<String> {
    (0..2).map(|part| format!("{partition}:{round}:{part}:{}", "v".repeat(bytes))).collect()
}

/// Starts the executable on the damaged files and reads everything.
fn outcome(node: &Node, case: &Case, model: &Model, goes_on: bool) -> Result<Expect> {
    let mut broker = node.launch()?;
    if broker.until_ready().is_err() {
        let said = broker.refusal()?;
        let name = case.file.file_name().context("a name")?.to_string_lossy();
        ensure!(said.contains(&*name), "{name} is not named in: {said}");
        let advises = ["restore", "salvage", "remove"].iter().any(|word| said.contains(word));
        ensure!(advises, "it does not say what to do: {said}");
        return Ok(Expect::Refused);
    }
    let mut named = 0;
    client::runtime()?.block_on(async {
        let client = client::connect(node.data_dir()).await?;
        for partition in 0..PARTITIONS {
            let read = read(&client, partition).await?;
            named += check(partition, &read, &model[partition as usize])?;
        }
        client.close().await;
        anyhow::Ok(())
    })?;
    if goes_on {
        // What is written now is read.
        Cli::new(node.data_dir()).check_health("after")?;
    }
    broker.stop()?;
    Ok(if named == 0 { Expect::Whole } else { Expect::Named })
}

/// What a partition gave.
pub(crate) struct Read {
    from: u64,
    records: BTreeMap<u64, String>,
    refused: Vec<(Range<u64>, String)>,
}

/// Reads a partition to its end, stepping over what is refused as the message says.
pub(crate) async fn read(client: &Client, partition: u32) -> Result<Read> {
    let id = PartitionId(partition);
    let from = offset_at(client, id, OffsetAt::Earliest).await?;
    let end = offset_at(client, id, OffsetAt::Latest).await?;
    let (mut records, mut refused) = (BTreeMap::new(), Vec::new());
    let mut next = from;
    while next < end {
        let consumer = client
            .consumer(TOPIC)
            .partitions(Partitions::Some(vec![id]))
            .start(Start::Offset(Offset(next)));
        let mut consumer = client::bounded("a consumer", consumer.build()).await??;
        while next < end {
            let received = client::bounded("a record", consumer.receive()).await?;
            match received.context("the consumer ended")? {
                Ok(record) => {
                    next = record.offset.0 + 1;
                    let value = record.value.map(Vec::from).unwrap_or_default();
                    records.insert(record.offset.0, String::from_utf8(value)?);
                }
                Err(error) => {
                    let said = error.to_string();
                    let range = refused_range(&said, partition)?;
                    ensure!(range.contains(&next), "at {next}: {said}");
                    next = range.end;
                    refused.push((range, said));
                    break;
                }
            }
        }
    }
    Ok(Read { from, records, refused })
}

/// The offsets that an error names. It names the partition and a file, too.
fn refused_range(said: &str, partition: u32) -> Result<Range<u64>> {
    let topic = format!("of {TOPIC}/{partition} ");
    ensure!(said.contains(&topic), "the partition is not named: {said}");
    ensure!(said.contains("wal-"), "no file is named: {said}");
    let rest = said.split("records ").nth(1).with_context(|| said.to_owned())?;
    let mut words = rest.split(' ');
    let first = words.next().context("an offset")?.parse()?;
    let end = words.nth(2).context("an end")?.parse()?;
    Ok(first..end)
}

/// Every record that was written is there as it was, or refused. Gives how many were refused.
pub(crate) fn check(partition: u32, read: &Read, model: &[String]) -> Result<usize> {
    for (offset, value) in &read.records {
        let written = model.get(*offset as usize);
        ensure!(written == Some(value), "{partition}: another record is served at {offset}");
    }
    let mut refused = 0;
    for offset in read.from..model.len() as u64 {
        if read.records.contains_key(&offset) {
            continue;
        }
        let named = read.refused.iter().any(|(range, _)| range.contains(&offset));
        ensure!(named, "{partition}: offset {offset} is missing in silence");
        refused += 1;
    }
    Ok(refused)
}

async fn offset_at(client: &Client, id: PartitionId, at: OffsetAt) -> Result<u64> {
    let found = client::bounded("an offset", client.list_offsets(TOPIC, &[id], at)).await??;
    Ok(found.first().context("one answer")?.offset.0)
}

pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "cp ended with {status}");
    Ok(())
}

/// The live segments, oldest first.
pub(crate) fn segments(data_dir: &Path) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for wal in wal_dirs(data_dir)? {
        for file in fs::read_dir(&wal)? {
            let path = file?.path();
            let bytes = fs::read(&path)?;
            let Ok(header) = SegmentHeader::decode(&bytes) else { continue };
            if header.state != SegmentState::Active {
                continue;
            }
            let mut entries = Vec::new();
            let mut scan = Scan::new(&header, BlockSequence::FIRST);
            while let Some(range) = scan.next_read() {
                let part = &bytes[range.start as usize..range.end as usize];
                scan.feed(range.start, part, |block, entry| {
                    let at = block.position as usize;
                    let payload = entry.position as usize + 80;
                    entries.push(Found {
                        block: at..at + block.length as usize,
                        kind: entry.header.kind,
                        entry: entry.position as usize,
                        payload: payload..payload + entry.payload.len(),
                    });
                })?;
            }
            let blocks_end = scan.finish().next.position as usize;
            let file = path.strip_prefix(data_dir)?.to_owned();
            segments.push(Segment { file, header, entries, blocks_end, bytes });
        }
    }
    segments.sort_by_key(|segment| segment.header.sequence);
    Ok(segments)
}

/// The table: every kind of file and every region in it.
fn cases(data_dir: &Path) -> Result<Vec<Case>> {
    use Expect::{Named, Refused, Whole};
    let segments = segments(data_dir)?;
    ensure!(6 <= segments.len(), "only {} segments", segments.len());
    let oldest = &segments[0];
    let middle = &segments[segments.len() / 2];
    let tail = segments.last().context("a tail")?;
    ensure!(oldest.header.sequence.0 > 6, "the files were used again");
    let mut cases = Vec::new();
    let mut case = |name: &str, file: &Path, damage: Damage, expect: Expect| {
        let name = format!("{name}, {damage:?}");
        cases.push(Case { name, file: file.to_owned(), damage, expect });
    };
    let page = BLOCK_ALIGN;

    for (which, segment) in [("oldest", oldest), ("middle", middle), ("newest", tail)] {
        let file = &segment.file;
        let name = |what: &str| format!("{what} of the {which} segment");
        for at in [10, 17, 44, 66, 509] {
            case(&name("header"), file, Damage::Flip(at), Whole);
        }
        case(&name("header"), file, Damage::Zero(0..page), Whole);
        case(&name("header padding"), file, Damage::Flip(page - 9), Whole);
        let data = segment.data()?.clone();
        let block = data.block.start;
        for at in [1, 25, 50, 66, 78, 126] {
            case(&name("block header"), file, Damage::Flip(block + at), Whole);
        }
        for at in [3, 25] {
            case(&name("directory"), file, Damage::Flip(block + 128 + at), Whole);
        }
        for at in [1, 42] {
            case(&name("entry header"), file, Damage::Flip(data.entry + at), Named);
        }
        for at in [data.payload.start + 2, data.payload.start + 40, data.payload.end - 1] {
            case(&name("payload"), file, Damage::Flip(at), Named);
        }
        if data.block.end - 1 != data.payload.end - 1 && segment.bytes[data.block.end - 1] == 0 {
            case(&name("padding"), file, Damage::Flip(data.block.end - 1), Whole);
        }
        case(&name("first page of a block"), file, Damage::Zero(block..block + page), Named);
        let in_payload = round_up(segment.data()?.payload.start, page);
        case(&name("a page of records"), file, Damage::Zero(in_payload..in_payload + page), Named);
        let checkpoint = segment.checkpoint()?.clone();
        case(&name("checkpoint"), file, Damage::Flip(checkpoint.payload.start + 30), Whole);
        case(&name("checkpoint block"), file, Damage::Flip(checkpoint.block.start + 50), Whole);
        let checkpoint_page = page..2 * page;
        case(&name("first page of checkpoint"), file, Damage::Zero(checkpoint_page), Whole);
    }
    // Two blocks of one size change places.
    for (which, segment, expect) in [("middle", middle, Named), ("newest", tail, Named)] {
        let (one, other) = twins(segment)?;
        let name = format!("two blocks of the {which} segment");
        case(&name, &segment.file, Damage::Swap(one, other), expect);
    }
    // Sealed segments: seal and footer.
    let end = middle.bytes.len();
    let trailer_at = end - page;
    let trailer = FooterTrailer::decode(&middle.bytes[trailer_at..], &middle.header)?;
    let table = trailer.footer_start as usize;
    let points = trailer.table_range().end as usize;
    let seal = middle.blocks_end - page;
    let file = &middle.file;
    case("trailer of a footer", file, Damage::Flip(trailer_at + 50), Whole);
    case("trailer of a footer", file, Damage::Zero(trailer_at..end), Whole);
    case("table of a footer", file, Damage::Flip(table + 26), Whole);
    case("points of a footer", file, Damage::Flip(points + 5), Whole);
    case("points of a footer", file, Damage::Zero(points..points + 64), Whole);
    case("seal", file, Damage::Flip(seal + 90), Whole);
    case("seal", file, Damage::Zero(seal..seal + page), Whole);
    let no_footer = Damage::Zero(trailer_at..end);
    let data = middle.data()?.clone();
    for (what, at, expect) in [
        ("seal", seal + 90, Whole),
        ("block header", data.block.start + 50, Whole),
        ("directory", data.block.start + 130, Whole),
        ("entry header", data.entry + 20, Named),
        ("payload", data.payload.start + 40, Named),
    ] {
        let damage = Damage::All(vec![no_footer.clone(), Damage::Flip(at)]);
        case(&format!("{what} and no footer"), file, damage, expect);
    }
    for (what, range, expect) in [
        ("seal", seal..seal + page, Whole),
        ("a block's first page", data.block.start..data.block.start + page, Named),
        ("everything behind the checkpoint", 8 * page..end, Named),
    ] {
        let damage = Damage::All(vec![no_footer.clone(), Damage::Zero(range)]);
        case(&format!("{what} and no footer"), file, damage, expect);
    }
    let no_points = Damage::Zero(points..points + 64);
    let no_blocks = Damage::Zero(8 * page..table / page * page);
    let damage = Damage::All(vec![no_points, no_blocks]);
    case("everything behind the checkpoint and the footer's points", file, damage, Named);
    // The header page of the newest segment, over the seal that names it.
    let before = &segments[segments.len() - 2];
    let name = before.file.file_name().context("a name")?.to_string_lossy().into_owned();
    let to = Damage::HeaderTo(name.clone(), before.blocks_end - page);
    case("header of the newest segment", &tail.file, to, Whole);
    // Its checkpoint, over a block of the segment that makes up for it.
    let block = before.data()?.block.start;
    let to = Damage::Misdirect(page..2 * page, name, block);
    case("checkpoint of the newest segment", &tail.file, to, Named);
    // Files that are cut or gone.
    case("the middle segment", file, Damage::Cut(end / 2), Named);
    case("the middle segment", file, Damage::Cut(data.block.start), Named);
    case("the middle segment", file, Damage::Cut(100), Named);
    case("the middle segment", file, Damage::Remove, Named);
    case("the oldest segment", &oldest.file, Damage::Cut(end / 2), Named);
    case("the oldest segment", &oldest.file, Damage::Remove, Named);
    case("the newest segment", &tail.file, Damage::Cut(tail.data()?.block.start), Refused);
    case("the newest segment", &tail.file, Damage::Remove, Refused);
    // A file that is not in use.
    let wal = data_dir.join(tail.file.parent().context("a directory")?);
    for file in fs::read_dir(&wal)? {
        let path = file?.path();
        let header = SegmentHeader::decode(&fs::read(&path)?);
        if header.is_ok_and(|header| header.state == SegmentState::Spare) {
            let file = path.strip_prefix(data_dir)?.to_owned();
            case("a spare", &file, Damage::Flip(44), Whole);
            case("a spare", &file, Damage::Zero(0..page), Whole);
            case("a spare", &file, Damage::Cut(page), Whole);
        }
    }
    let (current, retired) = match a_is_newer(data_dir)? {
        true => ("catalogue-a.log", "catalogue-b.log"),
        false => ("catalogue-b.log", "catalogue-a.log"),
    };
    // What says that one file goes on in the other, and how that begins: each over the other one.
    let retirement = retirement(&fs::read(data_dir.join(retired))?)?;
    let over_header = Damage::Misdirect(retirement..retirement + page, current.to_owned(), 0);
    case("retirement of the older catalogue", Path::new(retired), over_header, Refused);
    let current_bytes = fs::read(data_dir.join(current))?;
    let append_bytes = u32::from_le_bytes(*current_bytes[page + 40..].first_chunk().context("it")?);
    let switch = 0..page + append_bytes as usize;
    let over_retirement = Damage::Misdirect(switch, retired.to_owned(), retirement);
    let current = Path::new(current);
    case("beginning of the catalogue", current, over_retirement, Refused);
    for at in [0, 17, 25, 510] {
        case("header of the catalogue", current, Damage::Flip(at), Whole);
    }
    case("header of the catalogue", current, Damage::Zero(0..page), Refused);
    for at in [1, 9, 26, 62, 64 + 20] {
        case("snapshot of the catalogue", current, Damage::Flip(page + at), Refused);
    }
    case("the catalogue", current, Damage::Cut(3 * page), Refused);
    case("the catalogue", current, Damage::Remove, Refused);
    let certs = ["ca.crt", "server.crt", "client.crt"];
    for name in certs {
        let file = Path::new("certs").join(name);
        let bytes = fs::read(data_dir.join(&file))?;
        let in_signature = bytes.len() - 60;
        let expect = if name == "ca.crt" { Refused } else { Whole };
        case("the armour of a certificate", &file, Damage::Flip(2), Refused);
        case("a certificate", &file, Damage::Cut(bytes.len() / 2), Refused);
        if name != "ca.crt" {
            // A leaf that does not verify is made again.
            case(
                "the signature of a certificate",
                &file,
                Damage::Swap(in_signature..in_signature + 1, in_signature + 1..in_signature + 2),
                expect,
            );
        }
    }
    for name in ["ca.key", "server.key", "client.key"] {
        let file = Path::new("certs").join(name);
        case("the armour of a key", &file, Damage::Flip(2), Refused);
    }
    case("node keys", Path::new("node.keys"), Damage::Flip(3), Refused);
    case("node keys", Path::new("node.keys"), Damage::Cut(30), Refused);
    Ok(cases)
}

fn round_up(value: usize, unit: usize) -> usize {
    value.next_multiple_of(unit)
}

/// Where a file of the catalogue says that the other one goes on: an append with the flag 4.
fn retirement(bytes: &[u8]) -> Result<usize> {
    let generation = &bytes[16..24];
    let is_it =
        |page: &[u8]| page.starts_with(b"RQCA") && page[6] & 4 != 0 && page[8..16] == *generation;
    let index = bytes.chunks(BLOCK_ALIGN).position(is_it).context("it is retired")?;
    Ok(index * BLOCK_ALIGN)
}

/// Two blocks of records, or as much of the longer one as the other has.
fn twins(segment: &Segment) -> Result<(Range<usize>, Range<usize>)> {
    let mut blocks: Vec<_> = segment
        .entries
        .iter()
        .filter(|found| found.kind == EntryKind::Data)
        .map(|found| found.block.clone())
        .collect();
    blocks.dedup();
    let [one, other] = blocks.first_chunk().context("two blocks of records")?;
    let bytes = one.len().min(other.len());
    Ok((one.start..one.start + bytes, other.start..other.start + bytes))
}

/// Is catalogue a the newer one?
fn a_is_newer(data_dir: &Path) -> Result<bool> {
    let use_of = |name| -> Result<u64> {
        let bytes = fs::read(data_dir.join(name))?;
        Ok(u64::from_le_bytes(bytes.get(24..32).context("a header")?.try_into()?))
    };
    Ok(use_of("catalogue-b.log")? < use_of("catalogue-a.log")?)
}
