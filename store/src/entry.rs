//! An entry: everything stored about one file, directory or other object.

use crate::acl::AclNames;
use crate::limits;
use crate::recipe::{Extent, Recipe, decode_extents, encode_extents};
use memchr::{memchr, memchr_iter};
use minicbor::{Decoder, Encoder, decode};
use std::cmp::Ordering;
use std::sync::Arc;

pub use crate::text::{Displayed, display_path, is_deceptive};

/// A point in time: seconds since 1970 (UTC), possibly negative, and nanoseconds within the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// Largest number of nanoseconds within a second.
const NANOSECONDS_MAX: u32 = 999_999_999;

impl Time {
    /// Returns the time with at most 999,999,999 nanoseconds. Some file systems return more.
    pub fn clamped(self) -> Time {
        Time { nanoseconds: self.nanoseconds.min(NANOSECONDS_MAX), ..self }
    }
}

/// Type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A named pipe.
    Fifo = 4,
    /// A Unix socket.
    Socket = 5,
    /// A character device.
    CharDevice = 6,
    /// A block device.
    BlockDevice = 7,
}

impl EntryKind {
    pub(crate) const ALL: [EntryKind; 7] = [
        EntryKind::File,
        EntryKind::Directory,
        EntryKind::Symlink,
        EntryKind::Fifo,
        EntryKind::Socket,
        EntryKind::CharDevice,
        EntryKind::BlockDevice,
    ];

    /// Returns the name of the kind, for messages.
    pub fn name(self) -> &'static str {
        match self {
            EntryKind::File => "a file",
            EntryKind::Directory => "a directory",
            EntryKind::Symlink => "a symbolic link",
            EntryKind::Fifo => "a FIFO",
            EntryKind::Socket => "a socket",
            EntryKind::CharDevice => "a character device",
            EntryKind::BlockDevice => "a block device",
        }
    }

    /// Returns its letter, as `ls -l` and `find -type` use it.
    pub fn letter(self) -> char {
        match self {
            EntryKind::File => '-',
            EntryKind::Directory => 'd',
            EntryKind::Symlink => 'l',
            EntryKind::Fifo => 'p',
            EntryKind::Socket => 's',
            EntryKind::CharDevice => 'c',
            EntryKind::BlockDevice => 'b',
        }
    }
}

/// Owner of an entry: numbers, and names if the source machine had them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Owner {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// User name.
    pub user: Option<Vec<u8>>,
    /// Group name.
    pub group: Option<Vec<u8>>,
}

/// Group of source files that share one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HardLink {
    /// Number of the file system within the snapshot. Together with the inode number it identifies
    /// the group. Device numbers would change with every restart or block snapshot.
    pub file_system: u64,
    /// Number of names of the inode, inside and outside of the source paths.
    pub names: u64,
}

/// Hash of everything that all names of one file share.
pub type LinkKey = [u8; 32];

/// Content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Content {
    /// No content: an empty file, or not a file.
    #[default]
    Empty,
    /// Bytes stored in the entry.
    Inline(Vec<u8>),
    /// Bytes stored in chunks.
    Recipe(Recipe),
}

/// Names and values of extended attributes.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A tree entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Absolute path without the leading `/`. Any bytes except NUL; `/` separates components.
    pub path: Vec<u8>,
    /// Type.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Owner and group.
    pub owner: Arc<Owner>,
    /// Last change of content. `None` for directories above a source path: their times change with
    /// every neighbour and are not restored.
    pub mtime: Option<Time>,
    /// Last change of the inode on the source, to detect changes. `None` if metadata could not be
    /// read, so that the next backup tries again.
    pub ctime: Option<Time>,
    /// Inode number on the source, to detect changes and to group hard links.
    pub inode: u64,
    /// Size of a file in bytes; 0 for everything else.
    pub size: u64,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
    /// Set if the inode has more than one name.
    pub hard_link: Option<HardLink>,
    /// Extended attributes, including POSIX ACLs, sorted by name.
    pub xattrs: Xattrs,
    /// Names of the users and groups in its POSIX ACLs, if the source machine had any.
    pub acl_names: Option<Arc<AclNames>>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// Content of a file.
    pub content: Content,
    /// Bytes of referenced chunks that this entry does not use. Another snapshot may or may not
    /// need them. 0 for files whose chunks were made for them.
    pub unused: u64,
}

impl Entry {
    /// Creates an entry without content and with default metadata.
    pub fn new(path: Vec<u8>, kind: EntryKind, mode: u32) -> Entry {
        Entry {
            path,
            kind,
            mode,
            owner: Arc::default(),
            mtime: None,
            ctime: None,
            inode: 0,
            size: 0,
            target: Vec::new(),
            hard_link: None,
            xattrs: Vec::new(),
            acl_names: None,
            device: None,
            content: Content::Empty,
            unused: 0,
        }
    }

