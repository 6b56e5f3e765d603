//! `rustmq wal verify`: reads everything once, and names what is wrong.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustmq_protocol::{Offset, TopicPartition};
use rustmq_wal::recovery::{Activation, judge_newest};
use rustmq_wal::verify::{Coverage, Finding, Lost, Verified, What};
use rustmq_wal::{BLOCK_ALIGN, BlockSequence, SegmentHeader, SegmentHeaderError};
use serde_json::json;

use super::catalogue;
use super::files::{self, SegmentFile, WalFiles};
use super::segment;
use super::source::{self, Source, Sources};
use crate::cli::output::TextOrJson;

/// Ends the command with code 1, after everything was said.
#[derive(Debug)]
pub(crate) struct Damaged(pub(crate) usize);

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} findings; what they mean: docs/operations/recovery.md", self.0)
    }
}

impl std::error::Error for Damaged {}

/// What a run found.
#[derive(Default)]
pub(super) struct Report {
    findings: Vec<(PathBuf, Finding)>,
    /// Offsets that no segment holds.
    missing: Vec<(PathBuf, TopicPartition, Range<Offset>)>,
    segments: u64,
    bytes: u64,
    batches: u64,
    blocks_unreadable: Vec<(PathBuf, Range<u64>, String)>,
    lost_segments: Vec<(PathBuf, String)>,
}

pub(super) fn run(path: &Path, format: TextOrJson) -> Result<()> {
    let _lock = files::lock(&files::data_dir(path))?;
    let mut report = Report::default();
    if path.is_file() {
        verify_file(path, &mut report)?;
    } else {
        for wal in files::wals(path)? {
            verify_wal(&wal, &mut report)?;
        }
    }
    let count = report.count();
    match format {
        TextOrJson::Text => report.print(),
        TextOrJson::Json => println!("{}", report.json()),
    }
    if count != 0 {
        bail!(Damaged(count));
    }
    Ok(())
}

/// One file by itself: what came after it is known from its own footer alone.
fn verify_file(path: &Path, report: &mut Report) -> Result<()> {
    let mut source = Source::open(path, &source::memory())?;
    let page = source.bytes().min(BLOCK_ALIGN as u64);
    let first = source.get(0..page)?.to_vec();
    let read = SegmentHeader::decode(&first);
    let header = match read {
        Ok(header) => Some(header),
        Err(_) => SegmentHeader::correct(&first),
    };
    let file = SegmentFile { path: path.to_owned(), read, header };
    report.note_header(&file, true);
    let Some(header) = header else {
        source.read_rest();
        report.note_read(path, source);
        return Ok(());
    };
    let verified = segment::check(&mut source, &header, BlockSequence::FIRST, false, |_| {})?;
    source.read_rest();
    report.add(path, Checked { verified, source });
    Ok(())
}

fn verify_wal(wal: &WalFiles, report: &mut Report) -> Result<()> {
    let memory = source::memory();
    // The newest first: what it proves to have been flushed concerns the one before it, too.
    let (newest, older) = match wal.live.split_last() {
        Some((newest, older)) => (Some(newest), older),
        None => (None, &[][..]),
    };
    let live = newest.into_iter().chain(older).map(|(file, _)| file);
    let paths = live.chain(&wal.others).map(|file| file.path.as_path());
    let mut sources = Sources::new(paths, &memory);
    let checked = match newest {
        Some((_, header)) => Some(check(&mut sources, header, wal.durable_end, false)?),
        None => None,
    };
    let durable_end = checked.as_ref().map(|checked| checked.verified.end.durable_end);
    let mut newest_checked = checked;

    let mut coverage = Coverage::default();
    let mut before: Option<Verified> = None;
    for (index, (file, header)) in wal.live.iter().enumerate() {
        report.note_header(file, true);
        let next = wal.live.get(index + 1).map(|(_, next)| *next);
        let follows = next.filter(|next| header.sequence.next() == next.sequence);
        let is_last_but_one = index + 2 == wal.live.len();
        let checked = match (next, follows) {
            (None, _) => newest_checked.take().context("the newest segment is checked once")?,
            (_, None) => check(&mut sources, header, wal.durable_end, false)?,
            (_, Some(next)) if !is_last_but_one => {
                check(&mut sources, header, next.first_block, true)?
            }
            (_, Some(_)) => {
                let durable_end = durable_end.context("there is a newest segment")?;
                check(&mut sources, header, durable_end, false)?
            }
        };
        if let Some(next) = next
            && follows.is_none()
        {
            let what = format!("segments {} to before {}", header.sequence.next(), next.sequence);
            report.lost_segments.push((wal.dir.clone(), what));
        }
        if next.is_none() {
            let end = before.as_ref().map(|before| before.end.segment_end());
            match judge_newest(end, header, &checked.verified.end) {
                Ok(Activation::Activated | Activation::Never) => {}
                Err(error) => report.lost_segments.push((wal.dir.clone(), error.to_string())),
            }
        }
        coverage.add(&checked.verified);
        before = Some(report.add(&file.path, checked));
    }
    for file in &wal.others {
        // What is not in use holds nothing; that the device gives it is seen all the same.
        report.note_header(file, false);
        let mut source = sources.open_next()?;
        source.read_rest();
        report.note_read(&file.path, source);
    }
    let missing = without_deleted(wal, coverage.missing())?;
    report.missing.extend(missing.into_iter().map(|(id, range)| (wal.dir.clone(), id, range)));
    Ok(())
}

