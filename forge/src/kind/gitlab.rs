//! GitLab from its Linux package.
//!
//! Paths are those of the package. Real places of data come from the configuration that the package
//! *generates*: `gitlab.yml`, Gitaly's `config.toml`, `database.yml`. `gitlab.rb` is Ruby and is
//! not evaluated.

pub mod generated;
pub mod keys;
mod mattermost;
mod named_files;
pub mod package;
pub mod paths;
mod redis_address;
mod redis_conf;
mod redis_password;
pub mod repositories;
pub mod rows;
#[cfg(test)]
mod tests;

use super::mattermost::single_sign_on;
use super::{Kind, Rebuilding, Site, below};
use crate::catalogue::Catalogue;
use crate::check::{Check, Verdict};
use crate::coverage::check_files;
use crate::earlier::Earlier;
use crate::encrypted::{Keys, NAMES, keys_of};
use crate::error::Result;
use crate::file;
use crate::links;
use crate::plan::{Plan, Product};
use crate::service::Password;
use crate::service::postgres::Connection;
use crate::set_aside;
use crate::view::{View, shown};
use paths::Package;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// GitLab from its Linux package.
pub struct Gitlab;

const MANIFEST: &str = "/opt/gitlab/version-manifest.txt";

/// Suffixes of the product's package names.
const EDITIONS: [&str; 3] = ["ce", "ee", "jh"];

/// Services that change the copied data: the web server under both of its names, and the job
/// runner. Services that they need, such as Gitaly, keep running.
pub const WRITERS: [&str; 3] = ["puma", "unicorn", "sidekiq"];