    /// Returns a key that all names of this entry's inode share; `None` if it has one name.
    ///
    /// File system and inode number are not enough: a file deleted during a backup may pass its
    /// number to a new file. Names of one file may have different extents with the same bytes, if one
    /// name was taken over from an earlier snapshot and the other was read.
    pub fn link_key(&self) -> Option<LinkKey> {
        let file_system = self.hard_link?.file_system;
        // Without values that differ between names, or change when a name is added or removed.
        let alike = Entry {
            path: b"-".to_vec(),
            ctime: None,
            hard_link: None,
            unused: 0,
            // Without a time, only the content tells files apart.
            content: self.mtime.map_or_else(|| self.content.clone(), |_| Content::Empty),
            ..self.clone()
        };
        let mut bytes = Vec::new();
        alike.encode(b"", 0, &mut bytes);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&file_system.to_le_bytes());
        hasher.update(&self.owner.uid.to_le_bytes()).update(&self.owner.gid.to_le_bytes());
        Some(*hasher.update(&bytes).finalize().as_bytes())
    }

    /// Returns true if the backup read all metadata. Otherwise the entry has an `mtime` but no
    /// `ctime`, so that the next backup tries again.
    pub fn has_all_metadata(&self) -> bool {
        self.mtime.is_none() || self.ctime.is_some()
    }

    /// Returns the last component of the path.
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }
}

/// Compares paths in tree order: component by component, so that a directory's content follows it.
///
/// Equals a comparison of bytes in which `/` precedes every other byte.
pub fn path_cmp(a: &[u8], b: &[u8]) -> Ordering {
    let common = a.iter().zip(b).position(|(x, y)| x != y);
    let Some(at) = common else { return a.len().cmp(&b.len()) };
    let rank = |byte: u8| if byte == b'/' { 0 } else { byte };
    // Paths contain no NUL, so nothing else has rank 0.
    rank(a[at]).cmp(&rank(b[at]))
}

/// Returns true if `path` is `ancestor` or below it. Every path is below the empty path.
pub fn is_within(path: &[u8], ancestor: &[u8]) -> bool {
    match path.strip_prefix(ancestor) {
        Some(rest) => rest.is_empty() || rest[0] == b'/' || ancestor.is_empty(),
        None => false,
    }
}

/// Returns true if a path at or below `ancestor` may lie between `from` and `until`, in path order.
/// `until` itself does not; `None` is the end of all paths.
pub fn is_within_reach(ancestor: &[u8], from: &[u8], until: Option<&[u8]>) -> bool {
    let begins = path_cmp(from, ancestor).is_le() || is_within(from, ancestor);
    // Paths below a directory follow the directory itself.
    begins && until.is_none_or(|until| path_cmp(until, ancestor).is_gt())
}

/// Returns true if an entry can have this path.
pub fn is_valid_path(path: &[u8]) -> bool {
    check_path(path).is_ok()
}

/// Reason why a reader refuses an entry. The caller adds its path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// The path has this many bytes.
    #[error("its path has {0} bytes; the maximum is {max}", max = limits::PATH_BYTES_MAX)]
    PathTooLong(usize),
    /// A component of the path has this many bytes.
    #[error("a name in its path has {0} bytes; the maximum is {max}", max = limits::NAME_BYTES_MAX)]
    NameTooLong(usize),
    /// The path has a NUL, or a component that is empty, `.` or `..`.
    #[error("its path is invalid")]
    Path,
    /// The mode has bits that no mode has.
    #[error("its mode is invalid")]
    Mode,
    /// No file can have this owner.
    #[error("its owner is invalid")]
    Owner,
    /// A time exceeds its second.
    #[error("a timestamp has more than 999999999 nanoseconds")]
    Time,
    /// The target of a link is empty, too long or has a NUL.
    #[error("its link target is invalid")]
    Target,
    /// No device has these numbers.
    #[error("its device numbers {0}, {1} are out of range")]
    Device(u32, u32),
    /// The attribute of this name, for display, is invalid.
    #[error("its extended attribute {0} is invalid")]
    Xattr(String),
    /// All attributes together take this many bytes.
    #[error(
        "its extended attributes take {0} bytes; the maximum is {max}",
        max = limits::XATTRS_BYTES_MAX
    )]
    XattrsTooLong(usize),
    /// Content in the entry itself exceeds its limit.
    #[error("its inline content is too long")]
    InlineTooLong,
    /// The recipe exceeds a limit.
    #[error("its recipe has too many levels or extents")]
    RecipeTooLarge,
    /// The lengths in the recipe have no sum.
    #[error("its recipe exceeds the maximum file size")]
    RecipeTooLong,
    /// The size is not that of the content.
    #[error("its size does not match its content")]
    Size,
    /// The size exceeds its limit.
    #[error("it exceeds the maximum file size")]
    TooLong,
    /// A field cannot be decoded, for this reason.
    #[error("{0}")]
    Field(String),
    /// The path is missing, or continues an unknown one.
    #[error("its path is unknown")]
    NoPath,
    /// The kind is missing, or one of a newer version.
    #[error("its kind is unknown")]
    NoKind,
    /// The mode is missing.
    #[error("its mode is missing")]
    NoMode,
    /// The owner is missing.
    #[error("its owner is missing")]
    NoOwner,
    /// The path does not follow the previous one.
    #[error("it is out of order")]
    Order,
    /// The entry with this path, for display, is above it and is not a directory.
    #[error("it is below /{0}, which is not a directory")]
    BelowFile(String),
    /// The path is outside the range of its page.
    #[error("it belongs to another page")]
    OtherPage,
    /// The next page begins with an entry below this one.
    #[error("it has entries below it, but is not a directory")]
    NotDirectory,
}

