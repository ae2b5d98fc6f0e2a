//! Restores of an instance over the machine that it runs on.

use super::instance;
use crate::exit::{Failure, with_hint};
use crate::ui::Ui;
use forge::manifest::{self, DIR, Manifest};
use forge::plan::Product;
use forge::sshd;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use store::backup::tree_path;
use store::entry::Displayed;
use store::glob::{Globs, escape};
use store::id::SnapshotId;
use store::snapshot::Snapshot;
use store::store::Store;
use store::tree::{TreeReader, children};

/// Part with the host keys, and the other files of their directory.
const SSH: &str = "ssh-host-keys";
/// Configuration of the package below the root of an instance.
const CONFIG: &str = "etc/gitlab";
/// Kind of directories without a product.
const PLAIN: &str = "plain";
/// Settings of sshd that are named; more are only counted.
const NAMED: usize = 5;

/// A restore that is about to begin.
pub struct InPlace<'a> {
    pub store: &'a Store,
    pub id: &'a SnapshotId,
    pub snapshot: &'a Snapshot,
    /// Path in the snapshot; empty for all of it.
    pub from: &'a [u8],
    pub target: &'a Path,
    pub include: &'a Globs,
    /// Patterns of `include`, as they were given.
    pub patterns: &'a [OsString],
    pub exclude: &'a Globs,
    /// True if files that the snapshot lacks are removed.
    pub is_delete: bool,
}

