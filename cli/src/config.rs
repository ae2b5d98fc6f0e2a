//! The configuration file: stores, instances, notifiers.

use crate::exit::{Failure, other, usage, with_hint};
use crate::notify::Notifier;
use forge::mask::masked;
use forge::process::quoted_shown;
use forge::secret::Secret;
use forge::settings::{Limit, Settings};
use forge::suggest::closest;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::entry::Displayed;
use store::mount::MountState;

/// Default path of the configuration file.
pub const DEFAULT: &str = "/etc/forgekeep.toml";

/// Longest name of an instance in bytes. Names of files have an end as well.
const NAME_BYTES_MAX: usize = 100;

/// Content of the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Directory of the program's own files, such as the record of steps to undo.
    #[serde(default = "state")]
    pub state: PathBuf,
    /// Time that monitoring stays silent once services run again.
    #[serde(default = "five_minutes")]
    pub silence_after: Limit,
    /// Stores by name.
    #[serde(default)]
    pub stores: BTreeMap<String, StoreSettings>,
    /// Instances by name.
    #[serde(default)]
    pub instances: BTreeMap<String, Settings>,
    /// Notifiers of backup results.
    #[serde(default)]
    pub notify: Vec<Notifier>,
}

/// Settings of a store.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StoreSettings {
    /// Directory of the store.
    pub path: PathBuf,
    /// Id of the store, or its first digits.
    pub id: Option<String>,
    /// True if the store is never on the root file system.
    #[serde(default)]
    pub mounted: bool,
}

/// Minimum number of digits of a store's id.
const ID_DIGITS_MIN: usize = 8;

impl StoreSettings {
    /// Returns the directory. Fails if its disk is not mounted, or if it holds another store than the
    /// expected one.
    pub fn expected(&self) -> Result<&Path, Failure> {
        let path = self.path.displayed();
        if self.mounted && !MountState::nearest(&self.path).is_some_and(|of| of.is_mounted()) {
            return Err(Failure::WrongStore {
                message: format!("the disk of store {path} is not mounted: it is on the root file system"),
                hint: "mount the disk; a store that belongs there must not have `mounted = true` in the \
                       configuration"
                    .into(),
            });
        }
        let Some(wanted) = &self.id else { return Ok(&self.path) };
        let found = match std::fs::read(self.path.join(store::config::FILE)) {
            Ok(bytes) => store::config::Config::from_bytes(&bytes).ok(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let segments = self.path.join(store::store::SEGMENTS_DIR);
                let is_store = segments.read_dir().is_ok_and(|mut all| all.next().is_some());
                if !is_store {
                    return Err(Failure::WrongStore {
                        message: format!("no store at {path}; the configuration expects store {wanted}"),
                        hint: "mount its disk; to create a new store, remove its `id` from the configuration"
                            .into(),
                    });
                }
                None
            }
            Err(_) => None,
        };
        // Opening a damaged store finds and reports the fault.
        match found.filter(|found| !found.store_id.starts_with(wanted.as_str())) {
            None => Ok(&self.path),
            Some(found) => Err(Failure::WrongStore {
                message: format!(
                    "{path} has store {}; the configuration expects store {wanted}",
                    &found.store_id[..wanted.len().clamp(ID_DIGITS_MIN, found.store_id.len())]
                ),
                hint: "mount the right disk, or correct `id` of the store in the configuration"
                    .into(),
            }),
        }
    }
}

fn five_minutes() -> Limit {
    Limit(Duration::from_secs(5 * 60))
}

/// Returns the state directory of a machine without a configuration.
pub fn state() -> PathBuf {
    "/var/lib/forgekeep".into()
}

/// Returns one setting of a file, if it is valid.
fn setting<T: serde::de::DeserializeOwned>(table: &toml::Table, name: &str) -> Option<T> {
    table.get(name)?.clone().try_into().ok()
}