/// Checks that an entry can have this path, and returns the fault otherwise. The path must be
/// relative, without NUL, without empty, `.` or `..` components, and within the length limits.
pub(crate) fn check_path(path: &[u8]) -> Result<(), EntryFault> {
    let len = path.len();
    if len > limits::PATH_BYTES_MAX {
        return Err(EntryFault::PathTooLong(len));
    }
    if memchr(0, path).is_some() {
        return Err(EntryFault::Path);
    }
    let mut begin = 0;
    for end in memchr_iter(b'/', path).chain([len]) {
        check_name(&path[begin..end])?;
        begin = end + 1;
    }
    Ok(())
}

/// Like [`check_path`], for a name that a file system listed in a directory whose path was checked.
pub(crate) fn check_child(path: &[u8], name: &[u8]) -> Result<(), EntryFault> {
    if path.len() > limits::PATH_BYTES_MAX { check_path(path) } else { check_name(name) }
}

fn check_name(name: &[u8]) -> Result<(), EntryFault> {
    if name.len() > limits::NAME_BYTES_MAX {
        return Err(EntryFault::NameTooLong(name.len()));
    }
    if matches!(name, b"" | b"." | b"..") {
        return Err(EntryFault::Path);
    }
    Ok(())
}

mod field {
    pub const SHARED: u32 = 0;
    pub const SUFFIX: u32 = 1;
    pub const KIND: u32 = 2;
    pub const MODE: u32 = 3;
    pub const OWNER: u32 = 4;
    pub const MTIME: u32 = 5;
    pub const CTIME: u32 = 6;
    pub const INODE: u32 = 7;
    pub const SIZE: u32 = 8;
    pub const TARGET: u32 = 9;
    pub const HARD_LINK: u32 = 10;
    pub const XATTRS: u32 = 11;
    pub const DEVICE: u32 = 12;
    pub const INLINE: u32 = 13;
    pub const EXTENTS: u32 = 14;
    pub const LEVEL: u32 = 15;
    pub const UNUSED: u32 = 16;
}

type Out<'a> = Encoder<&'a mut Vec<u8>>;
type EncodeResult = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

impl Entry {
    /// Appends the entry in a page's encoding: without the prefix that its path shares with
    /// `previous`, and without the names in its ACLs. `owner` is a row of the page's owner table.
    pub(crate) fn encode(&self, previous: &[u8], owner: u32, out: &mut Vec<u8>) {
        let shared = previous.iter().zip(&self.path).take_while(|(a, b)| a == b).count();
        let mut out = Encoder::new(out);
        self.encode_fields(shared, owner, &mut out).expect("writing to memory cannot fail");
    }

