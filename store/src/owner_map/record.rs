//! Record of changed owners and modes, as rules that change them back.

use crate::entry::{Entry, EntryKind, is_within};
use crate::glob::escape;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Owner and mode of a path, before or after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerAndMode {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl OwnerAndMode {
    /// Returns owner and mode of an entry.
    pub fn of(entry: &Entry) -> OwnerAndMode {
        OwnerAndMode { uid: entry.owner.uid, gid: entry.owner.gid, mode: entry.mode }
    }
}

/// Writes rules that give every path its former owner and mode again.
///
/// Paths come in path order. A directory's rules hold for all paths below it that were changed in
/// the same way; other paths get a section of their own, which stands before that of the directory.
pub struct Recorder<W: Write> {
    out: W,
    /// Directory on this machine that paths are relative to.
    top: PathBuf,
    /// Open directories, outermost first.
    dirs: Vec<Dir>,
    /// Number of paths whose owner or mode changed.
    changed: u64,
}

struct Dir {
    path: Vec<u8>,
    undo: Undo,
}

/// Rules that undo changes. The first owner that became another one decides; a second one needs a
/// section of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Undo {
    /// Former users, by user now.
    users: BTreeMap<u32, u32>,
    groups: BTreeMap<u32, u32>,
    /// Former mode of directories, and of everything else. The inner `None` keeps the mode; the
    /// outer one means that no path needs either.
    dir_mode: Option<Option<u32>>,
    file_mode: Option<Option<u32>>,
}

impl<W: Write> Recorder<W> {
    /// Begins a record of the paths below a directory of this machine.
    pub fn new(top: &Path, mut out: W) -> io::Result<Recorder<W>> {
        out.write_all(b"# Rules that undo a change of owners and modes, for --owner-map.\n")?;
        Ok(Recorder { out, top: top.to_owned(), dirs: Vec::new(), changed: 0 })
    }

    /// Adds a path, which is relative to the directory, and empty for the directory itself. `acls` are
    /// the lines of its former ACLs. Rules for users hold for ACLs, too, and may join entries, so
    /// these lines restore each ACL literally.
    pub fn add(
        &mut self,
        path: &[u8],
        kind: EntryKind,
        before: OwnerAndMode,
        after: OwnerAndMode,
        acls: &[String],
    ) -> io::Result<()> {
        self.leave(|dir| !is_within(path, dir))?;
        self.write_acls(path, acls)?;
        self.changed += u64::from(before != after);
        let is_dir = kind == EntryKind::Directory;
        let undo = Undo::of(kind, before, after);
        if is_dir {
            self.dirs.push(Dir { path: path.to_vec(), undo });
            return Ok(());
        }
        self.merge(path, undo)
    }

    /// Adds a path whose content is not added, at any time. Its rules hold for it alone.
    pub fn add_alone(
        &mut self,
        path: &[u8],
        kind: EntryKind,
        before: OwnerAndMode,
        after: OwnerAndMode,
        acls: &[String],
    ) -> io::Result<()> {
        self.write_acls(path, acls)?;
        if before == after {
            return Ok(());
        }
        self.changed += 1;
        self.write("exact", path, &Undo::of(kind, before, after))
    }

    /// Writes the rest. Returns the number of changed paths.
    pub fn finish(mut self) -> io::Result<u64> {
        self.leave(|_| true)?;
        self.out.flush()?;
        Ok(self.changed)
    }

    fn leave(&mut self, is_left: impl Fn(&[u8]) -> bool) -> io::Result<()> {
        while self.dirs.last().is_some_and(|dir| is_left(&dir.path)) {
            let Some(dir) = self.dirs.pop() else { break };
            self.merge(&dir.path, dir.undo)?;
        }
        Ok(())
    }

    /// Adds rules to those of the directory around a path, or writes them if they contradict.
    fn merge(&mut self, path: &[u8], undo: Undo) -> io::Result<()> {
        match self.dirs.last_mut() {
            Some(dir) if dir.undo.accepts(&undo) => {
                dir.undo.add(undo);
                Ok(())
            }
            // Unchanged ones, too: a directory around it may come later.
            _ => self.write("path", path, &undo),
        }
    }

    fn write_acls(&mut self, path: &[u8], acls: &[String]) -> io::Result<()> {
        // No pattern matches `/` alone.
        if acls.is_empty() || self.top.join(std::ffi::OsStr::from_bytes(path)) == Path::new("/") {
            return Ok(());
        }
        self.section("exact", path)?;
        acls.iter().try_for_each(|line| writeln!(self.out, "{line}"))
    }

    fn section(&mut self, form: &str, path: &[u8]) -> io::Result<()> {
        let place = self.top.join(std::ffi::OsStr::from_bytes(path));
        let mut pattern = escape(&place);
        // A line cannot contain a line break; `?` matches it.
        pattern.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b'?');
        if pattern == b"/" {
            pattern.extend(b"**");
        }
        self.out.write_all(&[b"[", form.as_bytes(), b" \"", &pattern, b"\"]\n"].concat())
    }

    fn write(&mut self, form: &str, path: &[u8], undo: &Undo) -> io::Result<()> {
        self.section(form, path)?;
        for (word, all) in [("user", &undo.users), ("group", &undo.groups)] {
            for (now, before) in all {
                writeln!(self.out, "{word} {now} -> {before}")?;
            }
        }
        let mut modes = Vec::new();
        for (letter, mode) in [('D', undo.dir_mode), ('F', undo.file_mode)] {
            match mode {
                Some(Some(mode)) => modes.push(format!("{letter}{mode:04o}")),
                // Overrides the section of a directory above.
                Some(None) => modes.push(format!("{letter}a+")),
                None => {}
            }
        }
        if !modes.is_empty() {
            writeln!(self.out, "mode {}", modes.join(","))?;
        }
        Ok(())
    }
}