impl Config {
    /// Reads the configuration file.
    pub fn read(path: &Path) -> Result<Config, Failure> {
        let shown = path.displayed();
        let text = std::fs::read_to_string(path).map_err(|error| {
            use std::io::ErrorKind as Is;
            let hint = match error.kind() {
                Is::NotFound => "give --config FILE; `forgekeep detect` proposes a configuration",
                Is::PermissionDenied => {
                    "run the command as a user who may read the file, such as root"
                }
                Is::IsADirectory => {
                    "--config needs a file, such as forgekeep.toml in this directory"
                }
                Is::InvalidData => "convert the file to UTF-8",
                _ => "check the path and the disk",
            };
            with_hint(format!("cannot read the configuration {shown}: {error}"), hint)
        })?;
        let mut config: Config = toml::from_str(&text).map_err(|error| {
            let place = place(&text, error.span(), error.message());
            let message = format!("{shown}, {place}: {}", error.message());
            match suggestion(error.message()) {
                Some(known) => with_hint(message, format!("did you mean `{known}`?")),
                None => other(message),
            }
        })?;
        check_kinds(path, &text)?;
        config.resolve_stores(path)?;
        config.check(path)?;
        Ok(config)
    }

    /// Reads what the steps of a killed run need: the state directory and the notifiers. Everything
    /// else in the file may be wrong. Also returns why the configuration cannot be read as a whole.
    pub fn for_recovery(path: &Path) -> (Config, Option<Failure>) {
        let failure = match Config::read(path) {
            Ok(config) => return (config, None),
            Err(failure) => failure,
        };
        let text = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // The settings before the first table may be right in a file that is not.
        let is_table = |line: &str| line.trim_start().starts_with('[');
        let first: Vec<&str> = text.lines().take_while(|line| !is_table(line)).collect();
        let table: toml::Table = toml::from_str(&text)
            .or_else(|_| toml::from_str(&first.join("\n")))
            .unwrap_or_default();
        let mut config = Config {
            state: setting(&table, "state").unwrap_or_else(state),
            silence_after: setting(&table, "silence-after").unwrap_or_else(five_minutes),
            stores: BTreeMap::new(),
            instances: BTreeMap::new(),
            notify: setting(&table, "notify").unwrap_or_default(),
        };
        config.notify.retain(|notifier| notifier.fault().is_none());
        (config, Some(failure))
    }

    /// Resolves the paths of stores. Fails if one does not name a local directory.
    fn resolve_stores(&mut self, file: &Path) -> Result<(), Failure> {
        for (name, store) in &mut self.stores {
            let written = std::mem::take(&mut store.path);
            let shown = masked(&format!(
                "{}, key `stores.{name}.path`: {}",
                file.displayed(),
                written.displayed()
            ));
            store.path = crate::place::local(written).map_err(|reason| usage(shown, reason))?;
        }
        Ok(())
    }