impl Kind for Gitlab {
    fn name(&self) -> &'static str {
        "gitlab"
    }

    fn title(&self) -> &'static str {
        "GitLab, Linux package"
    }

    fn detect(&self, root: &Path) -> Option<String> {
        let manifest = below(root, Path::new(MANIFEST));
        manifest.exists().then(|| manifest.display().to_string())
    }

    fn rebuilding(&self) -> Rebuilding {
        Rebuilding {
            first: &["secrets", "gitlab.rb", "config", "ssh-host-keys"],
            remade: &["generated"],
            configure: Some(&["reconfigure"]),
            needs_redis: true,
            up: &["postgresql"],
            is_container_up: false,
            is_version_in_database: false,
            left: &[
                "{rake} gitlab:check SANITIZE=true",
                "{rake} gitlab:doctor:secrets",
                "{rake} gitlab:artifacts:check",
                "{rake} gitlab:lfs:check",
                "{rake} gitlab:uploads:check",
            ],
        }
    }

    fn fill(&self, site: &Site<'_>, plan: &mut Plan) -> Result<()> {
        plan.product = product(&site.settings.root, &mut plan.notes);
        let keys = plan.takes("ssh-host-keys", "SSH host keys", site.at("/etc/ssh"));
        keys.owner = Some("root".into());
        keys.paths.extend(host_keys_elsewhere(site));
        Package { site, container: None }.fill(plan)
    }

    fn ask(&self, plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
        let mut catalogue = rows::ask(plan, databases)?;
        mattermost::ask(plan, databases, &mut catalogue)?;
        Ok(catalogue)
    }

    fn keys(&self, plan: &Plan, view: &View<'_>) -> Result<BTreeMap<&'static str, Vec<Password>>> {
        let Some(path) = plan.place("secrets") else { return Ok(BTreeMap::new()) };
        let content = view.file(&path)?.and_then(|seen| seen.content).unwrap_or_default();
        let secrets = keys::Place::of(&path).parse(&content).unwrap_or_default();
        let keys = |name: &'static str| (name, keys_of(&secrets[name]));
        Ok(NAMES.into_iter().map(keys).filter(|(_, keys)| !keys.is_empty()).collect())
    }

    fn try_keys(
        &self,
        plan: &Plan,
        databases: &mut [Connection<'_>],
        view: &View<'_>,
    ) -> Result<Option<Check>> {
        let catalogue = keys::ask(plan, databases)?;
        check_secrets(plan, &catalogue, view).map(Some)
    }

    fn check_loaded(
        &self,
        plan: &Plan,
        databases: &mut [Connection<'_>],
        view: &View<'_>,
    ) -> Result<Vec<Check>> {
        let mut catalogue = rows::ask_for_drill(plan, databases)?;
        mattermost::ask(plan, databases, &mut catalogue)?;
        let mut checks = vec![check_secrets(plan, &catalogue, view)?];
        checks.extend(catalogue.unknown());
        checks.push(check_files(plan, &catalogue, view)?);
        checks.extend(single_sign_on::check(plan, &catalogue, view)?);
        Ok(checks)
    }

    fn check(
        &self,
        plan: &Plan,
        catalogue: &mut Catalogue,
        view: &View<'_>,
        earlier: Option<&Earlier<'_>>,
    ) -> Result<Vec<Check>> {
        let mut checks = vec![check_secrets(plan, catalogue, view)?];
        checks.extend(check_catalogue(plan, catalogue, view, earlier)?);
        checks.extend(single_sign_on::check(plan, catalogue, view)?);
        Ok(checks)
    }
}

/// Keys without which encrypted content of the database is lost.
const SECRETS: [&str; 3] = ["db_key_base", "secret_key_base", "otp_key_base"];

/// Consequence of lost keys.
pub const SECRETS_LOST: &str = "without them CI variables, tokens and two-factor sign-in are lost";

/// Checks that the secrets in the copy are those that GitLab would read.
fn check_secrets(plan: &Plan, catalogue: &Catalogue, view: &View<'_>) -> Result<Check> {
    let part = plan.parts.iter().find(|part| part.name == "secrets");
    let paths = part.map(|part| part.paths.clone()).unwrap_or_default();
    let seen = view.read(&paths)?.into_iter().flatten().next();
    let is_required = part.is_some_and(|part| part.is_required);
    // Another copy would have the same content as this machine.
    let is_settled = view.read(&paths)? == View::machine(&plan.mounts).read(&paths)?;
    let place = keys::Place::of(paths.first().map_or(Path::new(""), PathBuf::as_path));
    let file = place.name();
    let Some(seen) = seen else {
        let place = if view.is_live() { "does not exist" } else { "is not in the copy" };
        let text = format!("{file} {place}; {SECRETS_LOST}");
        let verdict = if is_required { Verdict::Failed } else { Verdict::Warning };
        return Ok(Check { is_settled, ..Check::new("secrets", verdict, text) });
    };
    let failed = |what: String| {
        let hint = match place {
            keys::Place::Kept => {
                "restore the file from an older snapshot before `gitlab-ctl reconfigure` makes new \
                 keys"
            }
            keys::Place::Generated => {
                "restore it and gitlab.rb from an older snapshot before `gitlab-ctl reconfigure` \
                 makes new keys"
            }
        };
        let text = format!("{file} {what}; {SECRETS_LOST}");
        let check = Check::new("secrets", Verdict::Failed, text).with_hint(hint);
        Ok(Check { is_settled, ..check })
    };
    let Some(content) = seen.content else {
        return failed("is not a readable file".into());
    };
    if content.trim_ascii().is_empty() {
        return failed("is empty".into());
    }
    let secrets = match place.parse(&content) {
        Ok(secrets) => secrets,
        Err(reason) => return failed(format!("is {reason}")),
    };
    let absent = SECRETS.into_iter().filter(|name| keys_of(&secrets[name]).is_empty());
    let absent: Vec<&str> = absent.collect();
    if absent.is_empty() {
        let other = match place {
            keys::Place::Kept => keys::generated(plan, view)?,
            keys::Place::Generated => None,
        };
        let from = keys::Source { file, keys: Keys::of(&secrets), other };
        return Ok(keys::check(plan, catalogue, &from));
    }
    failed(format!("lacks {} in {}", absent.join(", "), place.section()))
}

/// Checks that the copy has the repositories and files named by the databases.
pub fn check_catalogue(
    plan: &Plan,
    catalogue: &mut Catalogue,
    view: &View<'_>,
    earlier: Option<&Earlier<'_>>,
) -> Result<Vec<Check>> {
    let mut checks: Vec<Check> = catalogue.unknown().collect();
    if catalogue.schema.is_empty() && checks.is_empty() {
        return Ok(vec![Check::of_no_database(plan, "GitLab")]);
    }
    checks.extend(check_schema(plan, catalogue));
    if catalogue.knows(rows::PROJECTS) {
        checks.extend(repositories::check(plan, catalogue, view, earlier)?);
    }
    checks.push(check_files(plan, catalogue, view)?);
    checks.extend(check_ssh_keys(plan, catalogue, view)?);
    Ok(checks)
}

/// Warns of an `authorized_keys` without most of the keys in the database. Their users cannot sign in
/// over ssh, for example after `gitlab-ctl reconfigure` has made an empty file.
fn check_ssh_keys(plan: &Plan, catalogue: &Catalogue, view: &View<'_>) -> Result<Option<Check>> {
    let wanted = catalogue.ssh_keys.filter(|count| *count > 0);
    let Some((wanted, place)) = wanted.zip(plan.place("ssh")) else { return Ok(None) };
    let is_dir = place.ends_with(".ssh");
    let path = if is_dir { place.join("authorized_keys") } else { place };
    let content = match view.file(&path)? {
        // A large file has many keys.
        Some(seen) if seen.content.is_none() => return Ok(None),
        seen => seen.and_then(|seen| seen.content).unwrap_or_default(),
    };
    let is_key = |line: &&[u8]| {
        let line = line.trim_ascii_start();
        !line.is_empty() && !line.starts_with(b"#")
    };
    let found = content.split(|byte| *byte == b'\n').filter(is_key).count() as u64;
    // GitLab adds and removes single keys in the background.
    if found >= wanted.div_ceil(2) {
        return Ok(None);
    }
    let text = format!("{} has {found} of the {wanted} keys in the database", shown(&path));
    let hint = "GitLab writes all of them with `gitlab-rake gitlab:shell:setup`; until then ssh \
                refuses the other users";
    Ok(Some(Check::new("ssh-keys", Verdict::Warning, text).with_hint(hint).settled()))
}

/// Checks that each database of GitLab itself has tables. An empty database can be dumped, too.
fn check_schema(plan: &Plan, catalogue: &Catalogue) -> Option<Check> {
    if !catalogue.knows(rows::SCHEMA) {
        return None;
    }
    let own = plan.databases.iter().filter(|database| {
        database.is_required && ["main", "ci", "sec"].contains(&&*database.purpose)
    });
    let empty: Vec<&str> = own
        .map(|database| database.name.as_str())
        .filter(|name| catalogue.databases.contains(*name) && !catalogue.schema.contains_key(*name))
        .collect();
    let text = format!("database {} has no tables of GitLab", empty.join(", "));
    let hint = "load it from a dump; `forgekeep restore` can fetch one from an older snapshot";
    let check = Check::new("schema", Verdict::Failed, text).with_hint(hint).settled();
    (!empty.is_empty()).then_some(check)
}

/// Returns the host keys that the ssh server of the machine keeps outside of its directory.
fn host_keys_elsewhere(site: &Site<'_>) -> BTreeSet<PathBuf> {
    let settings = file::matching(&site.at("/etc/ssh/sshd_config.d/*.conf"));
    let settings = settings.into_iter().chain([site.at("/etc/ssh/sshd_config")]);
    let texts = settings.filter_map(|path| file::text(&path).ok().flatten());
    let mut keys = BTreeSet::new();
    for line in texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()) {
        let (name, value) = line.trim().split_once([' ', '\t', '=']).unwrap_or_default();
        let key = value.trim_matches([' ', '\t', '=', '"']);
        let is_key = ["hostkey", "hostcertificate"].contains(&&*name.to_ascii_lowercase());
        if is_key && key.starts_with('/') && !key.starts_with("/etc/ssh/") {
            let key = site.at(key);
            let mut public = key.clone().into_os_string();
            public.push(".pub");
            keys.extend([key, public.into()].into_iter().filter(|path| path.is_file()));
        }
    }
    keys
}

/// Reads the manifest of the package below a root. Without one, the version is unknown.
pub fn installed(root: &Path) -> Product {
    product(root, &mut Vec::new())
}

/// The same, with a note of a manifest that cannot be read.
fn product(root: &Path, notes: &mut Vec<String>) -> Product {
    let mut product = Product { name: "GitLab".into(), ..Product::default() };
    let manifest = below(root, Path::new(MANIFEST));
    let manifest = file::text(&manifest).unwrap_or_else(|error| {
        notes.push(format!("{error}; version and edition are unknown"));
        None
    });
    let manifest = manifest.unwrap_or_default();
    // The product's line, `gitlab-ce 17.8.2`, is among those of its components.
    for line in manifest.lines() {
        let mut words = line.split_whitespace();
        let edition = words.next().and_then(|name| name.strip_prefix("gitlab-"));
        if let (Some(edition), Some(version)) = (edition, words.next_back())
            && EDITIONS.contains(&edition)
        {
            product.edition = Some(edition.to_owned());
            product.version = Some(version.to_owned());
            break;
        }
    }
    product
}

/// Reason for skipping GitLab's own archives.
pub const ARCHIVES: &str = "archives made by GitLab's own backup command";

/// Skips the directory of GitLab's own archives. If parts are in it, or it is one, skips only the
/// archives themselves.
pub fn leave_archives(site: &Site<'_>, dir: &Path, plan: &mut Plan) {
    let root = &site.settings.root;
    let real = |path: &Path| links::follow(root, path).map_or(path.to_owned(), |real| real.path);
    let end = real(dir);
    let set = site.settings.parts.values().flat_map(|part| part.path.iter().chain(&part.paths));
    let mut parts = plan.parts.iter().flat_map(|part| &part.paths).chain(set);
    if plan.skipped.iter().any(|left| left.path == dir) {
        return;
    }
    if !parts.any(|path| path.starts_with(dir) || real(path).starts_with(&end)) {
        return plan.leaves(dir.to_owned(), ARCHIVES);
    }
    let entries = std::fs::read_dir(&end).into_iter().flatten().flatten();
    let archives = entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        name.ends_with(b"_gitlab_backup.tar")
    });
    archives.for_each(|path| plan.leaves(path, ARCHIVES));
}