/// Nobody misses the records of a topic that was deleted. The WAL does not say that it was, the
/// catalogue does.
fn without_deleted(
    wal: &WalFiles,
    mut missing: Vec<(TopicPartition, Range<Offset>)>,
) -> Result<Vec<(TopicPartition, Range<Offset>)>> {
    if missing.is_empty() {
        return Ok(missing);
    }
    let dir = std::path::absolute(&wal.dir)?;
    match catalogue::read(dir.parent().unwrap_or(&dir)) {
        Ok(Some(image)) => missing.retain(|(id, _)| image.tombstone(id.topic).is_none()),
        Ok(None) => {}
        Err(error) => eprintln!(
            "rustmq: the catalogue cannot be read ({error:#}): what is missing may be of topics that \
             were deleted"
        ),
    }
    Ok(missing)
}

/// A segment that was read to its end.
struct Checked {
    verified: Verified,
    source: Source,
}

/// Checks the next of the files.
fn check(
    sources: &mut Sources<'_>,
    header: &SegmentHeader,
    durable_end: BlockSequence,
    must_have_footer: bool,
) -> Result<Checked> {
    let mut source = sources.open_next()?;
    let verified = segment::check(&mut source, header, durable_end, must_have_footer, |_| {})?;
    source.read_rest();
    source.let_go();
    Ok(Checked { verified, source })
}

impl Report {
    fn count(&self) -> usize {
        self.findings.len()
            + self.missing.len()
            + self.blocks_unreadable.len()
            + self.lost_segments.len()
    }

    fn note_header(&mut self, file: &SegmentFile, in_use: bool) {
        let Err(error) = file.read else { return };
        if error == SegmentHeaderError::Blank && !in_use {
            return;
        }
        let lost = if file.header.is_some() || !in_use { Lost::Nothing } else { Lost::Unknown };
        let end = BLOCK_ALIGN as u64;
        let finding = Finding { position: 0, end, what: What::Header(error), lost };
        self.findings.push((file.path.clone(), finding));
    }

    /// A file that was read to its end.
    fn note_read(&mut self, path: &Path, source: Source) {
        self.segments += 1;
        self.bytes += source.bytes();
        for (range, error) in source.unreadable {
            self.blocks_unreadable.push((path.to_owned(), range, error));
        }
    }

    fn add(&mut self, path: &Path, Checked { mut verified, source }: Checked) -> Verified {
        self.batches += verified.entries;
        let findings = verified.findings.drain(..);
        self.findings.extend(findings.map(|finding| (path.to_owned(), finding)));
        self.note_read(path, source);
        verified
    }

    fn print(&self) {
        for (path, range, error) in &self.blocks_unreadable {
            println!("{}: bytes {}..{}: {error}", path.display(), range.start, range.end);
        }
        for (path, finding) in &self.findings {
            let Finding { position, end, what, lost } = finding;
            println!("{}: position {position}..{end}: {what}; {lost}", path.display());
        }
        for (dir, what) in &self.lost_segments {
            println!("{}: {what}: gone", dir.display());
        }
        for (dir, partition, range) in &self.missing {
            println!(
                "{}: {partition} offsets {}..{} are in no segment",
                dir.display(),
                range.start,
                range.end
            );
        }
        println!(
            "{} files, {} bytes, {} batches: {}",
            self.segments,
            self.bytes,
            self.batches,
            match self.count() {
                0 => "clean".to_owned(),
                count => format!("{count} findings"),
            }
        );
    }

    fn json(&self) -> serde_json::Value {
        let records = |records: &[(TopicPartition, Range<Offset>)]| -> Vec<serde_json::Value> {
            let one = |(id, range): &(TopicPartition, Range<Offset>)| json!({ "partition": id.to_string(), "first": range.start.0, "end": range.end.0 });
            records.iter().map(one).collect()
        };
        let findings: Vec<_> = self
            .findings
            .iter()
            .map(|(path, finding)| {
                let (lost, offsets) = match &finding.lost {
                    Lost::Nothing => ("nothing", Vec::new()),
                    Lost::State => ("state", Vec::new()),
                    Lost::Unknown => ("unknown", Vec::new()),
                    Lost::Records(lost) => ("records", records(lost)),
                };
                json!({
                    "file": path.display().to_string(),
                    "position": finding.position,
                    "end": finding.end,
                    "what": finding.what.to_string(),
                    "lost": lost,
                    "offsets": offsets,
                })
            })
            .collect();
        let missing: Vec<_> = self.missing.iter().map(|(_, id, r)| (*id, r.clone())).collect();
        let unreadable: Vec<_> = self
            .blocks_unreadable
            .iter()
            .map(|(path, range, error)| {
                json!({
                    "file": path.display().to_string(),
                    "position": range.start,
                    "end": range.end,
                    "error": error,
                })
            })
            .collect();
        json!({
            "files": self.segments,
            "bytes": self.bytes,
            "batches": self.batches,
            "findings": findings,
            "unreadable": unreadable,
            "missing": records(&missing),
            "lost_segments": self.lost_segments.iter().map(|(_, what)| what).collect::<Vec<_>>(),
        })
    }
}