    fn check(&self, path: &Path) -> Result<(), Failure> {
        for name in self.instances.keys() {
            // File names are built from it.
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
                let hint = "use letters, digits, `-`, `_` and `.`";
                return Err(with_hint(
                    format!("{}: `{name}` is not a valid instance name", path.displayed()),
                    hint,
                ));
            }
            if name.len() > NAME_BYTES_MAX {
                let (file, len) = (path.displayed(), name.len());
                return Err(with_hint(
                    format!("{file}: the instance name `{name}` is {len} bytes long"),
                    format!("shorten it to {NAME_BYTES_MAX} bytes: names of files contain it"),
                ));
            }
        }
        for (name, store) in &self.stores {
            let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            let is_id =
                |id: &String| (ID_DIGITS_MIN..=32).contains(&id.len()) && id.chars().all(is_digit);
            if let Some(id) = store.id.as_ref().filter(|id| !is_id(id)) {
                let file = path.displayed();
                return Err(with_hint(
                    format!("{file}, key `stores.{name}.id`: `{id}` is not the id of a store"),
                    "write the id that store.json names, or at least its first 8 digits",
                ));
            }
        }
        for (name, settings) in &self.instances {
            self.store_of(name, settings)?;
            for tag in &settings.tags {
                crate::select::word(tag).map_err(|reason| {
                    let file = path.displayed();
                    usage(format!("{file}, key `instances.{name}.tags`: `{tag}`"), reason)
                })?;
            }
        }
        for (number, notifier) in (1..).zip(&self.notify) {
            if let Some(fault) = notifier.fault() {
                let (file, name) = (path.displayed(), notifier.name());
                let kind = name.split(' ').next().unwrap_or_default();
                let message = format!("{file}, [[notify]] table {number} ({kind}): {fault}");
                return Err(other(message));
            }
        }
        let mut names = BTreeSet::new();
        for notifier in self.notify.iter().filter(|notifier| notifier.is_found_by_name()) {
            let name = notifier.name();
            if names.contains(&name) {
                let hint = "give one of them another `name`";
                return Err(with_hint(
                    format!("{}: two [[notify]] tables have the name {name}", path.displayed()),
                    hint,
                ));
            }
            names.insert(name);
        }
        match self.paths().into_iter().find(|(_, path)| !path.is_absolute()) {
            Some((key, relative)) => Err(with_hint(
                format!("{}, key `{key}`: {} is relative", path.displayed(), relative.displayed()),
                "write an absolute path: scheduled backups run in another directory",
            )),
            None => Ok(()),
        }
    }

    /// Returns all paths with their keys.
    fn paths(&self) -> Vec<(String, &Path)> {
        let mut paths = vec![("state".to_owned(), self.state.as_path())];
        for (name, store) in &self.stores {
            paths.push((format!("stores.{name}.path"), &store.path));
        }
        let mut secrets: Vec<(String, &Secret)> = Vec::new();
        for (name, own) in &self.instances {
            let (postgres, redis) = (&own.postgres, &own.redis);
            let single = [
                ("postgres.bin", &postgres.bin),
                ("postgres.passfile", &postgres.passfile),
                ("redis.client", &redis.client),
                ("redis.socket", &redis.socket),
            ];
            paths.push((format!("instances.{name}.root"), &own.root));
            let compose = format!("instances.{name}.compose");
            paths.extend(own.compose.iter().map(|path| (compose.clone(), path.as_path())));
            for (key, path) in single {
                paths.extend(path.as_deref().map(|path| (format!("instances.{name}.{key}"), path)));
            }
            for (part, settings) in &own.parts {
                let key = format!("instances.{name}.parts.{part}.path");
                let all = settings.path.iter().chain(&settings.paths);
                paths.extend(all.map(|path| (key.clone(), path.as_path())));
            }
            let own = [("postgres", &postgres.password), ("redis", &redis.password)];
            for (key, secret) in own {
                let key = format!("instances.{name}.{key}.password");
                secrets.extend(secret.iter().map(|secret| (key.clone(), secret)));
            }
        }
        for notifier in &self.notify {
            let key = || format!("notify ({})", notifier.name());
            paths.extend(notifier.directory().map(|path| (key(), path)));
            secrets.extend(notifier.secrets().into_iter().map(|secret| (key(), secret)));
        }
        for (key, secret) in secrets {
            if let Secret::File(path) = secret {
                paths.push((key, path));
            }
        }
        paths
    }

    /// Returns the instance of this name.
    pub fn instance(&self, name: &str) -> Result<&Settings, Failure> {
        self.instances.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.instances.keys().map(String::as_str).collect();
            let hint = match closest(name, names.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None if names.is_empty() => "`forgekeep detect` proposes one".into(),
                None => format!("configured instances: {}", names.join(", ")),
            };
            with_hint(format!("no instance `{name}` is configured"), hint)
        })
    }

    /// Returns the only store; `None` if no store is configured. Fails if there are several.
    pub fn only_store(&self, file: &Path) -> Result<Option<&StoreSettings>, Failure> {
        if self.stores.len() > 1 {
            let message =
                format!("no store given, and {} has {}", file.displayed(), self.stores.len());
            let mut lines = vec!["give one of these, or name an instance:".to_owned()];
            let width = self.stores.keys().map(|name| name.len()).max().unwrap_or_default();
            lines.extend(self.stores.iter().map(|(name, StoreSettings { path, .. })| {
                format!("  {name:width$}  --store {}", quoted_shown(&path.display().to_string()))
            }));
            return Err(usage(message, lines.join("\n")));
        }
        Ok(self.stores.values().next())
    }

    /// Returns the store of an instance; `None` if no store is configured.
    pub fn store_of(
        &self,
        name: &str,
        settings: &Settings,
    ) -> Result<Option<&StoreSettings>, Failure> {
        match &settings.store {
            Some(store) => match self.stores.get(store) {
                Some(found) => Ok(Some(found)),
                None => {
                    let message = format!("instance {name}: no store `{store}` is configured");
                    Err(match closest(store, self.stores.keys().map(String::as_str)) {
                        Some(known) => with_hint(message, format!("did you mean `{known}`?")),
                        None => with_hint(message, format!("add [stores.{store}] with its path")),
                    })
                }
            },
            None if self.stores.len() > 1 => {
                let names: Vec<&str> = self.stores.keys().map(String::as_str).collect();
                let hint = format!("add store = \"…\", one of {}", names.join(", "));
                Err(with_hint(
                    format!("instance {name}: several stores are configured, and none is selected"),
                    hint,
                ))
            }
            None => Ok(self.stores.values().next()),
        }
    }
}