/// Directories in which file systems and file servers show older states of the directory around.
const SNAPSHOTS: [&str; 5] = [".snapshots", ".snapshot", ".snap", ".zfs", "#snapshot"];

/// Skips older states that a file system shows in these directories and in the paths of parts.
pub fn leave_snapshots<'a>(dirs: impl Iterator<Item = &'a PathBuf>, plan: &mut Plan) {
    let parts = plan.parts.iter().flat_map(|part| part.paths.iter().cloned());
    let dirs: BTreeSet<PathBuf> = dirs.cloned().chain(parts).collect();
    for path in dirs.iter().flat_map(|dir| SNAPSHOTS.map(|name| dir.join(name))) {
        // A group may have such a name.
        let is_group =
            |entry: std::fs::DirEntry| entry.path().extension().is_some_and(|end| end == "git");
        let mut entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
        if path.is_dir() && !entries.any(is_group) {
            plan.leaves(path, "older states that the file system keeps");
        }
    }
}

/// Adds entries of a data directory that belong to no part as parts of their own. Newer versions of
/// GitLab may keep data there that this program does not know.
pub fn take_unknown(site: &Site<'_>, dir: &Path, prefix: &str, plan: &mut Plan) {
    for path in unknown_in(site, dir, plan, true) {
        let inner = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().replace('/', "-");
        let name = format!("{prefix}-{inner}");
        plan.notes.push(format!(
            "{} is unknown to this program; it is copied as part `{name}`",
            shown(&path)
        ));
        plan.takes(&name, "unknown; copied as is", path);
    }
}