impl InPlace<'_> {
    /// Warns of dangers and demands consent. Returns patterns of paths that stay unchanged; empty
    /// without dangers.
    pub fn look(&self, is_agreed: bool, ui: &Ui) -> Result<Vec<Vec<u8>>, Failure> {
        let manifest = instance::manifest(self.store, self.id, self.snapshot);
        let name = match (&self.snapshot.instance, &manifest) {
            (Some(of), _) => of.name.clone(),
            (None, Ok(None)) => return Ok(Vec::new()),
            (None, Ok(Some(manifest))) => manifest.instance.clone(),
            (None, Err(_)) => "of unknown name".to_owned(),
        };
        let is_plain = matches!(&manifest, Ok(Some(manifest)) if manifest.kind == PLAIN);
        if !self.is_live() && (is_plain || !self.is_live_elsewhere()) {
            return Ok(Vec::new());
        }
        let target = self.target.displayed();
        let has_databases =
            !matches!(&manifest, Ok(Some(manifest)) if manifest.databases.is_empty());
        let databases = if has_databases { " and does not restore databases" } else { "" };
        ui.warn(&format!(
            "restoring instance {name} into {target} overwrites files of this machine{databases}; \
             stop its services first",
        ));
        let manifest = manifest.unwrap_or_else(|failure| {
            let (reason, _) = failure.words().unwrap_or_default();
            ui.warn(&format!(
                "{DIR}/{} of the snapshot is unreadable ({reason}); its version cannot be compared \
                 with the one installed here",
                manifest::FILE
            ));
            None
        });
        if let Some(manifest) = &manifest {
            self.warn_of_version(manifest, ui);
        }
        let dumps = Path::new("/").join(DIR);
        if has_databases && self.selects(&dumps) {
            let place = self.destination(&dumps).unwrap_or_default();
            ui.warn(&format!(
                "this restore creates {} with database dumps that contain secrets; delete it afterwards",
                place.displayed()
            ));
        }
        let kept = self.ssh_settings(manifest.as_ref(), ui)?;
        if is_agreed {
            return Ok(kept);
        }
        Err(with_hint(
            format!("a restore of instance {name} over this machine needs --yes"),
            "restore into an empty directory and move the needed files, or give --yes; --dry-run \
             shows the changes",
        ))
    }

    /// Returns true if a restored path would be the instance's own path, or below it.
    fn is_live(&self) -> bool {
        let real = |path: &Path| path.canonicalize().ok();
        let paths = self.snapshot.paths.iter();
        let paths: Vec<PathBuf> = paths.map(|path| OsStr::from_bytes(path).into()).collect();
        let is_of_instance = |place: &PathBuf| {
            paths.iter().any(|path| place.starts_with(real(path).as_ref().unwrap_or(path)))
        };
        let places = paths.iter().filter_map(|path| self.destination(path));
        let target = real(self.target);
        // A path that is missing at `/` today may exist tomorrow.
        if target.as_deref() == Some(Path::new("/")) {
            return true;
        }
        let within = target.filter(|_| !self.from.is_empty() || paths.is_empty());
        places.filter_map(|place| real(&place)).chain(within).any(|place| is_of_instance(&place))
    }

    /// Returns true if a path would be restored to the path that it had below the root of its
    /// instance, such as `/mnt/snapshot/etc/gitlab` to `/etc/gitlab`.
    fn is_live_elsewhere(&self) -> bool {
        let from = Path::new("/").join(OsStr::from_bytes(self.from));
        let mut moved = self.snapshot.paths.iter().filter_map(|path| {
            let path = Path::new(OsStr::from_bytes(path));
            let place = self.destination(path)?.canonicalize().ok()?;
            let source = if from.starts_with(path) { from.as_path() } else { path };
            Some((source.to_owned(), place))
        });
        moved.any(|(source, place)| {
            let inner = place.strip_prefix("/").unwrap_or(&place);
            source != place && !inner.as_os_str().is_empty() && source.ends_with(inner)
        })
    }

    /// Returns the destination of a path of the snapshot; `None` if nothing of it is restored.
    fn destination(&self, path: &Path) -> Option<PathBuf> {
        let path = tree_path(path);
        let from = Path::new(OsStr::from_bytes(self.from));
        let path = Path::new(OsStr::from_bytes(&path));
        match path.strip_prefix(from) {
            Ok(rest) if rest.as_os_str().is_empty() => Some(self.target.to_owned()),
            Ok(rest) => Some(self.target.join(rest)),
            Err(_) => from.starts_with(path).then(|| self.target.to_owned()),
        }
    }

    /// Returns true if a path, or one below it, is restored.
    fn selects(&self, path: &Path) -> bool {
        let path = tree_path(path);
        let below = TreeReader::within(&self.snapshot.root.chunk(), &path, self.store);
        let is_selected = |path: &[u8]| {
            let is_below = store::entry::is_within(path, self.from);
            let is_wanted = self.include.is_empty() || self.include.covers(path);
            is_below && is_wanted && !self.exclude.covers(path)
        };
        below.flatten().any(|entry| is_selected(&entry.path))
    }

    /// Settings of sshd, which may lock everybody out, are left as they are.
    fn ssh_settings(&self, manifest: Option<&Manifest>, ui: &Ui) -> Result<Vec<Vec<u8>>, Failure> {
        let mut dirs: Vec<PathBuf> = Vec::new();
        let of_manifest = manifest.into_iter().flat_map(|manifest| manifest.paths_of(SSH));
        dirs.extend(of_manifest.map(Path::to_owned));
        // Its usual place below any root, as a path of the snapshot or within one.
        for path in self.snapshot.paths.iter().map(|path| Path::new(OsStr::from_bytes(path))) {
            if path.ends_with("etc/ssh") {
                dirs.push(path.to_owned());
            } else if path.ends_with("etc") {
                dirs.push(path.join("ssh"));
            } else {
                dirs.push(path.join("etc/ssh"));
            }
        }
        dirs.push(Path::new("/").join(sshd::DIR));
        let tree = self.snapshot.root.chunk();
        let with_ends = |dir: &PathBuf| sshd::with_ends(dir, Path::new("/"), &tree, self.store);
        dirs = dirs.iter().flat_map(with_ends).collect();
        dirs.sort();
        dirs.dedup();
        let (mut left, mut named) = (Vec::new(), Vec::new());
        for dir in dirs {
            let mut known = HashSet::new();
            let mut inner = vec![tree_path(&dir)];
            while let Some(within) = inner.pop() {
                for entry in children(&self.snapshot.root.chunk(), &within, self.store).flatten() {
                    known.insert(entry.path.clone());
                    let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                    let path = Path::new("/").join(OsStr::from_bytes(&entry.path));
                    if name.starts_with(sshd::HOST_KEY) || !self.selects(&path) {
                        continue;
                    }
                    if self.is_named(&dir, &path) {
                        named.push(path);
                    } else if self.is_above_named(&path) {
                        inner.push(entry.path);
                    } else {
                        left.push(path);
                    }
                }
            }
            left.extend(self.newer(&dir, &known));
        }
        if !left.is_empty() {
            ui.warn(&format!(
                "restoring only the host keys of sshd; {} stay unchanged unless --include gives \
                 their path without wildcards",
                shown(&left)
            ));
        }
        if !named.is_empty() {
            ui.warn(&format!(
                "restoring settings of sshd: {}; compare them with those of this machine, because \
                 wrong ones lock everybody out",
                shown(&named)
            ));
        }
        Ok(left.iter().map(|path| escape(path)).collect())
    }

    /// Returns the paths beside the host keys that the snapshot lacks, and that `--delete` would
    /// remove.
    fn newer(&self, dir: &Path, known: &HashSet<Vec<u8>>) -> Vec<PathBuf> {
        // Nothing outside of the paths of the snapshot is removed.
        let mut paths = self.snapshot.paths.iter().map(|path| OsStr::from_bytes(path));
        let is_within = store::entry::is_within(&tree_path(dir), self.from)
            && paths.any(|path| dir.starts_with(path));
        let place = self.destination(dir).filter(|_| self.is_delete && is_within);
        let entries = place.and_then(|place| place.read_dir().ok()).into_iter().flatten();
        let paths = entries.flatten().map(|entry| dir.join(entry.file_name()));
        let mut newer: Vec<PathBuf> = paths
            .filter(|path| !known.contains(&tree_path(path)[..]) && !self.is_named(dir, path))
            .collect();
        newer.sort();
        newer
    }

    /// Returns true if `--include` names a path of sshd's directory, or this directory, without
    /// wildcards. A pattern for everything in `/etc` does not ask for settings of sshd.
    fn is_named(&self, ssh_dir: &Path, path: &Path) -> bool {
        let above = ssh_dir.parent().map(tree_path).unwrap_or_default();
        self.literals().filter_map(|literal| Globs::new([literal]).ok()).any(|literal| {
            literal.covers(&tree_path(path)) && (above.is_empty() || !literal.covers(&above))
        })
    }

    /// Returns true if `--include` names a path below this one without wildcards.
    fn is_above_named(&self, path: &Path) -> bool {
        let path = tree_path(path);
        let mut below =
            self.literals().map(|literal| tree_path(Path::new(OsStr::from_bytes(literal))));
        below.any(|literal| literal != path && store::entry::is_within(&literal, &path))
    }

    /// Patterns of `--include` without wildcards.
    fn literals(&self) -> impl Iterator<Item = &[u8]> {
        let patterns = self.patterns.iter().map(|pattern| pattern.as_bytes());
        patterns.filter(|pattern| !pattern.iter().any(|byte| b"?*[]{}\\".contains(byte)))
    }

    fn warn_of_version(&self, manifest: &Manifest, ui: &Ui) {
        let (then, here) = (&manifest.product, self.product_here(manifest));
        let versions = then.version.as_ref().zip(here.version.as_ref());
        let editions = then.edition.as_ref().zip(here.edition.as_ref());
        if let Some((old, here)) = versions.filter(|(old, here)| old != here) {
            ui.warn(&format!(
                "the snapshot is from GitLab {old}, but GitLab {here} is installed here: files and \
                 databases of different versions are incompatible"
            ));
        }
        if let Some((old, here)) = editions.filter(|(old, here)| old != here) {
            ui.warn(&format!(
                "the snapshot is from GitLab's edition {old}, but edition {here} is installed here: \
                 restore it into edition {old}, and change the edition afterwards"
            ));
        }
    }

    /// Version and edition of the product that is installed here, or that last used the data here.
    fn product_here(&self, manifest: &Manifest) -> Product {
        let of_data = |part: &str, file: &str| {
            let path = self.destination(manifest.paths_of(part).next()?)?;
            // `join` would end the path of a file with a slash.
            let path = if file.is_empty() { path } else { path.join(file) };
            std::fs::read_to_string(path).ok()
        };
        let product = |text: Option<String>| {
            let text = text.unwrap_or_default();
            let (number, rest) = text.trim().split_once('-').unwrap_or((text.trim(), ""));
            let version = Some(number.to_owned()).filter(|number| !number.is_empty());
            // Such as `17.8.2-ee`; the community edition has none.
            let edition = ["ee", "jh"].into_iter().find(|edition| rest.ends_with(edition));
            let edition = version.as_ref().map(|_| edition.unwrap_or("ce").to_owned());
            Product { version, edition, ..Product::default() }
        };
        match &manifest.kind[..] {
            "gitlab" => forge::kind::gitlab::installed(&self.root_here(manifest)),
            // Each start of the container writes it.
            "gitlab-container" => product(of_data("generated", "../VERSION")),
            "docker-gitlab" => product(of_data("version", "")),
            _ => Product::default(),
        }
    }

    /// Root of the instance that the restore changes.
    fn root_here(&self, manifest: &Manifest) -> PathBuf {
        let config = manifest.paths_of("config").find(|path| path.ends_with(CONFIG));
        let place = config.and_then(|path| self.destination(path));
        let root = place.filter(|place| place.ends_with(CONFIG));
        let root = root.and_then(|place| Some(place.ancestors().nth(2)?.to_owned()));
        root.unwrap_or_else(|| "/".into())
    }
}

/// Lists some paths for people.
fn shown(paths: &[PathBuf]) -> String {
    let first: Vec<String> = paths.iter().take(NAMED).map(|path| path.displayed()).collect();
    let more = paths.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", first.join(", "))
}
