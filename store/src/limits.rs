//! What is refused because no store that we wrote can contain it.
//!
//! Everything read from a store is hostile until it was compared with these;
//! they bound memory before anything is allocated.

/// Largest plain size of a chunk, in bytes.
pub const CHUNK_BYTES_MAX: usize = chunker::Parameters::LIMIT_BYTES as usize;

/// Largest stored size of a chunk, in bytes: incompressible content grows a little.
pub const STORED_BYTES_MAX: usize = CHUNK_BYTES_MAX + CHUNK_BYTES_MAX / 128 + 1024;

/// Largest segment file, in bytes.
pub const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// A data segment is closed once it holds this much.
pub const DATA_SEGMENT_BYTES: u64 = 64 << 20;

/// A metadata segment is closed once it holds this much.
pub const METADATA_SEGMENT_BYTES: u64 = 16 << 20;

/// Most chunks in a segment. Keeps its table below 12 MiB.
pub const SEGMENT_CHUNKS_MAX: usize = 256 << 10;

/// Most entries or children in a tree page.
pub const PAGE_ITEMS_MAX: usize = 4096;

/// Longest path of an entry, in bytes: a path of the longest length that
/// system calls take, below a source directory of the same length.
pub const PATH_BYTES_MAX: usize = 8192;

/// Longest name in a path, in bytes: what Linux file systems take.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest target of a symbolic link, in bytes: what Linux takes.
pub const TARGET_BYTES_MAX: usize = 4095;

/// Largest file, in bytes: what system calls take.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Longest name of an extended attribute, in bytes: what Linux takes.
pub const XATTR_NAME_BYTES_MAX: usize = 255;

/// Largest extended attribute, in bytes: what Linux takes.
pub const XATTR_BYTES_MAX: usize = 64 << 10;

/// Most bytes of all extended attributes of an entry, with their names, and 16 for each:
/// a page with all that an entry can have fits a chunk.
pub const XATTRS_BYTES_MAX: usize = 1 << 20;

/// Longest name of a user or group, in bytes.
pub const OWNER_NAME_BYTES_MAX: usize = 255;

/// Largest major number of a device: what Linux takes.
pub const DEVICE_MAJOR_MAX: u32 = (1 << 12) - 1;

/// Largest minor number of a device: what Linux takes.
pub const DEVICE_MINOR_MAX: u32 = (1 << 20) - 1;

/// Levels of a tree. Six bits of fan-out a level make 2^61 entries.
pub const TREE_LEVELS_MAX: u8 = 10;

/// Levels of a recipe.
pub const RECIPE_LEVELS_MAX: u8 = 3;

/// Most extents in an entry and in a recipe chunk that lists them one by one.
pub const RECIPE_EXTENTS_MAX: usize = 4096;

/// Most extents in a recipe chunk of columns. However long its numbers are, it fits a
/// chunk; its extents take 3 MiB of memory.
pub const RECIPE_COLUMNS_MAX: usize = 64 << 10;

/// Files up to this many bytes stand in their tree entry.
pub const INLINE_BYTES_MAX: usize = 512;

/// Largest `store.json` and snapshot record, in bytes.
pub const RECORD_BYTES_MAX: usize = 4 << 20;