/// Adds a note for each unknown entry of the data directory, and of the directories `inner` in it.
pub fn note_unknown(site: &Site<'_>, data: &Path, inner: &[&str], plan: &mut Plan) {
    let dirs = std::iter::once(data.to_owned()).chain(inner.iter().map(|dir| data.join(dir)));
    let unknown = dirs.flat_map(|dir| unknown_in(site, &dir, plan, false));
    let mut unknown: Vec<PathBuf> = unknown.collect();
    unknown.sort();
    for path in unknown {
        let text =
            format!("{} is unknown and not copied; to copy it, make it a part", shown(&path));
        plan.notes.push(text);
    }
}

/// Returns the entries of a directory that are neither in a part nor skipped. If `is_deep` is
/// true, also searches directories that contain parts.
fn unknown_in(site: &Site<'_>, dir: &Path, plan: &Plan, is_deep: bool) -> Vec<PathBuf> {
    // An absolute link leads to a place below the root of the instance.
    let Ok(real) = links::follow(&site.settings.root, dir) else { return Vec::new() };
    let entries = std::fs::read_dir(real.path).into_iter().flatten().flatten();
    let mut unknown = Vec::new();
    for path in entries.map(|entry| dir.join(entry.file_name())) {
        // File systems create `lost+found`, and rebuilds set data aside.
        let is_set_aside = path.file_name().is_some_and(set_aside::is_name);
        if path.ends_with("lost+found") || is_set_aside {
            continue;
        }
        match knowledge(&path, site, plan) {
            Knowledge::Complete => {}
            Knowledge::OfContent if is_deep => unknown.extend(unknown_in(site, &path, plan, true)),
            Knowledge::OfContent => {}
            Knowledge::None => unknown.push(path),
        }
    }
    unknown.sort();
    unknown
}

/// Extent to which the parts of a plan, its exclusions and the settings cover a path.
enum Knowledge {
    /// The path with everything below it is in a part or skipped.
    Complete,
    /// Some paths below the path are in a part or skipped.
    OfContent,
    /// No path below it is.
    None,
}

fn knowledge(path: &Path, site: &Site<'_>, plan: &Plan) -> Knowledge {
    let set = site.settings.parts.values().flat_map(|part| part.path.iter().chain(&part.paths));
    let parts = plan.parts.iter().flat_map(|part| part.paths.iter().chain(&part.links)).chain(set);
    let real = links::follow(&site.settings.root, path).ok().map(|real| real.path);
    let mut known = Knowledge::None;
    for part in parts.chain(plan.skipped.iter().map(|left| &left.path)) {
        if path.starts_with(part) || real.as_ref() == Some(part) {
            return Knowledge::Complete;
        }
        if part.starts_with(path) {
            known = Knowledge::OfContent;
        }
    }
    known
}
