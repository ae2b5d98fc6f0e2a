//! An entry: everything that is kept of one file, directory or other thing.

use crate::recipe::{Recipe, decode_extents, encode_extents};
use minicbor::{Decoder, Encoder, decode};
use std::cmp::Ordering;
use std::sync::Arc;

/// A moment: seconds since 1970 (UTC), may be negative, and nanoseconds within the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
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

impl Kind {
    pub(crate) const ALL: [Kind; 7] = [
        Kind::File,
        Kind::Directory,
        Kind::Symlink,
        Kind::Fifo,
        Kind::Socket,
        Kind::CharDevice,
        Kind::BlockDevice,
    ];

    /// The kind, for people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::File => "a file",
            Kind::Directory => "a directory",
            Kind::Symlink => "a symbolic link",
            Kind::Fifo => "a FIFO",
            Kind::Socket => "a socket",
            Kind::CharDevice => "a character device",
            Kind::BlockDevice => "a block device",
        }
    }

    /// One letter, as `ls -l` and `find -type` have them.
    pub fn letter(self) -> char {
        match self {
            Kind::File => '-',
            Kind::Directory => 'd',
            Kind::Symlink => 'l',
            Kind::Fifo => 'p',
            Kind::Socket => 's',
            Kind::CharDevice => 'c',
            Kind::BlockDevice => 'b',
        }
    }
}

/// Who owns an entry: numbers, and names if the source machine knew them.
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

/// Which of the source's files share one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HardLink {
    /// Number of the file system within the snapshot; with the inode number it names the
    /// group. A device number would change with every restart or block snapshot.
    pub file_system: u64,
    /// Names the inode had, inside and outside of what was backed up.
    pub names: u64,
}

/// What a file contains.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Content {
    /// Nothing: not a file, or an empty one.
    #[default]
    Empty,
    /// These bytes.
    Inline(Vec<u8>),
    /// Bytes of chunks.
    Recipe(Recipe),
}

/// Names and values of extended attributes.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A tree entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Absolute path without the leading `/`; any bytes but NUL, `/` between components.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Whose it is.
    pub owner: Arc<Owner>,
    /// Last change of content. `None` for the directories above a source path,
    /// whose times change with every neighbour and are not restored.
    pub mtime: Option<Time>,
    /// Last change of the inode on the source, to notice changes. `None` where metadata could
    /// not be read, so that the next backup tries again.
    pub ctime: Option<Time>,
    /// Inode number on the source, to notice changes and to group hard links.
    pub inode: u64,
    /// Bytes of a file, 0 for everything else.
    pub size: u64,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
    /// Set where the inode has more than one name.
    pub hard_link: Option<HardLink>,
    /// Extended attributes with POSIX ACLs among them, sorted by name.
    pub xattrs: Xattrs,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// What a file contains.
    pub content: Content,
    /// Bytes of the chunks it refers to that are not its own: kept for other snapshots, or for
    /// nobody. 0 for files that chunks were made for.
    pub unused: u64,
}

impl Entry {
    /// An entry without content, of which nothing more is known.
    pub fn new(path: Vec<u8>, kind: Kind, mode: u32) -> Entry {
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
            device: None,
            content: Content::Empty,
            unused: 0,
        }
    }

    /// The last component of the path.
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }
}

/// The order of a tree: by components, so that a directory is followed by what is in it.
///
/// Like comparing bytes, with `/` before every other byte.
pub fn path_cmp(a: &[u8], b: &[u8]) -> Ordering {
    let common = a.iter().zip(b).position(|(x, y)| x != y);
    let Some(at) = common else { return a.len().cmp(&b.len()) };
    let rank = |byte: u8| if byte == b'/' { 0 } else { byte };
    // NUL is no byte of a path, so nothing else has rank 0.
    rank(a[at]).cmp(&rank(b[at]))
}

