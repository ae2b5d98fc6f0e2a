//! The segment: an immutable file that holds many chunks and a table of them.
//!
//! ```text
//! header   skippable frame   TAG_HEADER   version, kind, mode, store id, salt, store.json
//! body     one zstd frame per chunk
//! table    skippable frame   TAG_TABLE    one row per chunk, in body order
//! trailer  skippable frame   TAG_TRAILER  offset of the table, and a hash of header and table
//! ```
//!
//! All numbers are little-endian. Everything except the chunks is in zstd skippable frames, so
//! `zstd -dc FILE` prints the chunks. `b3sum FILE` prints the file's name. `docs/format.md` shows
//! the bytes; a test compares it with the constants below.

use crate::id::{ChunkId, SegmentId};
use crate::limits;

/// First four bytes of a skippable frame. Zstd decoders skip such frames.
pub const SKIPPABLE_MAGIC: u32 = 0x184D_2A5B;
/// Bytes before a skippable frame's content: the magic and the content's length.
pub const SKIPPABLE_HEAD_LEN: usize = 8;
/// First bytes of the header's content.
pub const TAG_HEADER: &[u8; 8] = b"FKsegmnt";
/// First bytes of the table's content.
pub const TAG_TABLE: &[u8; 8] = b"FKtable\n";
/// First bytes of the trailer's content.
pub const TAG_TRAILER: &[u8; 8] = b"FKtrailr";
/// Version of this layout.
pub const VERSION: u16 = 2;
/// Mode of chunks that are stored as standard zstd frames, without encryption.
pub const MODE_PLAIN: u8 = 0;
/// Length in bytes of the salt.
pub const SALT_LEN: usize = 16;
/// Length in bytes of the space for a commitment to a key; zeros in [`MODE_PLAIN`].
pub const COMMITMENT_LEN: usize = 32;
/// Length in bytes of the fixed part of the header's content, before the copy of `store.json`.
pub const HEADER_FIXED_LEN: usize = 8 + 2 + 1 + 1 + 16 + SALT_LEN + COMMITMENT_LEN;
/// Length in bytes of a table row: id, offset, stored length, plain length.
pub const ROW_LEN: usize = ChunkId::LEN + 4 + 4 + 4;
/// Length in bytes of the whole trailer frame: head, tag, table offset, row count, hash.
pub const TRAILER_LEN: usize = SKIPPABLE_HEAD_LEN + 8 + 4 + 4 + 32;

/// Kind of the chunks in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SegmentKind {
    /// Content of files.
    Data = 1,
    /// Tree pages and recipes.
    Metadata = 2,
}

impl SegmentKind {
    fn from_byte(byte: u8) -> Option<SegmentKind> {
        match byte {
            1 => Some(SegmentKind::Data),
            2 => Some(SegmentKind::Metadata),
            _ => None,
        }
    }
}

/// Position and size of a chunk in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Id of the chunk.
    pub id: ChunkId,
    /// Byte offset in the segment file.
    pub offset: u32,
    /// Stored length in bytes.
    pub stored_len: u32,
    /// Plain length in bytes.
    pub plain_len: u32,
}

impl Row {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.id.as_bytes());
        for number in [self.offset, self.stored_len, self.plain_len] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn read(bytes: &[u8]) -> Option<Row> {
        let (id, rest) = bytes.split_at_checked(ChunkId::LEN)?;
        Some(Row {
            id: ChunkId::from_slice(id)?,
            offset: u32_at(rest, 0)?,
            stored_len: u32_at(rest, 4)?,
            plain_len: u32_at(rest, 8)?,
        })
    }

    /// Returns the byte offset after the last stored byte.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.stored_len)
    }
}

/// The header of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Kind of the chunks.
    pub kind: SegmentKind,
    /// The store this segment was written for.
    pub store_id: [u8; 16],
    /// Random bytes. No segment gets the name of an earlier one, even with the same chunks.
    pub salt: [u8; SALT_LEN],
    /// A copy of that store's `store.json`, in case the file is lost.
    pub config: Vec<u8>,
}

impl Header {
    /// Encodes the whole header frame.
    pub fn to_frame(&self) -> Vec<u8> {
        let mut content = Vec::with_capacity(HEADER_FIXED_LEN + self.config.len());
        content.extend_from_slice(TAG_HEADER);
        content.extend_from_slice(&VERSION.to_le_bytes());
        content.push(self.kind as u8);
        content.push(MODE_PLAIN);
        content.extend_from_slice(&self.store_id);
        content.extend_from_slice(&self.salt);
        content.extend_from_slice(&[0; COMMITMENT_LEN]);
        content.extend_from_slice(&self.config);
        skippable(&content)
    }