    fn encode_fields(&self, shared: usize, owner: u32, out: &mut Out<'_>) -> EncodeResult {
        let fields = 4
            + u64::from(shared > 0)
            + u64::from(self.mtime.is_some())
            + u64::from(self.ctime.is_some())
            + u64::from(self.inode != 0)
            + u64::from(self.size != 0)
            + u64::from(!self.target.is_empty())
            + u64::from(self.hard_link.is_some())
            + u64::from(!self.xattrs.is_empty())
            + u64::from(self.device.is_some())
            + u64::from(self.unused != 0)
            + match &self.content {
                Content::Empty => 0,
                Content::Inline(_) => 1,
                Content::Recipe(recipe) => 1 + u64::from(recipe.level > 0),
            };
        out.map(fields)?;
        if shared > 0 {
            out.u32(field::SHARED)?.u64(shared as u64)?;
        }
        out.u32(field::SUFFIX)?.bytes(&self.path[shared..])?;
        out.u32(field::KIND)?.u8(self.kind as u8)?;
        out.u32(field::MODE)?.u32(self.mode)?;
        out.u32(field::OWNER)?.u32(owner)?;
        for (number, time) in [(field::MTIME, self.mtime), (field::CTIME, self.ctime)] {
            if let Some(time) = time {
                out.u32(number)?.array(2)?.i64(time.seconds)?.u32(time.nanoseconds)?;
            }
        }
        if self.inode != 0 {
            out.u32(field::INODE)?.u64(self.inode)?;
        }
        if self.size != 0 {
            out.u32(field::SIZE)?.u64(self.size)?;
        }
        if !self.target.is_empty() {
            out.u32(field::TARGET)?.bytes(&self.target)?;
        }
        if let Some(link) = self.hard_link {
            out.u32(field::HARD_LINK)?.array(2)?.u64(link.file_system)?.u64(link.names)?;
        }
        if !self.xattrs.is_empty() {
            out.u32(field::XATTRS)?.array(2 * self.xattrs.len() as u64)?;
            for (name, value) in &self.xattrs {
                out.bytes(name)?.bytes(value)?;
            }
        }
        if let Some((major, minor)) = self.device {
            out.u32(field::DEVICE)?.array(2)?.u32(major)?.u32(minor)?;
        }
        match &self.content {
            Content::Empty => {}
            Content::Inline(bytes) => drop(out.u32(field::INLINE)?.bytes(bytes)?),
            Content::Recipe(recipe) => {
                encode_extents(&recipe.extents, out.u32(field::EXTENTS)?);
                if recipe.level > 0 {
                    out.u32(field::LEVEL)?.u8(recipe.level)?;
                }
            }
        }
        if self.unused != 0 {
            out.u32(field::UNUSED)?.u64(self.unused)?;
        }
        Ok(())
    }

    /// Decodes an entry of a page, without the names in its ACLs. `previous` is the path of the previous entry in the page, or
    /// `None` if that path could not be read.
    ///
    /// Skips unknown fields. A malformed entry affects only itself: `input` is left after it. Fails
    /// if the end of the entry cannot be found.
    pub(crate) fn decode(
        previous: Option<&[u8]>,
        owners: &[Option<Arc<Owner>>],
        input: &mut Decoder<'_>,
    ) -> Result<Decoded, decode::Error> {
        let start = input.position();
        let mut fields = Fields::new();
        if let Err(error) = fields.read(owners, input) {
            input.set_position(start);
            input.skip()?;
            fields.error.get_or_insert(error);
        }
        let path = fields.path(previous);
        let result = fields.entry(path.as_deref());
        Ok(Decoded { path, result })
    }

    /// Decodes an entry that this process encoded after its own path, even if the entry breaks the
    /// rules for entries.
    pub(crate) fn decode_own(
        path: &[u8],
        owners: &[Option<Arc<Owner>>],
        input: &mut Decoder<'_>,
    ) -> Result<Entry, EntryFault> {
        let mut fields = Fields::new();
        fields.read(owners, input).map_err(|error| EntryFault::Field(error.to_string()))?;
        fields.unchecked(Some(path))
    }

    /// Checks the rules for every entry. The reader refuses an entry that breaks one; the writer
    /// leaves it out.
    ///
    /// Fails with the first fault.
    pub fn check(&self) -> Result<(), EntryFault> {
        check_path(&self.path)?;
        self.check_metadata()?;
        self.check_content()
    }

    fn check_metadata(&self) -> Result<(), EntryFault> {
        if self.mode > 0o7777 {
            return Err(EntryFault::Mode);
        }
        if !self.owner.is_valid() {
            return Err(EntryFault::Owner);
        }
        let times = [self.mtime, self.ctime];
        if times.iter().flatten().any(|time| time.nanoseconds > NANOSECONDS_MAX) {
            return Err(EntryFault::Time);
        }
        if self.kind == EntryKind::Symlink {
            check_target(&self.target)?;
        }
        let (major, minor) = self.device.unwrap_or_default();
        if major > limits::DEVICE_MAJOR_MAX || minor > limits::DEVICE_MINOR_MAX {
            return Err(EntryFault::Device(major, minor));
        }
        if let Some((name, _)) = self.xattrs.iter().find(|xattr| !is_valid_xattr(xattr)) {
            let name = display_path(&name[..name.len().min(limits::XATTR_NAME_BYTES_MAX)]);
            return Err(EntryFault::Xattr(name));
        }
        let bytes: usize = self.xattrs.iter().map(xattr_bytes).sum();
        if bytes > limits::XATTRS_BYTES_MAX {
            return Err(EntryFault::XattrsTooLong(bytes));
        }
        Ok(())
    }

