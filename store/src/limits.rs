//! Limits on data read from a store.
//!
//! Everything read from a store is hostile until it was checked against these limits. No valid
//! store exceeds them. They bound memory before anything is allocated.

/// Maximum plain size of a chunk in bytes.
pub const CHUNK_BYTES_MAX: usize = chunker::Parameters::LIMIT_BYTES as usize;

/// Maximum stored size of a chunk in bytes: incompressible content grows a little.
pub const STORED_BYTES_MAX: usize = CHUNK_BYTES_MAX + CHUNK_BYTES_MAX / 128 + 1024;

/// Maximum size of a segment file in bytes.
pub const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// Size in bytes at which a data segment is full.
pub const DATA_SEGMENT_BYTES: u64 = 64 << 20;

/// Size in bytes at which a metadata segment is full.
pub const METADATA_SEGMENT_BYTES: u64 = 16 << 20;

/// Maximum number of chunks in a segment. Keeps its table below 12 MiB.
pub const SEGMENT_CHUNKS_MAX: usize = 256 << 10;

/// Maximum number of entries or children in a tree page.
pub const PAGE_ITEMS_MAX: usize = 4096;

/// Maximum length of an entry's path in bytes: the longest path that system calls accept, below a
/// source directory of the same length.
pub const PATH_BYTES_MAX: usize = 8192;

/// Maximum length of a name in a path in bytes: the limit of Linux file systems.
pub const NAME_BYTES_MAX: usize = 255;

/// Maximum length of a symbolic link's target in bytes: the limit of Linux.
pub const TARGET_BYTES_MAX: usize = 4095;

/// Maximum size of a file in bytes: the limit of system calls.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Maximum length of an extended attribute's name in bytes: the limit of Linux.
pub const XATTR_NAME_BYTES_MAX: usize = 255;

/// Maximum size of an extended attribute in bytes: the limit of Linux.
pub const XATTR_BYTES_MAX: usize = 64 << 10;

/// Maximum bytes of all extended attributes of an entry: values, names, and 16 for each attribute.
/// A page with the largest possible entry fits in a chunk.
pub const XATTRS_BYTES_MAX: usize = 1 << 20;

/// Maximum length of a user or group name in bytes.
pub const OWNER_NAME_BYTES_MAX: usize = 255;

/// Maximum bytes of the names of users and groups in the ACLs of an entry: the names, and 16 for
/// each.
pub const ACL_NAMES_BYTES_MAX: usize = 1 << 20;

/// Maximum number of names in the table of a leaf: those of a leaf that is nearly full, and those of
/// its last entry.
pub const PAGE_NAMES_MAX: usize = 128 << 10;

/// Maximum major number of a device: the limit of Linux.
pub const DEVICE_MAJOR_MAX: u32 = (1 << 12) - 1;

/// Maximum minor number of a device: the limit of Linux.
pub const DEVICE_MINOR_MAX: u32 = (1 << 20) - 1;

/// Maximum levels of a tree. Six bits of fan-out per level give 2^61 entries.
pub const TREE_LEVELS_MAX: u8 = 10;

/// Maximum levels of a recipe.
pub const RECIPE_LEVELS_MAX: u8 = 3;

/// Maximum number of extents in an entry, and in a recipe chunk that lists them one by one.
pub const RECIPE_EXTENTS_MAX: usize = 4096;

/// Maximum number of extents in a recipe chunk of columns. However long its numbers are, it fits in
/// a chunk. Its extents take 3 MiB of memory.
pub const RECIPE_COLUMNS_MAX: usize = 64 << 10;

/// Maximum size in bytes of a file stored in its tree entry.
pub const INLINE_BYTES_MAX: usize = 512;

/// Maximum size in bytes of `store.json`, of a snapshot record, and of the record of a check.
pub const RECORD_BYTES_MAX: usize = 4 << 20;

/// Maximum size in bytes of an added tag.
pub const TAG_BYTES_MAX: usize = 64 << 10;