    /// Decodes the content of a header frame.
    fn from_content(content: &[u8]) -> Result<Header, Fault> {
        let rest =
            content.strip_prefix(TAG_HEADER).ok_or("it does not begin with a segment header")?;
        let version = u16::from_le_bytes([
            *rest.first().ok_or("its header is truncated")?,
            *rest.get(1).ok_or("its header is truncated")?,
        ]);
        if version != VERSION {
            return Err(Fault::Newer(format!(
                "its version is {version}, and this program reads {VERSION}"
            )));
        }
        let kind =
            rest.get(2).and_then(|b| SegmentKind::from_byte(*b)).ok_or("its kind is unknown")?;
        let mode = *rest.get(3).ok_or("its header is truncated")?;
        if mode != MODE_PLAIN {
            return Err(Fault::Newer(format!("this program does not know encryption mode {mode}")));
        }
        const CONFIG: usize = HEADER_FIXED_LEN - TAG_HEADER.len();
        let fixed = rest.get(4..CONFIG).ok_or("its header is truncated")?;
        Ok(Header {
            kind,
            store_id: fixed[..16].try_into().expect("16 bytes"),
            salt: fixed[16..16 + SALT_LEN].try_into().expect("16 bytes"),
            config: rest[CONFIG..].to_vec(),
        })
    }
}

/// The fixed-size end of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Byte offset of the table frame.
    pub table_offset: u32,
    /// Number of rows in the table.
    pub rows: u32,
    /// BLAKE3 of the header frame followed by the table frame.
    pub hash: [u8; 32],
}

impl Trailer {
    /// Encodes the whole trailer frame.
    pub fn to_frame(self) -> Vec<u8> {
        let mut content = TAG_TRAILER.to_vec();
        content.extend_from_slice(&self.table_offset.to_le_bytes());
        content.extend_from_slice(&self.rows.to_le_bytes());
        content.extend_from_slice(&self.hash);
        skippable(&content)
    }

    /// Decodes the last [`TRAILER_LEN`] bytes of a segment of `file_len` bytes.
    pub fn read(frame: &[u8], file_len: u64) -> Result<Trailer, Fault> {
        let content =
            unskip(frame).filter(|c| frame.len() == TRAILER_LEN && c.starts_with(TAG_TRAILER));
        let content =
            content.ok_or("its trailer is missing; the file was truncated or overwritten")?;
        let trailer = Trailer {
            table_offset: u32_at(content, 8).unwrap_or(0),
            rows: u32_at(content, 12).unwrap_or(0),
            hash: content[16..48].try_into().expect("32 bytes"),
        };
        let expected = u64::from(trailer.table_offset) + trailer.table_len() + TRAILER_LEN as u64;
        if expected != file_len || trailer.rows as usize > limits::SEGMENT_CHUNKS_MAX {
            return Err("its trailer does not match its length".into());
        }
        Ok(trailer)
    }

    /// Returns the length in bytes of the table frame.
    pub fn table_len(&self) -> u64 {
        SKIPPABLE_HEAD_LEN as u64 + 8 + u64::from(self.rows) * ROW_LEN as u64
    }
}

/// Reason why a segment cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The bytes of the segment are wrong.
    #[error("{0}")]
    Damaged(String),
    /// A newer program wrote it.
    #[error("{0}")]
    Newer(String),
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Fault {
        Fault::Damaged(reason.to_owned())
    }
}

/// Header and table of a segment, verified by the trailer's hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The header.
    pub header: Header,
    /// All chunks, in body order and without gaps.
    pub rows: Vec<Row>,
}

/// Encodes the table frame of these rows.
pub fn table_frame(rows: &[Row]) -> Vec<u8> {
    let mut content = Vec::with_capacity(8 + rows.len() * ROW_LEN);
    content.extend_from_slice(TAG_TABLE);
    rows.iter().for_each(|row| row.write(&mut content));
    skippable(&content)
}

/// Returns the hash of header and table that the trailer contains.
pub fn frame_hash(header: &[u8], table: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(header).update(table).finalize().as_bytes()
}

impl Table {
    /// Decodes a segment's header and table frames and checks them.
    pub fn read(header: &[u8], table: &[u8], trailer: &Trailer) -> Result<Table, Fault> {
        if frame_hash(header, table) != trailer.hash {
            return Err("its header or table does not match its trailer".into());
        }
        let head = Header::from_content(unskip(header).ok_or("its header is not a frame")?)?;
        let content = unskip(table)
            .and_then(|content| content.strip_prefix(TAG_TABLE))
            .filter(|content| content.len() == trailer.rows as usize * ROW_LEN)
            .ok_or("its table is malformed")?;
        let mut at = header.len() as u64;
        let mut rows = Vec::with_capacity(trailer.rows as usize);
        for bytes in content.chunks_exact(ROW_LEN) {
            let row = Row::read(bytes).ok_or("its table is truncated")?;
            let sizes_fit = row.plain_len as usize <= limits::CHUNK_BYTES_MAX
                && row.stored_len as usize <= limits::STORED_BYTES_MAX;
            if u64::from(row.offset) != at || !sizes_fit {
                return Err(Fault::Damaged(format!(
                    "its table row of chunk {} is invalid",
                    row.id
                )));
            }
            at = row.end();
            rows.push(row);
        }
        if at != u64::from(trailer.table_offset) {
            return Err("its chunks do not end where its table begins".into());
        }
        Ok(Table { header: head, rows })
    }
}