    fn check_content(&self) -> Result<(), EntryFault> {
        let len = match &self.content {
            Content::Empty => 0,
            Content::Inline(bytes) if bytes.len() > limits::INLINE_BYTES_MAX => {
                return Err(EntryFault::InlineTooLong);
            }
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Recipe(recipe) => {
                if recipe.level > limits::RECIPE_LEVELS_MAX
                    || recipe.extents.len() > limits::RECIPE_EXTENTS_MAX
                {
                    return Err(EntryFault::RecipeTooLarge);
                }
                let sum = |sum: u64, extent: &Extent| sum.checked_add(extent.len());
                let len = recipe.extents.iter().try_fold(0, sum);
                len.ok_or(EntryFault::RecipeTooLong)?
            }
        };
        if len != self.size || (self.size != 0 && self.kind != EntryKind::File) {
            return Err(EntryFault::Size);
        }
        if self.size > limits::FILE_BYTES_MAX {
            return Err(EntryFault::TooLong);
        }
        Ok(())
    }

    /// Changes metadata that cannot be stored unchanged, so that the content is not lost with it.
    pub(crate) fn amend(&mut self) -> Amendment {
        let mut amendment = Amendment::default();
        for time in [&mut self.mtime, &mut self.ctime].into_iter().flatten() {
            amendment.is_time_clamped |= *time != time.clamped();
            *time = time.clamped();
        }
        if !self.owner.is_valid() {
            self.owner = Arc::new(self.owner.amended());
            amendment.is_owner_changed = true;
        }
        let (count, mut bytes) = (self.xattrs.len(), 0);
        // Sorted by name: ACLs and capabilities precede `user.` attributes.
        self.xattrs.retain(|xattr| {
            let with = bytes + xattr_bytes(xattr);
            let is_kept = is_valid_xattr(xattr) && with <= limits::XATTRS_BYTES_MAX;
            bytes = if is_kept { with } else { bytes };
            is_kept
        });
        amendment.xattrs_dropped = count - self.xattrs.len();
        if let Some(names) = &self.acl_names {
            self.acl_names = names.within(&self.xattrs);
        }
        if amendment.is_owner_changed || amendment.xattrs_dropped > 0 {
            // The next backup then reads and reports it again.
            self.ctime = None;
        }
        amendment
    }
}

/// Changes made by [`Entry::amend`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Amendment {
    /// A time had more nanoseconds than a second.
    pub is_time_clamped: bool,
    /// The owner has an impossible number or a name that is too long.
    pub is_owner_changed: bool,
    /// Number of dropped extended attributes.
    pub xattrs_dropped: usize,
}

impl Owner {
    /// Returns true if a file can have this owner. To system calls, the largest number means
    /// "none".
    fn is_valid(&self) -> bool {
        let is_short = |name: &Vec<u8>| name.len() <= limits::OWNER_NAME_BYTES_MAX;
        let names = [&self.user, &self.group];
        self.uid != u32::MAX && self.gid != u32::MAX && names.into_iter().flatten().all(is_short)
    }

    /// Returns the owner to store instead of an impossible one. `nobody` replaces an impossible
    /// number; a name that is too long is dropped.
    fn amended(&self) -> Owner {
        const NOBODY: u32 = 65_534;
        let number = |id| if id == u32::MAX { NOBODY } else { id };
        let is_short = |name: &&Vec<u8>| name.len() <= limits::OWNER_NAME_BYTES_MAX;
        let name = |name: &Option<Vec<u8>>| name.as_ref().filter(is_short).cloned();
        let (uid, gid) = (number(self.uid), number(self.gid));
        Owner { uid, gid, user: name(&self.user), group: name(&self.group) }
    }
}

fn check_target(target: &[u8]) -> Result<(), EntryFault> {
    if target.is_empty() || target.contains(&0) || target.len() > limits::TARGET_BYTES_MAX {
        return Err(EntryFault::Target);
    }
    Ok(())
}

fn is_valid_xattr((name, value): &(Vec<u8>, Vec<u8>)) -> bool {
    (1..=limits::XATTR_NAME_BYTES_MAX).contains(&name.len())
        && !name.contains(&0)
        && value.len() <= limits::XATTR_BYTES_MAX
}

/// Bytes that an attribute counts for besides name and value: its overhead in memory and in a page.
const XATTR_PLACE_BYTES: usize = 16;

/// Returns the number of bytes that an attribute counts for.
fn xattr_bytes((name, value): &(Vec<u8>, Vec<u8>)) -> usize {
    name.len() + value.len() + XATTR_PLACE_BYTES
}

/// An entry decoded from a page.
pub(crate) struct Decoded {
    /// Path of the entry, valid or not, because the next entry may share its prefix. `None` if it
    /// could not be read. A path beyond the limit is cut.
    pub path: Option<Vec<u8>>,
    /// The entry, or its fault.
    pub result: Result<Entry, EntryFault>,
}