/// Whether `path` is `ancestor` or lies below it. Everything lies below the empty path.
pub fn is_within(path: &[u8], ancestor: &[u8]) -> bool {
    match path.strip_prefix(ancestor) {
        Some(rest) => rest.is_empty() || rest[0] == b'/' || ancestor.is_empty(),
        None => false,
    }
}

/// Whether this can be the path of an entry: relative, no empty, `.` or `..`
/// component, no NUL, not too long.
pub fn is_valid_path(path: &[u8]) -> bool {
    path.len() <= crate::limits::PATH_BYTES_MAX
        && !path.contains(&0)
        && path.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

/// Whether a character steers a terminal, ends a line, or reverses the order of text, so
/// that a name could be shown as another one.
pub fn is_deceptive(c: char) -> bool {
    let is_bidi = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_bidi || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// A path for people and messages: valid UTF-8 as it is, with control and
/// invalid bytes as `\x..`.
pub fn display_path(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for part in path.utf8_chunks() {
        for c in part.valid().chars() {
            if is_deceptive(c) || c == '\\' {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        part.invalid().iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
    }
    out
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
    /// Appends the entry as it stands in a page: without the bytes its path
    /// shares with `previous`, and with the owner as a row of the page's table.
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

    /// Reads an entry of a page whose entry before it has the path `previous`.
    ///
    /// Fields that this program does not know are passed over.
    pub(crate) fn decode(
        previous: &[u8],
        owners: &[Arc<Owner>],
        input: &mut Decoder<'_>,
    ) -> Result<Entry, decode::Error> {
        let bad = decode::Error::message;
        let fields = input.map()?.ok_or_else(|| bad("indefinite length"))?;
        let mut shared = 0;
        let (mut suffix, mut kind, mut mode, mut owner) = (None, None, None, None);
        let mut entry = Entry::new(Vec::new(), Kind::File, 0);
        let mut level = 0;
        for _ in 0..fields {
            match input.u32()? {
                field::SHARED => shared = input.u64()? as usize,
                field::SUFFIX => suffix = Some(input.bytes()?),
                field::UNUSED => entry.unused = input.u64()?,
                field::KIND => {
                    let byte = input.u8()?;
                    kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == byte);
                }
                field::MODE => mode = Some(input.u32()?),
                field::OWNER => owner = owners.get(input.u32()? as usize),
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
                field::LEVEL => level = input.u8()?,
                _ => input.skip()?,
            }
        }
        let suffix = suffix.ok_or_else(|| bad("an entry without a path"))?;
        let prefix =
            previous.get(..shared).ok_or_else(|| bad("a path shares more than there is"))?;
        entry.path = [prefix, suffix].concat();
        entry.kind = kind.ok_or_else(|| bad("an entry of unknown kind"))?;
        entry.mode = mode.filter(|m| *m <= 0o7777).ok_or_else(|| bad("an impossible mode"))?;
        entry.owner = Arc::clone(owner.ok_or_else(|| bad("an entry without an owner"))?);
        if let Content::Recipe(recipe) = &mut entry.content {
            recipe.level = level;
        }
        entry.check().map_err(bad)?;
        Ok(entry)
    }

    /// What must hold of every entry, whoever wrote it.
    fn check(&self) -> Result<(), &'static str> {
        if !is_valid_path(&self.path) {
            return Err("a path that no entry can have");
        }
        let content_len = match &self.content {
            Content::Empty => 0,
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Recipe(recipe) => recipe
                .extents
                .iter()
                .try_fold(0u64, |sum, extent| sum.checked_add(extent.len()))
                .ok_or("a recipe longer than any file")?,
        };
        if content_len != self.size || (self.size != 0 && self.kind != Kind::File) {
            return Err("an entry whose size is not that of its content");
        }
        if self.kind == Kind::Symlink && (self.target.is_empty() || self.target.contains(&0)) {
            return Err("a symbolic link without a target");
        }
        let names_fit = |(name, _): &(Vec<u8>, Vec<u8>)| !name.is_empty() && !name.contains(&0);
        if !self.xattrs.iter().all(names_fit) {
            return Err("an extended attribute without a name");
        }
        Ok(())
    }
}

fn pair(input: &mut Decoder<'_>) -> Result<(), decode::Error> {
    if input.array()? == Some(2) { Ok(()) } else { Err(decode::Error::message("not a pair")) }
}

fn time(input: &mut Decoder<'_>) -> Result<Time, decode::Error> {
    pair(input)?;
    let time = Time { seconds: input.i64()?, nanoseconds: input.u32()? };
    if time.nanoseconds > 999_999_999 {
        return Err(decode::Error::message("more nanoseconds than a second has"));
    }
    Ok(time)
}

fn xattrs(input: &mut Decoder<'_>) -> Result<Xattrs, decode::Error> {
    let items = input.array()?.filter(|n| n.is_multiple_of(2));
    let items = items.ok_or_else(|| decode::Error::message("attributes are not in pairs"))?;
    (0..items / 2).map(|_| Ok((input.bytes()?.to_vec(), input.bytes()?.to_vec()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{cases, changed, changes, entry, noise, path};
    use proptest::prelude::*;

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
    fn paths_that_lead_elsewhere_are_invalid() {
        for bad in ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0b"] {
            assert!(!is_valid_path(bad.as_bytes()), "{bad:?}");
        }
        for good in ["a", "a/b", "...", "a/ /b", "-", "a\n"] {
            assert!(is_valid_path(good.as_bytes()), "{good:?}");
        }
        assert!(is_valid_path(b"\xff/\xfe"));
    }

    #[test]
    fn within_means_component_by_component() {
        assert!(is_within(b"a/b", b"a") && is_within(b"a", b"a") && is_within(b"a", b""));
        assert!(!is_within(b"ab", b"a") && !is_within(b"a", b"a/b"));
    }

    #[test]
    fn names_are_shown_without_harm() {
        assert_eq!(display_path("a/ü b".as_bytes()), "a/ü b");
        assert_eq!(display_path(b"x\n\x1b[\xff\\"), "x\\n\\u{1b}[\\xff\\\\");
    }

    fn encoded(entry: &Entry, previous: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        entry.encode(previous, 0, &mut bytes);
        bytes
    }

    proptest! {
        #![proptest_config(cases(200))]

        #[test]
        fn any_entry_comes_back(entry in entry(), path in path(), previous in path()) {
            let entry = Entry { path, ..entry };
            let owners = [Arc::clone(&entry.owner)];
            let bytes = encoded(&entry, &previous);
            let mut input = Decoder::new(&bytes);
            let read = Entry::decode(&previous, &owners, &mut input).expect("reads what it wrote");
            prop_assert_eq!(input.position(), bytes.len());
            prop_assert_eq!(read, entry);
        }

        #[test]
        fn any_bytes_are_an_entry_or_an_error(
            entry in entry(),
            previous in path(),
            noise in noise(),
            changes in changes(),
        ) {
            let owners = [Arc::clone(&entry.owner)];
            for bytes in [noise, changed(encoded(&entry, &previous), &changes)] {
                if let Ok(entry) = Entry::decode(&previous, &owners, &mut Decoder::new(&bytes)) {
                    prop_assert_eq!(entry.check(), Ok(()));
                    prop_assert!(is_valid_path(&entry.path) && entry.mode <= 0o7777);
                }
            }
        }

        #[test]
        fn the_order_of_paths_is_that_of_their_components(a in path(), b in path()) {
            let parts = |path: &[u8]| -> Vec<Vec<u8>> {
                path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect()
            };
            prop_assert_eq!(path_cmp(&a, &b), parts(&a).cmp(&parts(&b)));
            prop_assert_eq!(is_within(&a, &b), parts(&a).starts_with(&parts(&b)));
        }

        #[test]
        fn paths_are_shown_on_one_line_of_text(path in noise()) {
            prop_assert!(!display_path(&path).contains(char::is_control));
        }
    }
}
