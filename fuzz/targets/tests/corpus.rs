//! The part of the corpus that is made from the test vectors of the protocol is up to date.
//!
//! `BLESS=1 cargo test -p rustmq-fuzz-targets --test corpus` writes it anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustmq_protocol::{ErrorCode, FRAME_HEADER_BYTES, FrameFlags, FrameHeader, RequestKind};

const FRAMES: &str = include_str!("../../../protocol/vectors/frames.hex");
const BATCHES: &str = include_str!("../../../protocol/vectors/batches.hex");
const BATCHES_REFUSED: &str = include_str!("../../../protocol/vectors/batches_refused.hex");

/// All of the corpus in the repository: it is small, or nobody reviews it.
const CORPUS_BYTES_MAX: u64 = 200 << 10;

#[test]
fn the_corpus_has_every_vector() {
    let mut seeds: BTreeMap<(&str, String), Vec<u8>> = BTreeMap::new();
    let mut stream = vec![9];
    for (name, frame) in vectors(FRAMES) {
        stream.extend_from_slice(&frame);
        seeds.insert(("frames", name.to_owned()), [&[0], &frame[..]].concat());
        seeds.insert(("requests", name.to_owned()), request(&frame));
    }
    seeds.insert(("frames", "all".to_owned()), stream);
    for (name, batch) in vectors(BATCHES).into_iter().chain(vectors(BATCHES_REFUSED)) {
        seeds.insert(("batch", name.to_owned()), [&[0], &batch[..]].concat());
        seeds.insert(("batch", format!("{name}_repaired")), [&[1], &batch[..]].concat());
    }
    for ((target, name), bytes) in seeds {
        let path = corpus().join(target).join(&name);
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(corpus().join(target)).expect("the corpus can be written");
            fs::write(&path, &bytes).expect("the corpus can be written");
        }
        let found = fs::read(&path).unwrap_or_default();
        assert!(found == bytes, "{} is not the vector {name}: run with BLESS=1", path.display());
    }
}

#[test]
fn the_corpus_is_small() {
    let bytes: u64 = rustmq_fuzz_targets::TARGETS
        .iter()
        .map(|(name, _)| {
            let folder = fs::read_dir(corpus().join(name)).expect("every target has a corpus");
            folder
                .map(|file| file.and_then(|file| file.metadata()).expect("a file").len())
                .sum::<u64>()
        })
        .sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes, at most {CORPUS_BYTES_MAX} are allowed");
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus")
}

/// The body with the number that the target `requests` knows it by.
fn request(frame: &[u8]) -> Vec<u8> {
    let (header, body) = frame.split_first_chunk::<FRAME_HEADER_BYTES>().expect("a whole frame");
    let header = FrameHeader::decode(header).expect("a good header");
    let kind = RequestKind::from_u16(header.kind).expect("a known kind");
    let place = RequestKind::ALL.iter().position(|known| *known == kind);
    let place = place.expect("all are listed") as u8;
    let has = |flag| header.flags.contains(flag);
    let number = match (kind, header.error_code()) {
        (RequestKind::Subscribe, _) if has(FrameFlags::MORE) => 22,
        (RequestKind::Subscribe, _) if has(FrameFlags::RESPONSE) => 23,
        (RequestKind::Subscribe, _) => 21,
        (RequestKind::Credit, _) => 24,
        (_, ErrorCode::Ok) => 2 * place + u8::from(has(FrameFlags::RESPONSE)),
        (_, ErrorCode::UnsupportedVersion) => 19,
        (_, ErrorCode::Throttled) => 20,
        _ => 18,
    };
    [&[number], body].concat()
}

/// A name in the first column, then its bytes in hex on indented lines; `#` begins a comment.
fn vectors(file: &str) -> Vec<(&str, Vec<u8>)> {
    let mut vectors: Vec<(&str, Vec<u8>)> = Vec::new();
    for line in file.lines() {
        let (text, _comment) = line.split_once('#').unwrap_or((line, ""));
        if !text.starts_with(' ') {
            if !text.trim().is_empty() {
                vectors.push((text.trim(), Vec::new()));
            }
            continue;
        }
        let (_name, bytes) = vectors.last_mut().expect("a name stands before its bytes");
        for pair in text.trim().as_bytes().chunks(2) {
            let digits = std::str::from_utf8(pair).expect("hex is ASCII");
            bytes.push(u8::from_str_radix(digits, 16).expect("two hex digits"));
        }
    }
    vectors
}
