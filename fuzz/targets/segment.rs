//! Trailer, header and table of a segment, with a matching hash in the trailer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use store::segment::{TRAILER_LEN, Table, Trailer, frame_hash, skippable_len, table_frame};

/// Bytes of a header frame that readers ignore: docs/format.md, offset 44 of the content.
const COMMITMENT: std::ops::Range<usize> = 8 + 44..8 + 44 + 32;

fuzz_target!(|file: &[u8]| {
    let Some(table_end) = file.len().checked_sub(TRAILER_LEN) else { return };
    let Ok(trailer) = Trailer::read(&file[table_end..], file.len() as u64) else { return };
    assert!(trailer.table_len() <= file.len() as u64);
    let (body, table) = file[..table_end].split_at(trailer.table_offset as usize);
    let header_len = skippable_len(body).filter(|len| *len <= body.len());
    let Some(header) = header_len.map(|len| &body[..len]) else { return };
    let vouches = Trailer { hash: frame_hash(header, table), ..trailer };
    if let Ok(read) = Table::read(header, table, &vouches) {
        assert_eq!(read.rows.len(), trailer.rows as usize);
        assert!(read.rows.iter().all(|row| row.end() <= u64::from(trailer.table_offset)));
        let mut written = header.to_vec();
        written[COMMITMENT].fill(0);
        assert_eq!(read.header.to_frame(), written);
        assert_eq!(table_frame(&read.rows), table);
    }
});
