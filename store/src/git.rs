//! Bare git repositories: detection, and the order in which they are read.
//!
//! git writes objects first and refs after. A copy of a repository in use is whole if it is read in
//! reverse order: loose refs, `packed-refs`, loose objects, packs. Packs are listed again until
//! none is new.
//!
//! Commit-graphs name commits that housekeeping may drop during the backup. They are read last, and
//! only if no housekeeping ran. git never changes a file in place but renames complete files, so an
//! open file never changes.

use crate::entry::EntryKind;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// File of a repository that names directories of borrowed objects.
pub const ALTERNATES: &[u8] = b"objects/info/alternates";

/// Returns the directories that [`ALTERNATES`] names. A line may be a text in quotation marks, as git
/// writes odd names; git reads one with an error in it as it stands.
pub fn alternates(content: &[u8]) -> impl Iterator<Item = Cow<'_, [u8]>> {
    let lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
    lines.map(|line| unquoted(line).map_or(Cow::Borrowed(line), Cow::Owned))
}

/// Returns the text between quotation marks, with the escapes of C. `None` if it is malformed.
fn unquoted(line: &[u8]) -> Option<Vec<u8>> {
    let mut left = line.strip_prefix(b"\"")?.iter().copied();
    let mut text = Vec::new();
    loop {
        text.push(match left.next()? {
            b'"' => return Some(text),
            b'\\' => match left.next()? {
                b'a' => 0x07,
                b'b' => 0x08,
                b'f' => 0x0c,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'v' => 0x0b,
                byte @ (b'\\' | b'"') => byte,
                first @ b'0'..=b'3' => {
                    let digits = [first, left.next()?, left.next()?];
                    digits.iter().try_fold(0_u8, |number, digit| {
                        (b'0'..=b'7').contains(digit).then(|| number << 3 | (digit - b'0'))
                    })?
                }
                _ => return None,
            },
            byte => byte,
        });
    }
}

/// Names in every git directory.
pub const MARKS: [&[u8]; 3] = [b"HEAD", b"objects", b"refs"];