/// Returns the line of an error and, if the message does not name it, the key. The value may be a
/// secret and is omitted.
fn place(text: &str, span: Option<std::ops::Range<usize>>, message: &str) -> String {
    let Some(span) = span else { return "line 1".into() };
    let before = &text[..span.start];
    let line = format!("line {}", 1 + before.matches('\n').count());
    let names_key = message.starts_with("unknown field") || message.starts_with("missing field");
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let key = text[start..].lines().next().and_then(|line| Some(line.split_once('=')?.0.trim()));
    let is_key =
        |key: &&str| key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.'\"".contains(c));
    match key.filter(|key| !names_key && !key.is_empty()).filter(is_key) {
        Some(key) => format!("{line}, key `{key}`"),
        None => line,
    }
}

/// Fails if an instance has an unknown kind, and reports its line.
fn check_kinds(path: &Path, text: &str) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Only {
        #[serde(default)]
        instances: BTreeMap<String, Kind>,
    }
    #[derive(Deserialize)]
    struct Kind {
        kind: toml::Spanned<String>,
    }
    // Any other fault was reported when the whole file was parsed.
    let Ok(only) = toml::from_str::<Only>(text) else { return Ok(()) };
    for Kind { kind } in only.instances.values() {
        let name = kind.get_ref();
        if forge::kind::find(name).is_some() {
            continue;
        }
        let names: Vec<&str> = forge::kind::KINDS.iter().map(|kind| kind.name()).collect();
        let hint = match closest(name, names.iter().copied()) {
            Some(known) => format!("did you mean `{known}`?"),
            None => format!("known kinds: {}", names.join(", ")),
        };
        let place = place(text, Some(kind.span()), "");
        let message = format!("{}, {place}: unknown kind `{name}`", path.displayed());
        return Err(with_hint(message, hint));
    }
    Ok(())
}