impl Undo {
    fn of(kind: EntryKind, before: OwnerAndMode, after: OwnerAndMode) -> Undo {
        let is_dir = kind == EntryKind::Directory;
        // Symbolic links have no mode.
        let mode = (kind != EntryKind::Symlink)
            .then(|| (before.mode != after.mode).then_some(before.mode));
        Undo {
            users: [(after.uid, before.uid)].into(),
            groups: [(after.gid, before.gid)].into(),
            dir_mode: mode.filter(|_| is_dir),
            file_mode: mode.filter(|_| !is_dir),
        }
    }

    fn accepts(&self, other: &Undo) -> bool {
        let agree = |a: &BTreeMap<u32, u32>, b: &BTreeMap<u32, u32>| {
            b.iter().all(|(now, before)| a.get(now).is_none_or(|known| known == before))
        };
        let modes_agree =
            |a: Option<Option<u32>>, b: Option<Option<u32>>| a.is_none() || b.is_none() || a == b;
        agree(&self.users, &other.users)
            && agree(&self.groups, &other.groups)
            && modes_agree(self.dir_mode, other.dir_mode)
            && modes_agree(self.file_mode, other.file_mode)
    }

    fn add(&mut self, other: Undo) {
        self.users.extend(other.users);
        self.groups.extend(other.groups);
        self.dir_mode = self.dir_mode.or(other.dir_mode);
        self.file_mode = self.file_mode.or(other.file_mode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::cases;
    use crate::entry::{Owner, path_cmp};
    use crate::owner_map::{OwnerMap, SystemAccounts, Unmatched};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn owner_and_mode() -> impl Strategy<Value = OwnerAndMode> {
        (0..3u32, 0..3u32, prop_oneof![Just(0o644u32), Just(0o755), Just(0o700)])
            .prop_map(|(uid, gid, mode)| OwnerAndMode { uid, gid, mode })
    }

    proptest! {
        #![proptest_config(cases(300))]

        #[test]
        fn a_record_undoes_every_change(
            paths in prop::collection::btree_map("[ab*](/[ab]){0,3}", (owner_and_mode(), owner_and_mode()), 0..14),
        ) {
            // Every directory above a path is there, too.
            let mut all = BTreeMap::new();
            for (path, states) in &paths {
                for end in crate::glob::ends(path.as_bytes()) {
                    all.entry(path.as_bytes()[..end].to_vec()).or_insert(*states);
                }
            }
            let mut sorted: Vec<(Vec<u8>, (OwnerAndMode, OwnerAndMode))> = all.into_iter().collect();
            sorted.sort_by(|a, b| path_cmp(&a.0, &b.0));
            let kind = |path: &[u8]| {
                let is_dir = sorted.iter().any(|(other, _)| other != path && is_within(other, path));
                if is_dir { EntryKind::Directory } else { EntryKind::File }
            };
            let mut text = Vec::new();
            let mut record = Recorder::new(Path::new("/top"), &mut text).expect("written");
            for (path, (before, after)) in &sorted {
                record.add(path, kind(path), *before, *after, &[]).expect("written");
            }
            record.finish().expect("written");
            let mut map = OwnerMap::new(Unmatched::ByNumber, Box::new(SystemAccounts));
            map.add_file("record", &text).expect("rules");
            for (path, (before, after)) in &sorted {
                let owner = Owner { uid: after.uid, gid: after.gid, user: None, group: None };
                let tree_path = [b"top/", &path[..]].concat();
                let mut entry = Entry {
                    owner: Arc::new(owner),
                    ..Entry::new(tree_path, kind(path), after.mode)
                };
                map.apply(&mut entry);
                prop_assert_eq!(OwnerAndMode::of(&entry), *before, "{:?}\n{}", path.escape_ascii().to_string(), String::from_utf8_lossy(&text));
            }
        }
    }

    #[test]
    fn a_tree_that_changed_as_one_needs_one_section() {
        let mut text = Vec::new();
        let mut record = Recorder::new(Path::new("/srv"), &mut text).expect("written");
        let before = OwnerAndMode { uid: 998, gid: 997, mode: 0o750 };
        let after = OwnerAndMode { uid: 1000, gid: 1001, mode: 0o750 };
        record.add(b"", EntryKind::Directory, before, after, &[]).expect("written");
        for path in [&b"a"[..], b"a/b", b"c"] {
            record.add(path, EntryKind::File, before, after, &[]).expect("written");
        }
        assert_eq!(record.finish().expect("written"), 4);
        let text = String::from_utf8(text).expect("text");
        let rules = text.lines().skip(1).collect::<Vec<_>>().join("\n");
        assert_eq!(rules, "[path \"/srv/\"]\nuser 1000 -> 998\ngroup 1001 -> 997\nmode Da+,Fa+");
    }
}