/// Returns true if a directory with this content is a git directory, by git's own rules. `head`
/// reads the beginning of `HEAD`. An unreadable `HEAD` counts as valid, because the rest must still
/// be read in order.
///
/// Directories whose `refs` is a symbolic link do not count, because the files that need an order
/// are elsewhere.
pub fn is_git_dir<'a>(
    content: impl Iterator<Item = (&'a [u8], EntryKind)>,
    head: impl FnOnce() -> io::Result<Vec<u8>>,
) -> bool {
    let mut found = [false; 3];
    let mut is_link = false;
    for item in content {
        match item {
            (b"HEAD", EntryKind::File) => found[0] = true,
            (b"HEAD", EntryKind::Symlink) => (found[0], is_link) = (true, true),
            (b"objects", EntryKind::Directory | EntryKind::Symlink) => found[1] = true,
            (b"refs", EntryKind::Directory) => found[2] = true,
            _ => {}
        }
    }
    let is_head = |head: io::Result<Vec<u8>>| match head {
        Ok(bytes) => is_head(&bytes),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    found == [true; 3] && (is_link || is_head(head()))
}

/// Returns true if a file begins like `HEAD`: with a reference or an object id.
fn is_head(bytes: &[u8]) -> bool {
    bytes.starts_with(b"ref:") || begins_with_id(bytes)
}

/// Returns true if the content of a `HEAD` is an object id: it names a commit and no branch.
pub fn begins_with_id(bytes: &[u8]) -> bool {
    bytes.get(..40).is_some_and(|id| id.iter().all(u8::is_ascii_hexdigit))
}

/// Returns the bytes of the object id with which a line begins, of SHA-1 or SHA-256.
pub fn id_at_start(line: &[u8]) -> Option<Vec<u8>> {
    let len = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let digits = std::str::from_utf8(&line[..len]).ok().filter(|_| [40, 64].contains(&len))?;
    (0..len).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}

/// Start of the index of a pack, of version 2.
const INDEX_MAGIC: &[u8] = b"\xfftOc\0\0\0\x02";
/// Offset of the ids in it: a table of 256 counts comes first.
const INDEX_IDS_AT: usize = INDEX_MAGIC.len() + 256 * 4;

/// The index of a pack, of version 2, to search it for objects.
pub struct PackIndex {
    file: File,
    head: [u8; INDEX_IDS_AT],
}

impl PackIndex {
    /// Reads the table of counts.
    pub fn new(file: File) -> io::Result<PackIndex> {
        let mut head = [0; INDEX_IDS_AT];
        file.read_exact_at(&mut head, 0)?;
        match head.starts_with(INDEX_MAGIC) {
            true => Ok(PackIndex { file, head }),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Returns true if the pack has an object.
    pub fn has(&self, id: &[u8]) -> io::Result<bool> {
        let first = *id.first().ok_or(io::ErrorKind::InvalidInput)?;
        let (mut low, mut high) =
            (first.checked_sub(1).map_or(0, |before| self.count(before)), self.count(first));
        let mut found = vec![0; id.len()];
        while low < high {
            let middle = low + (high - low) / 2;
            self.file.read_exact_at(&mut found, INDEX_IDS_AT as u64 + middle * id.len() as u64)?;
            match found[..].cmp(id) {
                Ordering::Equal => return Ok(true),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(false)
    }

    /// Returns the number of objects whose ids begin with this byte or a lower one.
    fn count(&self, byte: u8) -> u64 {
        let at = INDEX_MAGIC.len() + 4 * usize::from(byte);
        u64::from(u32::from_be_bytes(self.head[at..at + 4].try_into().expect("four bytes")))
    }
}

/// Files of a git directory that decide which references and objects it has: the format and the
/// default branch, directories of borrowed objects, and commits whose parents are left out.
pub const GUIDES: [&[u8]; 6] =
    [b"HEAD", b"config", b"config.worktree", b"commondir", b"shallow", ALTERNATES];

/// Returns the git directory's part that belongs to one linked work tree, `worktrees/NAME`, if a
/// path relative to the git directory is `worktrees/NAME/` and `below`.
pub fn linked_work_tree<'p>(path: &'p [u8], below: &[u8]) -> Option<&'p [u8]> {
    let own = path.strip_suffix(below)?.strip_suffix(b"/")?;
    let name = own.strip_prefix(b"worktrees/")?;
    (!name.is_empty() && !name.contains(&b'/')).then_some(own)
}

/// Phase in which a part of a git directory is read. Each phase ends before the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Configuration, hooks, `HEAD`, alternates, and files that name commits needed later.
    Settings,
    /// Below `refs/`.
    LooseRefs,
    /// `packed-refs`, or the reftable; the reftables of linked work trees.
    PackedRefs,
    /// `objects/??/*`.
    LooseObjects,
    /// `objects/pack/`.
    Packs,
    /// `objects/info/commit-graph` and `objects/info/commit-graphs/`.
    CommitGraphs,
    /// `annex/`, `lfs/` and `modules/`: files and repositories that commits name.
    Attached,
}

impl Phase {
    /// All phases in their order.
    pub const ALL: [Phase; 7] = [
        Phase::Settings,
        Phase::LooseRefs,
        Phase::PackedRefs,
        Phase::LooseObjects,
        Phase::Packs,
        Phase::CommitGraphs,
        Phase::Attached,
    ];

    /// Returns the directory that holds everything of this phase but what belongs to linked work trees,
    /// relative to the git directory.
    pub fn begins_in(self) -> &'static [u8] {
        match self {
            Phase::Settings | Phase::PackedRefs | Phase::Attached => b"",
            Phase::LooseRefs => b"refs",
            Phase::LooseObjects | Phase::Packs => b"objects",
            Phase::CommitGraphs => b"objects/info",
        }
    }

    /// Returns the phase in which a path, relative to the git directory, is read.
    pub fn of(path: &[u8]) -> Phase {
        let mut parts = path.split(|b| *b == b'/');
        match (parts.next().unwrap_or_default(), parts.next()) {
            (b"refs", Some(_)) => Phase::LooseRefs,
            (b"packed-refs" | b"reftable", _) => Phase::PackedRefs,
            (b"annex" | b"lfs" | b"modules", _) => Phase::Attached,
            (b"worktrees", Some(_)) => match (parts.next(), parts.next()) {
                (Some(b"reftable"), Some(_)) => Phase::PackedRefs,
                (Some(b"modules"), Some(_)) => Phase::Attached,
                _ => Phase::Settings,
            },
            (b"objects", Some(b"pack")) => Phase::Packs,
            (b"objects", Some(fan_out)) if is_fan_out(fan_out) => Phase::LooseObjects,
            (b"objects", Some(b"info"))
                if matches!(parts.next(), Some(b"commit-graph" | b"commit-graphs")) =>
            {
                Phase::CommitGraphs
            }
            _ => Phase::Settings,
        }
    }
}

fn is_fan_out(name: &[u8]) -> bool {
    name.len() == 2 && name.iter().all(u8::is_ascii_hexdigit)
}

/// Returns true if a path looks like that of an object or a reference. Housekeeping joins many of
/// these files into one.
pub fn is_joined(path: &[u8]) -> bool {
    let mut up = path.rsplit(|byte| *byte == b'/').skip(1);
    let in_objects = match (up.next(), up.next()) {
        (Some(dir), Some(b"objects")) => dir == b"pack" || is_fan_out(dir),
        _ => false,
    };
    in_objects || path.split(|byte| *byte == b'/').rev().skip(1).any(|dir| dir == b"refs")
}

/// Returns true if a path, relative to the git directory, belongs to a running operation: a lock,
/// temporary file or quarantined push. Such files are useless in a copy.
pub fn is_transient(path: &[u8]) -> bool {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let in_objects = path.starts_with(b"objects/");
    is_lock(path)
        || path == b"gc.pid"
        || path == b"packed-refs.new"
        || (in_objects
            && (name.starts_with(b"tmp_")
                || name.starts_with(b".tmp-")
                || name.starts_with(b"incoming-")))
}

/// Returns true if a path, relative to the git directory, is a cache. git works without it and can
/// recreate it from the rest.
pub fn is_cache(path: &[u8]) -> bool {
    let ends = |ends: &[&[u8]]| ends.iter().any(|end| path.ends_with(end));
    match path.strip_prefix(b"objects/pack/") {
        Some(name) => name.starts_with(b"multi-pack-index") || ends(&[b".bitmap", b".rev"]),
        None => Phase::of(path) == Phase::CommitGraphs,
    }
}

/// Returns true if a path, relative to the git directory, is a lock in a place where git creates
/// locks. Other files with such names are not git's.
fn is_lock(path: &[u8]) -> bool {
    const AT_TOP: [&[u8]; 8] = [
        b"HEAD",
        b"ORIG_HEAD",
        b"FETCH_HEAD",
        b"config",
        b"config.worktree",
        b"index",
        b"packed-refs",
        b"shallow",
    ];
    const BELOW: [&[u8]; 4] = [b"refs/", b"reftable/", b"objects/info/", b"objects/pack/"];
    let Some(locked) = path.strip_suffix(b".lock") else { return false };
    AT_TOP.contains(&locked) || BELOW.iter().any(|dir| locked.starts_with(dir))
}

/// Returns the part of a file name in `objects/pack` that all files of one pack share: `pack-…` up
/// to the dot.
pub fn pack_stem(name: &[u8]) -> Option<&[u8]> {
    let stem = name.split(|b| *b == b'.').next()?;
    (stem.starts_with(b"pack-") && stem.len() < name.len()).then_some(stem)
}

/// Returns the packs that a multi-pack-index names, read from its first bytes. Returns `None` if
/// `bytes` are not a multi-pack-index or too few.
///
/// Layout: Documentation/gitformat-pack.txt of git, "multi-pack-index (MIDX) files".
pub fn midx_pack_stems(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    if bytes.get(..4)? != b"MIDX" || *bytes.get(4)? != 1 {
        return None;
    }
    let chunks = usize::from(*bytes.get(6)?);
    let packs = u32::from_be_bytes(bytes.get(8..12)?.try_into().ok()?) as usize;
    let row = |n: usize| -> Option<(&[u8], usize)> {
        let row = bytes.get(12 + 12 * n..24 + 12 * n)?;
        let offset = u64::from_be_bytes(row[4..].try_into().ok()?);
        Some((&row[..4], usize::try_from(offset).ok()?))
    };
    let names = (0..chunks).find_map(|n| {
        let ((id, from), (_, to)) = (row(n)?, row(n + 1)?);
        (id == b"PNAM").then(|| bytes.get(from..to)).flatten()
    })?;
    let stems: Vec<Vec<u8>> =
        names.split(|b| *b == 0).filter_map(|name| Some(pack_stem(name)?.to_vec())).collect();
    (stems.len() == packs).then_some(stems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{cases, changed, changes, noise};
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn alternates_in_quotation_marks_are_read_as_git_does() {
        let content =
            b"# none\n\n/plain\n\"/odd \\\"\\\\\\n\\303\\244.git/objects\"\n\"/cut\n\"/\\9\"\n";
        let found: Vec<_> = alternates(content).collect();
        let wanted: [&[u8]; 4] =
            [b"/plain", b"/odd \"\\\n\xc3\xa4.git/objects", b"\"/cut", b"\"/\\9\""];
        assert_eq!(found, wanted);
    }

    #[test]
    fn each_path_of_a_repository_has_its_phase() {
        for (path, phase) in [
            ("HEAD", Phase::Settings),
            ("refs", Phase::Settings),
            ("objects", Phase::Settings),
            ("objects/info/alternates", Phase::Settings),
            ("refs/heads/main", Phase::LooseRefs),
            ("packed-refs", Phase::PackedRefs),
            ("packed-refs/odd", Phase::PackedRefs),
            ("reftable/tables.list", Phase::PackedRefs),
            ("objects/0a", Phase::LooseObjects),
            ("objects/0a/1f", Phase::LooseObjects),
            ("objects/pack", Phase::Packs),
            ("objects/pack/pack-1.idx", Phase::Packs),
            ("objects/info", Phase::Settings),
            ("objects/info/commit-graph", Phase::CommitGraphs),
            ("objects/info/commit-graphs/commit-graph-chain", Phase::CommitGraphs),
            ("worktrees/x/HEAD", Phase::Settings),
            ("worktrees/x/reftable", Phase::Settings),
            ("worktrees/x/reftable/tables.list", Phase::PackedRefs),
            ("worktrees/x", Phase::Settings),
            ("lfs/objects/aa", Phase::Attached),
            ("modules/x/HEAD", Phase::Attached),
            ("annex/objects/x", Phase::Attached),
            ("worktrees/x/modules", Phase::Settings),
            ("worktrees/x/modules/y/HEAD", Phase::Attached),
        ] {
            assert_eq!(Phase::of(path.as_bytes()), phase, "{path}");
        }
    }

    #[test]
    fn a_linked_work_tree_has_a_name() {
        let of = |path: &'static str| linked_work_tree(path.as_bytes(), b"HEAD");
        assert_eq!(of("worktrees/x/HEAD"), Some(&b"worktrees/x"[..]));
        for path in ["worktrees/HEAD", "worktrees//HEAD", "worktrees/x/y/HEAD", "x/y/HEAD", "HEAD"]
        {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn a_git_directory_may_have_an_unreadable_head() {
        let content: [(&[u8], EntryKind); 3] = [
            (b"HEAD", EntryKind::File),
            (b"objects", EntryKind::Directory),
            (b"refs", EntryKind::Directory),
        ];
        let with = |head: io::Result<Vec<u8>>| is_git_dir(content.into_iter(), || head);
        assert!(with(Ok(b"ref: refs/heads/main\n".to_vec())));
        assert!(with(Err(io::ErrorKind::PermissionDenied.into())));
        assert!(!with(Ok(b"something else".to_vec())));
        assert!(!with(Err(io::ErrorKind::NotFound.into())));
    }

    #[test]
    fn files_of_running_git_operations_are_transient() {
        for path in [
            "HEAD.lock",
            "refs/heads/main.lock",
            "gc.pid",
            "packed-refs.new",
            "objects/pack/tmp_pack_x",
            "objects/0a/tmp_obj_x",
            "objects/incoming-x",
            "objects/tmp_objdir-incoming-x",
            "objects/pack/.tmp-1-pack-x.pack",
        ] {
            assert!(is_transient(path.as_bytes()), "{path}");
        }
        for path in [
            "HEAD",
            "refs/heads/tmp_x",
            "objects/pack/pack-1.keep",
            "hooks/gc.pid",
            "Cargo.lock",
            "src/a.lock",
        ] {
            assert!(!is_transient(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn files_that_housekeeping_joins_are_known_by_their_paths() {
        for path in ["a.git/objects/0a/38", "objects/pack/x.pack", "a/refs/heads/b", "refs/tags/1"]
        {
            assert!(is_joined(path.as_bytes()), "{path}");
        }
        for path in ["a.git/HEAD", "objects/info/alternates", "a/0a/38", "pack/x", "refs", "x/refs"]
        {
            assert!(!is_joined(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn objects_are_found_in_the_index_of_a_pack() {
        let ids: Vec<Vec<u8>> = [0u8, 0, 1, 7, 7, 7, 255]
            .iter()
            .enumerate()
            .map(|(n, first)| [&[*first; 19][..], &[n as u8]].concat())
            .collect();
        let mut bytes = b"\xfftOc\0\0\0\x02".to_vec();
        for byte in 0..=255u8 {
            let count = ids.iter().filter(|id| id[0] <= byte).count() as u32;
            bytes.extend(count.to_be_bytes());
        }
        bytes.extend(ids.concat());
        let mut index = tempfile::tempfile().expect("a file");
        std::io::Write::write_all(&mut index, &bytes).expect("writes");
        let open = || PackIndex::new(index.try_clone().expect("is open"));
        let opened = open().expect("reads");
        for id in &ids {
            assert!(opened.has(id).expect("reads"), "{id:?}");
            let other = [&id[..19], &[id[19] + 100]].concat();
            assert!(!opened.has(&other).expect("reads"), "{other:?}");
        }
        index.set_len(100).expect("cuts");
        assert!(opened.has(&ids[0]).is_err());
        assert!(open().is_err());
        let line = b"0011223344556677889900112233445566778899 refs/heads/x";
        assert_eq!(id_at_start(line).map(|id| id.len()), Some(20));
        assert_eq!(id_at_start(b"ref: refs/heads/x"), None);
        assert_eq!(id_at_start(&line[1..]), None);
    }

    #[test]
    fn files_of_a_pack_share_a_stem() {
        assert_eq!(pack_stem(b"pack-12.idx"), Some(&b"pack-12"[..]));
        assert_eq!(pack_stem(b"pack-12.bitmap"), Some(&b"pack-12"[..]));
        assert_eq!(pack_stem(b"multi-pack-index"), None);
        assert_eq!(pack_stem(b"pack-12"), None);
    }

    /// Returns a multi-pack-index of these files in git's layout; only the names are real.
    fn midx(names: &[Vec<u8>]) -> Vec<u8> {
        let list: Vec<u8> = names.iter().flat_map(|name| [name, &b"\0"[..]].concat()).collect();
        let chunks: [(&[u8; 4], usize); 3] = [(b"OIDF", 8), (b"PNAM", list.len()), (b"OIDL", 5)];
        let mut out = [&b"MIDX\x01\x01\x03\x00"[..], &(names.len() as u32).to_be_bytes()].concat();
        let mut offset = out.len() + 12 * (chunks.len() + 1);
        for (id, len) in chunks.into_iter().chain([(&[0; 4], 0)]) {
            out.extend_from_slice(id);
            out.extend_from_slice(&(offset as u64).to_be_bytes());
            offset += len;
        }
        [&out[..], &[0; 8], &list, &[0; 5]].concat()
    }

    fn pack_names() -> impl Strategy<Value = Vec<Vec<u8>>> {
        vec(vec(proptest::sample::select(&b"0123456789abcdef"[..]), 1..41), 0..9).prop_map(
            |names| names.iter().map(|name| [b"pack-", &name[..], b".idx"].concat()).collect(),
        )
    }

    proptest! {
        #![proptest_config(cases(200))]

        #[test]
        fn any_packs_of_a_midx_are_found(names in pack_names()) {
            let stems: Vec<Vec<u8>> =
                names.iter().map(|name| name[..name.len() - 4].to_vec()).collect();
            prop_assert_eq!(midx_pack_stems(&midx(&names)), Some(stems));
        }

        #[test]
        fn any_bytes_are_a_midx_or_refused(
            names in pack_names(),
            noise in noise(),
            changes in changes(),
        ) {
            let whole = midx(&names);
            for bytes in [noise, changed(whole, &changes)] {
                for stem in midx_pack_stems(&bytes).unwrap_or_default() {
                    prop_assert!(stem.starts_with(b"pack-") && stem.len() <= bytes.len());
                }
                let _ = (Phase::of(&bytes), is_transient(&bytes));
            }
        }
    }
}