/// Returns the known key that is most like an unknown one. serde's message names the unknown key
/// and the expected ones.
fn suggestion(message: &str) -> Option<String> {
    let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let is_unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let (unknown, known) = words.split_first().filter(|_| is_unknown)?;
    closest(unknown, known.iter().copied()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("forgekeep.toml");
        std::fs::write(&path, text).expect("writes");
        Config::read(&path).map_err(|failure| match failure {
            Failure::Other { message, hint } => {
                let message = message.replace(&path.display().to_string(), "FILE");
                format!("{message} / {}", hint.unwrap_or_default())
            }
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn unknown_keys_get_a_suggestion() {
        let error = read("[stores.main]\npth = '/s'\n").expect_err("unknown key");
        assert_eq!(
            error,
            "FILE, line 2: unknown field `pth`, expected one of `path`, `id`, `mounted` / did you mean `path`?"
        );
        let error =
            read("[instances.a]\nkind = 'plain'\nmode = 'maintenence'\n").expect_err("unknown");
        assert!(
            error.contains("line 3") && error.ends_with("did you mean `maintenance`?"),
            "{error}"
        );
        let error = read("[instances.a.parts.x]\nmising = 'ok'\n[instances.a]\nkind = 'plain'\n")
            .expect_err("unknown");
        assert!(error.ends_with("did you mean `missing`?"), "{error}");
    }

    #[test]
    fn stores_are_found() {
        let instance = "[instances.a]\nkind = 'plain'\n";
        let two = "[stores.one]\npath = '/1'\n[stores.two]\npath = '/2'\n";
        assert!(read(&format!("{two}{instance}")).expect_err("which").contains("none is selected"));
        let error = read(&format!("{two}{instance}store = 'tow'")).expect_err("none");
        assert!(error.ends_with("did you mean `two`?"), "{error}");
        let config = read(&format!("{two}{instance}store = 'two'")).expect("reads");
        let settings = config.instance("a").expect("there");
        let store = config.store_of("a", settings).expect("there").expect("one");
        assert_eq!(store.path, Path::new("/2"));
        for id in ["", "0123456", "0123456G", "0123456A", "012345678901234567890123456789012"] {
            let error = read(&format!("[stores.one]\npath = '/1'\nid = '{id}'")).expect_err(id);
            assert!(error.contains("key `stores.one.id`"), "{error}");
        }
        assert!(config.instance("aa").is_err());
        let error = read("[instances.'a/b']\nkind = 'plain'\n").expect_err("a slash");
        assert!(error.contains("not a valid instance name"), "{error}");
    }

    #[test]
    fn errors_name_the_line_and_the_key() {
        let wrong = |more: &str| {
            read(&format!("[instances.a]\nkind = 'plain'\n{more}\n")).expect_err("refused")
        };
        let error = wrong("[instances.a.parts.x]\nskip = 'yes'");
        assert!(error.starts_with("FILE, line 4, key `skip`: invalid type"), "{error}");
        let error = read("\n[instances.a]\nkind = 'gitlb'\n").expect_err("refused");
        let wanted = "FILE, line 3, key `kind`: unknown kind `gitlb` / did you mean `gitlab`?";
        assert_eq!(error, wanted);
        for sample in ["-1", "1.5", "'some'", "true"] {
            let error = wrong(&format!("checks = {{ sample = {sample} }}"));
            assert!(error.contains("a number of rows or \"all\""), "{error}");
        }
        for empty in ["before = [{ command = [] }]", "docker = []", "docker = ['']"] {
            assert!(wrong(empty).contains("begins with the name of a program"), "{empty}");
        }
        let secret = "[[notify]]\nkind = 'ping'\nurl = { command = [] }";
        assert!(wrong(secret).contains("begins with the name of a program"));
    }

    #[test]
    fn relative_paths_are_refused() {
        for (more, key) in [
            ("root = 'srv'", "instances.a.root"),
            ("compose = 'docker-compose.yml'", "instances.a.compose"),
            ("parts.x.path = 'x'", "instances.a.parts.x.path"),
            ("parts.x.paths = ['/y', 'x']", "instances.a.parts.x.path"),
            ("postgres.passfile = 'x'", "instances.a.postgres.passfile"),
            ("postgres.password = { file = 'x' }", "instances.a.postgres.password"),
            ("postgres.bin = 'x'", "instances.a.postgres.bin"),
            ("redis.client = 'x'", "instances.a.redis.client"),
            ("[stores.s]\npath = 'x'", "stores.s.path"),
            ("[[notify]]\nkind = 'textfile'\ndirectory = 'x'", "notify (textfile x)"),
        ] {
            let error = read(&format!("[instances.a]\nkind = 'plain'\n{more}\n"));
            let error = error.expect_err("refused");
            assert!(error.starts_with(&format!("FILE, key `{key}`: ")), "{error}");
            assert!(error.contains("write an absolute path"), "{error}");
        }
        assert!(read("state = 'x'").expect_err("refused").contains("key `state`"));
    }

    #[test]
    fn maintenance_notifiers_need_distinct_names() {
        let table = |more: &str| {
            format!(
                "[[notify]]\nkind = 'zabbix-maintenance'\nurl = 'https://z/api_jsonrpc.php'\n\
                 token = {{ file = '/t' }}\n{more}\n"
            )
        };
        let error = read(&(table("hosts = ['a']") + &table("hosts = ['b']"))).expect_err("equal");
        let wanted =
            "FILE: two [[notify]] tables have the name zabbix-maintenance z/api_jsonrpc.php (";
        assert!(error.starts_with(wanted) && error.ends_with("another `name`"), "{error}");
        assert!(read(&(table("hosts = ['a']") + &table("name = 'other'"))).is_ok());
        // Silences of these notifiers do not depend on their settings.
        let values = "[[notify]]\nkind = 'zabbix'\nserver = 'z'\nmaintenance-keys = ['k']\n";
        assert!(read(&format!("{values}host = 'a'\n{values}host = 'b'\n")).is_ok());
    }

    #[test]
    fn notifiers_that_can_never_send_are_refused() {
        let zabbix = "kind = 'zabbix'\nserver = 'z'\n";
        let mail = "kind = 'mail'\nfrom = 'a@x.org'\nto = ['b@x.org']\n";
        let api = "kind = 'zabbix-maintenance'\ntoken = { file = '/t' }\n";
        let mut tables = vec![
            (zabbix.to_owned(), "never sends anything"),
            (format!("{zabbix}port = 0\nmaintenance-keys = ['k']"), "port 0"),
            (format!("{zabbix}keys = {{ status = '' }}"), "`keys`"),
            (format!("{zabbix}maintenance-keys = ['']"), "`maintenance-keys`"),
            (format!("{zabbix}maintenance-keys = ['k']\nhost = ''"), "`host`"),
            (format!("{mail}server = 'mx'\nport = 0"), "port 0"),
            (format!("{mail}server = 'mx'\nuser = 'u'"), "both or neither"),
            (
                format!(
                    "{mail}server = 'mx'\nuser = 'u'\npassword = {{ file = '/p' }}\n\
                     security = 'none'"
                ),
                "unencrypted",
            ),
            (format!("{api}url = 'https://z/x.php'\nhosts = ['']"), "`hosts`"),
            (format!("{api}url = 'https://z/x.php'\nname = ' '"), "`name`"),
        ];
        for url in ["", "hc-ping.com/uuid", "ftp://x/y", "https://", "https://:1/", "https://x:0/"]
        {
            let fault = "must begin with https://";
            tables.push((format!("kind = 'ping'\nurl = '{url}'"), fault));
            tables.push((format!("kind = 'webhook'\nurl = '{url}'"), fault));
            tables.push((format!("{api}url = '{url}'"), fault));
        }
        for server in ["", "https://mx", "mx:25", "m x", "[::1]", "mx..org", "u@mx"] {
            let fault = "is not the name or address of a host";
            tables.push((format!("{mail}server = '{server}'"), fault));
            let keys = "maintenance-keys = ['k']";
            tables.push((format!("kind = 'zabbix'\nserver = '{server}'\n{keys}"), fault));
        }
        for (table, fault) in tables {
            let text =
                format!("[[notify]]\nkind = 'textfile'\ndirectory = '/'\n[[notify]]\n{table}");
            let error = read(&text).expect_err(&table);
            assert!(error.starts_with("FILE, [[notify]] table 2 ("), "{error}");
            assert!(error.contains(fault), "{table}: {error}");
        }
        for server in ["mx", "mx.example.org.", "a_b-c.example", "::1", "fe80::1%eth0", "10.0.0.1"]
        {
            let text = format!("[[notify]]\n{mail}server = '{server}'");
            read(&text).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn durations_are_parsed() {
        let of = |limit: &str| {
            read(&format!(
                "[instances.a]\nkind = 'plain'\n[instances.a.services]\nlimit = '{limit}'\n"
            ))
        };
        assert!(of("90s").is_ok() && of("5m").is_ok() && of("1h30m").is_ok());
        let error = of("soon").expect_err("no time");
        assert!(error.contains("`soon` is not a duration"), "{error}");
        assert!(of("8760h").is_ok());
        for endless in ["8761h", "9223372036854775807s"] {
            let error = of(endless).expect_err("too long");
            assert!(error.contains(&format!("`{endless}` is more than 365 days")), "{error}");
        }
    }

    #[test]
    fn every_kind_of_instance_has_an_example() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
        let mut kinds = std::collections::BTreeSet::new();
        for entry in std::fs::read_dir(dir).expect("a directory of examples") {
            let path = entry.expect("an entry").path();
            let config =
                Config::read(&path).unwrap_or_else(|failure| panic!("{path:?}: {failure:?}"));
            for (name, settings) in config.instances {
                let is_known = forge::kind::find(&settings.kind).is_some();
                assert!(is_known, "{}: {name} is of an unknown kind", path.display());
                kinds.insert(settings.kind);
            }
        }
        for kind in forge::kind::KINDS {
            assert!(kinds.contains(kind.name()), "docs/examples has none of kind {}", kind.name());
        }
    }
}