/// Fields of an entry in a page, as far as they could be read.
struct Fields<'p> {
    shared: u64,
    suffix: Option<&'p [u8]>,
    kind: Option<EntryKind>,
    mode: Option<u32>,
    owner: Option<Arc<Owner>>,
    /// All other fields.
    entry: Entry,
    level: u8,
    /// First error found.
    error: Option<decode::Error>,
}

impl<'p> Fields<'p> {
    fn new() -> Fields<'p> {
        let entry = Entry::new(Vec::new(), EntryKind::File, 0);
        let (suffix, kind, mode, owner, error) = Default::default();
        Fields { shared: 0, suffix, kind, mode, owner, entry, level: 0, error }
    }

    /// Reads all fields. Records and skips malformed values.
    fn read(
        &mut self,
        owners: &[Option<Arc<Owner>>],
        input: &mut Decoder<'p>,
    ) -> Result<(), decode::Error> {
        let count = input.map()?.ok_or_else(|| decode::Error::message("indefinite length"))?;
        for _ in 0..count {
            let number = input.u32()?;
            let start = input.position();
            if let Err(error) = self.field(number, owners, input) {
                self.error.get_or_insert(error);
                input.set_position(start);
                input.skip()?;
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        number: u32,
        owners: &[Option<Arc<Owner>>],
        input: &mut Decoder<'p>,
    ) -> Result<(), decode::Error> {
        let entry = &mut self.entry;
        match number {
            field::SHARED => {
                // If this value is malformed, the path stays unknown.
                self.shared = u64::MAX;
                self.shared = input.u64()?;
            }
            field::SUFFIX => self.suffix = Some(input.bytes()?),
            field::KIND => {
                let byte = input.u8()?;
                self.kind = EntryKind::ALL.into_iter().find(|kind| *kind as u8 == byte);
            }
            field::MODE => self.mode = Some(input.u32()?),
            field::OWNER => self.owner = owners.get(input.u32()? as usize).cloned().flatten(),
            field::MTIME => entry.mtime = Some(time(input)?),
            field::CTIME => entry.ctime = Some(time(input)?),
            field::INODE => entry.inode = input.u64()?,
            field::SIZE => entry.size = input.u64()?,
            field::TARGET => entry.target = input.bytes()?.to_vec(),
            field::HARD_LINK => {
                pair(input)?;
                let (file_system, names) = (input.u64()?, input.u64()?);
                entry.hard_link = Some(HardLink { file_system, names });
            }
            field::XATTRS => entry.xattrs = xattrs(input)?,
            field::DEVICE => {
                pair(input)?;
                entry.device = Some((input.u32()?, input.u32()?));
            }
            field::INLINE => entry.content = Content::Inline(input.bytes()?.to_vec()),
            field::EXTENTS => {
                let extents = decode_extents(input)?;
                entry.content = Content::Recipe(Recipe { level: 0, extents });
            }
            field::LEVEL => self.level = input.u8()?,
            field::UNUSED => entry.unused = input.u64()?,
            _ => input.skip()?,
        }
        Ok(())
    }

    /// Returns the path. Returns `None` if it is missing or depends on an unknown previous path.
    fn path(&self, previous: Option<&[u8]>) -> Option<Vec<u8>> {
        let suffix = self.suffix?;
        let shared = match usize::try_from(self.shared).ok()? {
            0 => b"",
            shared => previous?.get(..shared)?,
        };
        // One byte beyond the limit suffices to detect a path that is too long. More would waste
        // memory.
        let space = (limits::PATH_BYTES_MAX + 1).saturating_sub(shared.len());
        Some([shared, &suffix[..suffix.len().min(space)]].concat())
    }

    fn entry(self, path: Option<&[u8]>) -> Result<Entry, EntryFault> {
        let entry = self.unchecked(path)?;
        entry.check()?;
        Ok(entry)
    }

    /// Returns the entry even if it breaks the rules for entries.
    fn unchecked(self, path: Option<&[u8]>) -> Result<Entry, EntryFault> {
        let Fields { kind, mode, owner, mut entry, level, error, .. } = self;
        if let Some(error) = error {
            return Err(EntryFault::Field(error.to_string()));
        }
        entry.path = path.ok_or(EntryFault::NoPath)?.to_vec();
        entry.kind = kind.ok_or(EntryFault::NoKind)?;
        entry.mode = mode.ok_or(EntryFault::NoMode)?;
        entry.owner = owner.ok_or(EntryFault::NoOwner)?;
        if let Content::Recipe(recipe) = &mut entry.content {
            recipe.level = level;
        }
        Ok(entry)
    }
}

impl Owner {
    /// Appends the owner in a page's encoding.
    pub(crate) fn encode(&self, out: &mut Out<'_>) -> EncodeResult {
        out.array(4)?.u32(self.uid)?.u32(self.gid)?;
        for name in [&self.user, &self.group] {
            match name {
                Some(name) => out.bytes(name)?,
                None => out.null()?,
            };
        }
        Ok(())
    }

    /// Decodes an owner of a page. Returns `None` for an owner that no file can have.
    pub(crate) fn decode(input: &mut Decoder<'_>) -> Result<Option<Arc<Owner>>, decode::Error> {
        if input.array()? != Some(4) {
            return Err(decode::Error::message("an owner does not have four fields"));
        }
        let (uid, gid) = (input.u32()?, input.u32()?);
        let mut name = || -> Result<Option<Vec<u8>>, decode::Error> {
            if input.datatype()? == minicbor::data::Type::Null {
                input.null()?;
                return Ok(None);
            }
            Ok(Some(input.bytes()?.to_vec()))
        };
        let owner = Owner { uid, gid, user: name()?, group: name()? };
        Ok(owner.is_valid().then(|| Arc::new(owner)))
    }
}

fn pair(input: &mut Decoder<'_>) -> Result<(), decode::Error> {
    if input.array()? == Some(2) {
        Ok(())
    } else {
        Err(decode::Error::message("a field is not a pair"))
    }
}

fn time(input: &mut Decoder<'_>) -> Result<Time, decode::Error> {
    pair(input)?;
    Ok(Time { seconds: input.i64()?, nanoseconds: input.u32()? })
}

fn xattrs(input: &mut Decoder<'_>) -> Result<Xattrs, decode::Error> {
    let items = input.array()?.filter(|n| n.is_multiple_of(2));
    let items =
        items.ok_or_else(|| decode::Error::message("its extended attributes are not in pairs"))?;
    if items / 2 > (limits::XATTRS_BYTES_MAX / XATTR_PLACE_BYTES) as u64 {
        return Err(decode::Error::message("it has too many extended attributes"));
    }
    (0..items / 2).map(|_| Ok((input.bytes()?.to_vec(), input.bytes()?.to_vec()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{cases, changed, changes, entry, noise, path};
    use proptest::prelude::*;

    #[test]
    fn hard_links_share_a_key_and_reused_inodes_do_not() {
        let link = HardLink { file_system: 1, names: 2 };
        let content = Content::Inline(b"AAA".to_vec());
        let file = Entry::new(b"a".to_vec(), EntryKind::File, 0o644);
        let mtime = Some(Time { seconds: 5, nanoseconds: 0 });
        let a = Entry { inode: 7, size: 3, mtime, hard_link: Some(link), content, ..file };
        let b = Entry { path: b"b".to_vec(), ..a.clone() };
        assert!(a.link_key().is_some() && a.link_key() == b.link_key());
        let content = Content::Inline(b"ZZZ".to_vec());
        let stored_otherwise = Entry { content: content.clone(), ..b.clone() };
        assert_eq!(a.link_key(), stored_otherwise.link_key());
        let mtime = Some(Time { seconds: 5, nanoseconds: 1 });
        let reused = Entry { mtime, ..stored_otherwise };
        assert_ne!(a.link_key(), reused.link_key());
        let [timeless, reused] = [a.content.clone(), content]
            .map(|content| Entry { mtime: None, content, ..a.clone() }.link_key());
        assert_ne!(timeless, reused);
        let other = Entry { mode: 0o600, ..b.clone() };
        assert_ne!(a.link_key(), other.link_key());
        assert_eq!(Entry { hard_link: None, ..b }.link_key(), None);
    }

    #[test]
    fn directories_are_followed_by_their_content() {
        let mut paths: Vec<&[u8]> =
            vec![b"a.b", b"a/b", b"a", b"a/b/c", b"a-b", b"b", b"a/b.c", b"\x01", b"a\x01"];
        paths.sort_by(|a, b| path_cmp(a, b));
        let wanted: Vec<&[u8]> =
            vec![b"\x01", b"a", b"a/b", b"a/b/c", b"a/b.c", b"a\x01", b"a-b", b"a.b", b"b"];
        assert_eq!(paths, wanted);
    }

    #[test]
    fn absolute_and_malformed_paths_are_invalid() {
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0b"] {
            assert!(!is_valid_path(bad.as_bytes()), "{bad:?}");
        }
        for good in ["a", "a/b", "...", "a/ /b", "-", "a\n"] {
            assert!(is_valid_path(good.as_bytes()), "{good:?}");
        }
        let names = |len: usize, count: usize| vec![vec![b'n'; len]; count].join(&b'/');
        assert!(is_valid_path(&names(255, 32)) && !is_valid_path(&names(256, 1)));
        assert!(!is_valid_path(&names(255, 33)));
        assert!(is_valid_path(b"\xff/\xfe"));
    }

    #[test]
    fn is_within_compares_whole_components() {
        assert!(is_within(b"a/b", b"a") && is_within(b"a", b"a") && is_within(b"a", b""));
        assert!(!is_within(b"ab", b"a") && !is_within(b"a", b"a/b"));
    }

    #[test]
    fn ranges_of_paths_reach_a_directory_and_everything_below_it() {
        for (from, until, reaches) in [
            (&b"a"[..], Some(&b"b"[..]), false),
            (b"a", Some(b"b/x"), true),
            (b"a", Some(b"b-"), true),
            (b"b", Some(b"c"), true),
            (b"b/x", Some(b"b/y"), true),
            (b"b/x", None, true),
            (b"", Some(b"b"), false),
            (b"a", Some(b"a/z"), false),
            (b"b-", Some(b"c"), false),
            (b"c", None, false),
        ] {
            assert_eq!(is_within_reach(b"b", from, until), reaches, "{from:?} {until:?}");
            assert!(is_within_reach(b"", from, until));
        }
    }

    #[test]
    fn shown_names_are_escaped() {
        assert_eq!(display_path("a/ü b".as_bytes()), "a/ü b");
        assert_eq!(display_path(b"x\n\x1b[\xff\\"), "x\\n\\u{1b}[\\xff\\\\");
    }

    #[test]
    fn only_unstorable_metadata_is_changed_or_dropped() {
        let odd = Time { seconds: -5, nanoseconds: u32::MAX };
        let owner = Owner { uid: u32::MAX, gid: 7, user: Some(vec![b'u'; 256]), group: None };
        let xattrs = vec![
            (b"security.capability".to_vec(), vec![1; 20]),
            (b"user.large".to_vec(), vec![2; limits::XATTR_BYTES_MAX + 1]),
            (b"user.small".to_vec(), vec![3]),
        ];
        let file = Entry::new(b"a".to_vec(), EntryKind::File, 0o600);
        let mut entry =
            Entry { mtime: Some(odd), owner: Arc::new(owner), xattrs: xattrs.clone(), ..file };
        assert!(entry.check().is_err());
        let amendment = entry.amend();
        let expected =
            Amendment { is_time_clamped: true, is_owner_changed: true, xattrs_dropped: 1 };
        assert_eq!(amendment, expected);
        assert_eq!(entry.check(), Ok(()));
        assert_eq!(entry.mtime, Some(Time { seconds: -5, nanoseconds: 999_999_999 }));
        assert_eq!(*entry.owner, Owner { uid: 65_534, gid: 7, user: None, group: None });
        assert_eq!(entry.xattrs, [xattrs[0].clone(), xattrs[2].clone()]);
        assert_eq!(entry.amend(), Amendment::default());
    }

    fn encoded(entry: &Entry, previous: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        entry.encode(previous, 0, &mut bytes);
        bytes
    }

    proptest! {
        #![proptest_config(cases(200))]

        #[test]
        fn any_entry_is_read_as_written(entry in entry(), path in path(), previous in path()) {
            let entry = Entry { path, acl_names: None, ..entry };
            let owners = [Some(Arc::clone(&entry.owner))];
            let bytes = encoded(&entry, &previous);
            let mut input = Decoder::new(&bytes);
            let read = Entry::decode(Some(&previous), &owners, &mut input).expect("ends");
            prop_assert_eq!(input.position(), bytes.len());
            prop_assert_eq!(read.path.as_ref(), Some(&entry.path));
            prop_assert_eq!(read.result, Ok(entry));
        }

        #[test]
        fn any_bytes_are_an_entry_or_an_error(
            entry in entry(),
            previous in path(),
            noise in noise(),
            changes in changes(),
        ) {
            let owners = [Some(Arc::clone(&entry.owner))];
            for bytes in [noise, changed(encoded(&entry, &previous), &changes)] {
                let decoded = Entry::decode(Some(&previous), &owners, &mut Decoder::new(&bytes));
                if let Ok(Decoded { result: Ok(entry), .. }) = decoded {
                    prop_assert_eq!(entry.check(), Ok(()));
                    prop_assert!(is_valid_path(&entry.path) && entry.mode <= 0o7777);
                }
            }
        }

        #[test]
        fn paths_are_ordered_by_their_components(a in path(), b in path()) {
            let parts = |path: &[u8]| -> Vec<Vec<u8>> {
                path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect()
            };
            prop_assert_eq!(path_cmp(&a, &b), parts(&a).cmp(&parts(&b)));
            prop_assert_eq!(is_within(&a, &b), parts(&a).starts_with(&parts(&b)));
        }

        #[test]
        fn shown_paths_do_not_contain_control_characters(path in noise()) {
            prop_assert!(!display_path(&path).contains(char::is_control));
        }
    }
}