/// Wraps `content` in a skippable frame.
fn skippable(content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).expect("frames are far below 4 GiB");
    let mut frame = Vec::with_capacity(SKIPPABLE_HEAD_LEN + content.len());
    frame.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(content);
    frame
}

/// Returns the content if `frame` is exactly one skippable frame.
fn unskip(frame: &[u8]) -> Option<&[u8]> {
    let len = skippable_len(frame)?;
    (len == frame.len()).then(|| &frame[SKIPPABLE_HEAD_LEN..])
}

/// Returns the total length of the skippable frame at the start of `bytes`.
pub fn skippable_len(bytes: &[u8]) -> Option<usize> {
    let magic = u32_at(bytes, 0)?;
    let len = u32_at(bytes, 4)? as usize;
    (magic == SKIPPABLE_MAGIC).then_some(SKIPPABLE_HEAD_LEN + len)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
}

/// Returns the file name of a segment, relative to the store.
pub fn file_name(id: &SegmentId) -> String {
    let hex = id.to_string();
    format!("segments/{}/{hex}", &hex[..2])
}

/// Returns the segment that has this file name, if it is the name of one.
pub fn id_of(name: &str) -> Option<SegmentId> {
    SegmentId::from_hex(name.rsplit('/').next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{cases, changed, changes, id, noise};
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// A header, and rows that follow it without gaps.
    fn parts() -> impl Strategy<Value = (Header, Vec<Row>)> {
        let kind = prop_oneof![Just(SegmentKind::Data), Just(SegmentKind::Metadata)];
        let header = (kind, any::<[u8; 16]>(), any::<[u8; SALT_LEN]>(), noise())
            .prop_map(|(kind, store_id, salt, config)| Header { kind, store_id, salt, config });
        let stored_len = 0..=limits::STORED_BYTES_MAX as u32;
        let plain_len = 0..=limits::CHUNK_BYTES_MAX as u32;
        (header, vec((id(), stored_len, plain_len), 0..20)).prop_map(|(header, sizes)| {
            let mut offset = header.to_frame().len() as u32;
            let row = |(id, stored_len, plain_len)| {
                let row = Row { id, offset, stored_len, plain_len };
                offset += stored_len;
                row
            };
            let rows = sizes.into_iter().map(row).collect();
            (header, rows)
        })
    }

    fn trailer(header: &[u8], table: &[u8], table_offset: u32, rows: usize) -> Trailer {
        Trailer { table_offset, rows: rows as u32, hash: frame_hash(header, table) }
    }

    fn table_offset(header: &[u8], rows: &[Row]) -> u32 {
        rows.last().map_or(header.len() as u32, |row| row.end() as u32)
    }

    proptest! {
        #![proptest_config(cases(200))]

        #[test]
        fn any_table_is_read_as_written((header, rows) in parts()) {
            let (head, table) = (header.to_frame(), table_frame(&rows));
            prop_assert_eq!(skippable_len(&head), Some(head.len()));
            let offset = table_offset(&head, &rows);
            let written = trailer(&head, &table, offset, rows.len());
            let file_len = u64::from(offset) + table.len() as u64 + TRAILER_LEN as u64;
            let frame = written.to_frame();
            prop_assert_eq!(frame.len(), TRAILER_LEN);
            let read = Trailer::read(&frame, file_len).expect("reads what it wrote");
            prop_assert_eq!(read, written);
            prop_assert_eq!(read.table_len(), table.len() as u64);
            prop_assert!(Trailer::read(&frame, file_len + 1).is_err());
            let read = Table::read(&head, &table, &read).expect("reads what it wrote");
            prop_assert_eq!(read, Table { header, rows });
        }

        #[test]
        fn any_bytes_are_a_table_or_an_error(
            (header, rows) in parts(),
            noise in noise(),
            changes in changes(),
            file_len: u64,
        ) {
            let _ = Trailer::read(&noise, file_len);
            let _ = skippable_len(&noise);
            let (head, table) = (header.to_frame(), table_frame(&rows));
            let offset = table_offset(&head, &rows);
            let frame = trailer(&head, &table, offset, rows.len()).to_frame();
            let _ = Trailer::read(&changed(frame, &changes), file_len);
            let (other_head, other_table) =
                (changed(head.clone(), &changes), changed(table.clone(), &changes));
            for (head, table) in
                [(&other_head, &table), (&head, &other_table), (&noise, &table), (&head, &noise)]
            {
                // With a trailer whose hash matches the damage.
                let vouches = trailer(head, table, offset, rows.len());
                if let Ok(read) = Table::read(head, table, &vouches) {
                    prop_assert_eq!(read.rows.len(), rows.len());
                    prop_assert_eq!(table_offset(head, &read.rows), offset);
                }
            }
        }
    }
}
