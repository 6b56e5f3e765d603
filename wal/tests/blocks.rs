//! Blocks: what is read back is what was pushed, and nothing else ever validates.

mod support;

use proptest::prelude::*;
use rustmq_protocol::{LeaderEpoch, Offset};
use rustmq_wal::{
    BLOCK_ALIGN, BlockBuilder, BlockContext, BlockError, BlockFlags, BlockSequence, ChainPoint,
    DIRECTORY_CAPACITY_MIN, EntryError, EntryExpect, EntryKind, Generation, Incarnation,
    NextSegment, SealedBlock, SegmentSequence, Slot, decode_block, decode_entry,
};
use support::{WAL, batch, partition, push_batch, push_note};

const REGION_BYTES: usize = 128 << 10;

fn context() -> BlockContext {
    BlockContext {
        at: ChainPoint {
            wal: WAL,
            generation: Generation(0x1122_3344_5566_7788),
            incarnation: Incarnation(3),
            position: 8192,
            sequence: BlockSequence(40),
            prev_crc: 0xabcd,
        },
        durable_end: BlockSequence(39),
        flags: BlockFlags::NONE,
        next: None,
    }
}

/// A block of batches of these value sizes, in a region full of rubbish.
fn block(sizes: &[usize], context: &BlockContext) -> (Vec<u8>, SealedBlock, BlockBuilder) {
    let mut region = vec![0xcc; REGION_BYTES];
    let mut builder = BlockBuilder::open(REGION_BYTES, DIRECTORY_CAPACITY_MIN);
    for (index, size) in sizes.iter().enumerate() {
        let value = vec![index as u8; *size];
        let bytes = batch(&[&value], Offset(index as u64), LeaderEpoch(1));
        assert!(push_batch(&mut builder, &mut region, partition(index as u8 % 3), &bytes));
    }
    let before = builder.sealed_bytes();
    let sealed = builder.seal(&mut region, context);
    assert_eq!(before, sealed.bytes());
    (region[sealed.range.clone()].to_vec(), sealed, builder)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_block_is_read_as_it_was_built(sizes in prop::collection::vec(0_usize..900, 0..90)) {
        let context = context();
        let (bytes, sealed, builder) = block(&sizes, &context);
        prop_assert_eq!(sealed.range.start % BLOCK_ALIGN, 0);
        prop_assert_eq!(sealed.range.end % BLOCK_ALIGN, 0);
        let view = decode_block(&bytes, &context.at).unwrap();
        prop_assert_eq!(view.header.crc, sealed.crc);
        prop_assert_eq!(view.header.durable_end, context.durable_end);
        let entries: Vec<_> = view.entries().collect();
        prop_assert_eq!(entries.len(), sizes.len());
        for (entry, meta) in entries.iter().zip(builder.entries()) {
            prop_assert_eq!(entry.header.partition, meta.partition);
            prop_assert_eq!(entry.header.base_offset, meta.base_offset);
            prop_assert_eq!(entry.header.append_time, meta.append_time);
            prop_assert_eq!(entry.header.max_timestamp, meta.max_timestamp);
            prop_assert_eq!(entry.position, sealed.entry_position(meta));
            // What an index makes of it is enough to read it by itself.
            let at = (entry.position - context.at.position) as usize;
            let expect = EntryExpect {
                generation: context.at.generation,
                partition: meta.partition,
                base_offset: meta.base_offset,
            };
            let (header, payload) = decode_entry(&bytes[at..], &expect).unwrap();
            prop_assert_eq!(header, entry.header);
            prop_assert_eq!(payload, entry.payload);
        }
    }

    #[test]
    fn a_damaged_block_never_panics_and_never_validates(
        sizes in prop::collection::vec(0_usize..600, 1..12),
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let context = context();
        let (mut bytes, _, builder) = block(&sizes, &context);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // Only padding is not covered: bytes that were zero and mean nothing.
        match decode_block(&bytes, &context.at) {
            Err(_) => {}
            Ok(view) => {
                prop_assert_eq!(bytes[at].count_ones(), 1);
                prop_assert_eq!(view.entries().count(), builder.entries().len());
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        let context = context();
        prop_assert!(decode_block(&bytes, &context.at).is_err());
        let expect_entry = EntryExpect {
            generation: context.at.generation,
            partition: partition(0),
            base_offset: Offset::ZERO,
        };
        prop_assert!(decode_entry(&bytes, &expect_entry).is_err());
        // Behind a good beginning too.
        let (good, _, _) = block(&[100, 200], &context);
        if good.len() <= bytes.len() {
            let keep = bytes.len() % 600;
            bytes[..keep].copy_from_slice(&good[..keep]);
            prop_assert!(decode_block(&bytes, &context.at).is_err());
        }
    }

    #[test]
    fn a_block_of_another_generation_never_validates(other in any::<u64>()) {
        let context = context();
        prop_assume!(other != context.at.generation.0);
        let (bytes, _, builder) = block(&[300], &context);
        let other = ChainPoint { generation: Generation(other), ..context.at };
        prop_assert_eq!(decode_block(&bytes, &other).unwrap_err(), BlockError::Generation);
        let meta = &builder.entries()[0];
        let expect = EntryExpect {
            generation: other.generation,
            partition: meta.partition,
            base_offset: meta.base_offset,
        };
        let is_crc = matches!(decode_entry(&bytes[512..], &expect), Err(EntryError::HeaderCrc { .. }));
        prop_assert!(is_crc);
    }
}

#[test]
fn a_small_block_is_one_page() {
    let (bytes, _, _) = block(&[1024], &context());
    assert_eq!(bytes.len(), 4096);
    let (bytes, _, _) = block(&[], &context());
    assert_eq!(bytes.len(), 4096);
}

#[test]
fn header_and_eight_lines_share_the_first_sector() {
    for (entries, start) in [(0, 512), (8, 512), (9, 4096 + 512), (93, 4096 + 512)] {
        let context = context();
        let (bytes, _, _) = block(&vec![0; entries], &context);
        let view = decode_block(&bytes, &context.at).unwrap();
        assert_eq!(view.header.entries_start, start, "{entries} entries");
    }
}

#[test]
fn a_block_closes_when_its_directory_or_its_region_is_full() {
    let mut region = vec![0; REGION_BYTES];
    let mut builder = BlockBuilder::open(REGION_BYTES, DIRECTORY_CAPACITY_MIN);
    let note = |builder: &mut BlockBuilder, region: &mut Vec<u8>| {
        push_note(builder, region, EntryKind::LogStart, partition(0), Offset(1), &[]);
    };
    while builder.fits(0) {
        note(&mut builder, &mut region);
    }
    assert_eq!(builder.entries().len(), DIRECTORY_CAPACITY_MIN);
    assert_eq!(builder.room(), 0);
    assert_eq!(builder.reserve(0), None);
    let capacity = builder.next_directory_capacity();
    assert_eq!(capacity, 2 * DIRECTORY_CAPACITY_MIN, "hit: doubled");

    builder.reset(REGION_BYTES, capacity);
    let room = builder.room();
    assert!(builder.fits(room));
    assert!(!builder.fits(room + 1));
    let payload = vec![7; room];
    push_note(&mut builder, &mut region, EntryKind::Checkpoint, partition(0), Offset(0), &payload);
    assert_eq!(builder.room(), 0);
    assert!(!builder.fits(0));
    assert_eq!(builder.region_used(), REGION_BYTES);
    let mut capacities = vec![capacity];
    while DIRECTORY_CAPACITY_MIN < capacities[capacities.len() - 1] {
        let quiet = BlockBuilder::open(REGION_BYTES, capacities[capacities.len() - 1]);
        capacities.push(quiet.next_directory_capacity());
    }
    assert!(capacities.is_sorted_by(|more, less| less < more), "not hit: it decays");
    let context = context();
    let sealed = builder.seal(&mut region, &context);
    let view = decode_block(&region[sealed.range], &context.at).unwrap();
    assert_eq!(view.entries().next().unwrap().payload, payload);
}

#[test]
fn the_region_for_a_payload_is_exactly_large_enough() {
    for payload in [0, 1, 3000, 4000, 1 << 20] {
        let region = BlockBuilder::region_bytes_for(payload, DIRECTORY_CAPACITY_MIN);
        let builder = BlockBuilder::open(region, DIRECTORY_CAPACITY_MIN);
        assert!(builder.fits(payload));
        assert!(builder.room() - payload < BLOCK_ALIGN);
    }
}

#[test]
fn an_empty_builder_takes_nothing() {
    let mut builder = BlockBuilder::empty();
    assert!(!builder.fits(0));
    assert_eq!(builder.reserve(0), None);
    builder.reset(REGION_BYTES, DIRECTORY_CAPACITY_MIN);
    assert!(builder.fits(100));
}

#[test]
fn a_block_out_of_its_place_does_not_join() {
    let context = context();
    let (bytes, _, _) = block(&[100], &context);
    let good = context.at;
    let error = |point: ChainPoint| decode_block(&bytes, &point).unwrap_err();
    assert_eq!(
        error(ChainPoint { position: 4096, ..good }),
        BlockError::Misplaced { found: 8192, expected: 4096 }
    );
    assert_eq!(
        error(ChainPoint { sequence: BlockSequence(41), ..good }),
        BlockError::Sequence { found: BlockSequence(40), expected: BlockSequence(41) }
    );
    assert_eq!(
        error(ChainPoint { prev_crc: 1, ..good }),
        BlockError::PrevCrc { found: 0xabcd, expected: 1 }
    );
    assert_eq!(
        error(ChainPoint { incarnation: Incarnation(4), ..good }),
        BlockError::Incarnation { found: Incarnation(3), at_least: Incarnation(4) }
    );
    let wal = rustmq_wal::WalId([1; 16]);
    assert_eq!(error(ChainPoint { wal, ..good }), BlockError::Foreign { wal: WAL });
    assert!(decode_block(&bytes, &ChainPoint { incarnation: Incarnation(2), ..good }).is_ok());
    assert_eq!(
        decode_block(&bytes[..2048], &good).unwrap_err(),
        BlockError::Short { needed: 4096, available: 2048 }
    );
}

#[test]
fn a_seal_block_names_the_next_segment() {
    let next =
        NextSegment { sequence: SegmentSequence(5), slot: Slot(2), generation: Generation(99) };
    let context = BlockContext {
        flags: BlockFlags::SEAL,
        next: Some(next),
        durable_end: BlockSequence(40),
        ..context()
    };
    let (bytes, _, _) = block(&[], &context);
    let view = decode_block(&bytes, &context.at).unwrap();
    assert_eq!(view.header.next, Some(next));
}

#[test]
#[should_panic(expected = "everything before a seal or clean block is flushed")]
fn a_clean_block_over_unflushed_ones_is_a_bug() {
    block(&[], &BlockContext { flags: BlockFlags::CLEAN, ..context() });
}

#[test]
#[should_panic(expected = "stamped")]
fn a_batch_that_was_not_stamped_is_a_bug() {
    let mut region = vec![0; REGION_BYTES];
    let mut builder = BlockBuilder::open(REGION_BYTES, DIRECTORY_CAPACITY_MIN);
    let bytes = batch(&[b"x"], Offset(5), LeaderEpoch(1));
    assert!(push_batch(&mut builder, &mut region, partition(0), &bytes));
    let at = builder.entries()[0].payload.start as usize;
    region[at] ^= 1;
    builder.seal(&mut region, &context());
}

#[test]
fn another_entry_at_the_place_is_not_the_one() {
    let context = context();
    let (bytes, _, builder) = block(&[100], &context);
    let meta = &builder.entries()[0];
    let good = EntryExpect {
        generation: context.at.generation,
        partition: meta.partition,
        base_offset: meta.base_offset,
    };
    let entry = &bytes[512..];
    assert!(decode_entry(entry, &good).is_ok());
    let another = EntryError::Another { partition: meta.partition, base_offset: meta.base_offset };
    let wrong = EntryExpect { base_offset: Offset(9), ..good };
    assert_eq!(decode_entry(entry, &wrong), Err(another));
    let wrong = EntryExpect { partition: partition(9), ..good };
    assert_eq!(decode_entry(entry, &wrong), Err(another));
    // Every byte of the batch is covered: by its own checksum, or by the entry's header.
    for at in 0..meta.payload_bytes() {
        let mut entry = entry.to_vec();
        entry[80 + at] ^= 0x40;
        assert!(decode_entry(&entry, &good).is_err(), "byte {at} of the batch");
    }
    let cut = entry[..100].to_vec();
    assert!(matches!(decode_entry(&cut, &good), Err(EntryError::Short { available: 100, .. })));
}

#[test]
fn nothing_of_the_memory_before_leaks_into_a_block() {
    let context = context();
    for sizes in [&[][..], &[1, 2, 3, 4, 5, 6, 7], &[10; 20]] {
        let (bytes, sealed, builder) = block(sizes, &context);
        let mut means = vec![false; bytes.len()];
        means[..128 + 48 * sizes.len()].fill(true);
        for meta in builder.entries() {
            let start = sealed.range.start;
            means[meta.payload.start as usize - 80 - start..meta.payload.end as usize - start]
                .fill(true);
        }
        let rest = bytes.iter().zip(means).filter(|(_, means)| !means);
        assert!(rest.clone().all(|(byte, _)| *byte == 0), "padding is zero");
    }
}

#[test]
fn entries_of_a_block_that_was_cut_do_not_pass_for_those_of_the_one_written_over_it() {
    // Both have the same place, sequence, generation and directory; only their records differ.
    let build = |value: &[u8]| {
        let mut region = vec![0; REGION_BYTES];
        let mut builder = BlockBuilder::open(REGION_BYTES, DIRECTORY_CAPACITY_MIN);
        let bytes = batch(&[value], Offset(0), LeaderEpoch(1));
        assert!(push_batch(&mut builder, &mut region, partition(0), &bytes));
        let sealed = builder.seal(&mut region, &context());
        region[sealed.range].to_vec()
    };
    let (cut, mut over) = (build(b"cut"), build(b"new"));
    assert_eq!(cut[128..512], over[128..512], "the directories agree");
    assert!(decode_block(&over, &context().at).is_ok());
    over[512..].copy_from_slice(&cut[512..]);
    assert_eq!(decode_block(&over, &context().at).unwrap_err(), BlockError::EntriesCrc);
}
