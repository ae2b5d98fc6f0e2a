//! The configuration file: stores, instances, who is told.

use crate::exit::{Failure, other, with_hint};
use crate::notify::Notifier;
use forge::nearest::closest;
use forge::settings::{Limit, Settings};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where it is, if nobody says otherwise.
pub const DEFAULT: &str = "/etc/forgekeep.toml";

/// What the file says.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Directory of what the program keeps for itself, such as what is to be undone.
    #[serde(default = "state")]
    pub state: PathBuf,
    /// How long monitoring stays silent when services run again.
    #[serde(default = "five_minutes")]
    pub silence_after: Limit,
    /// Stores by name.
    #[serde(default)]
    pub stores: BTreeMap<String, StoreSettings>,
    /// Instances by name.
    #[serde(default)]
    pub instances: BTreeMap<String, Settings>,
    /// Who is told how backups went.
    #[serde(default)]
    pub notify: Vec<Notifier>,
}

/// A store.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StoreSettings {
    /// Its directory.
    pub path: PathBuf,
}

fn five_minutes() -> Limit {
    Limit(Duration::from_secs(5 * 60))
}

fn state() -> PathBuf {
    "/var/lib/forgekeep".into()
}

impl Config {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Config, Failure> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let hint = "give --config FILE; `forgekeep detect` proposes what to write in it";
            with_hint(format!("cannot read the configuration {shown}: {error}"), hint)
        })?;
        let config: Config = toml::from_str(&text).map_err(|error| {
            let line = 1 + error.span().map_or(0, |span| text[..span.start].matches('\n').count());
            let message = format!("{shown}, line {line}: {}", error.message());
            match nearest(error.message()) {
                Some(known) => with_hint(message, format!("did you mean `{known}`?")),
                None => other(message),
            }
        })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), Failure> {
        for name in self.instances.keys() {
            // Names of files are made of it.
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
                let hint = "use letters, digits, `-`, `_` and `.`";
                return Err(with_hint(
                    format!("{}: `{name}` is no name for an instance", path.display()),
                    hint,
                ));
            }
        }
        for (name, settings) in &self.instances {
            self.store_of(name, settings)?;
        }
        Ok(())
    }

    /// An instance of this name.
    pub fn instance(&self, name: &str) -> Result<&Settings, Failure> {
        self.instances.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.instances.keys().map(String::as_str).collect();
            let hint = match closest(name, names.iter().copied()) {
                Some(known) => format!("did you mean `{known}`?"),
                None if names.is_empty() => "`forgekeep detect` proposes one".into(),
                None => format!("there are: {}", names.join(", ")),
            };
            with_hint(format!("no instance `{name}` is configured"), hint)
        })
    }

    /// The store that an instance goes to; `None` if there is none at all.
    pub fn store_of(&self, name: &str, settings: &Settings) -> Result<Option<&Path>, Failure> {
        match &settings.store {
            Some(store) => match self.stores.get(store) {
                Some(found) => Ok(Some(&found.path)),
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
                    format!("instance {name}: it is not said which store it goes to"),
                    hint,
                ))
            }
            None => Ok(self.stores.values().next().map(|store| store.path.as_path())),
        }
    }
}

/// The known key that is most like an unknown one: serde names it and those it expected.
fn nearest(message: &str) -> Option<String> {
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
    fn unknown_keys_are_told_with_the_nearest() {
        let error = read("[stores.main]\npth = '/s'\n").expect_err("unknown key");
        assert_eq!(
            error,
            "FILE, line 2: unknown field `pth`, expected `path` / did you mean `path`?"
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
        assert!(read(&format!("{two}{instance}")).expect_err("which").contains("which store"));
        let error = read(&format!("{two}{instance}store = 'tow'")).expect_err("none");
        assert!(error.ends_with("did you mean `two`?"), "{error}");
        let config = read(&format!("{two}{instance}store = 'two'")).expect("reads");
        let settings = config.instance("a").expect("there");
        assert_eq!(config.store_of("a", settings).expect("there"), Some(Path::new("/2")));
        assert!(config.instance("aa").is_err());
        let error = read("[instances.'a/b']\nkind = 'plain'\n").expect_err("a slash");
        assert!(error.contains("no name for an instance"), "{error}");
    }

    #[test]
    fn lengths_of_time_are_read() {
        let of = |limit: &str| {
            read(&format!(
                "[instances.a]\nkind = 'plain'\n[instances.a.services]\nlimit = '{limit}'\n"
            ))
        };
        assert!(of("90s").is_ok() && of("5m").is_ok() && of("1h30m").is_ok());
        let error = of("soon").expect_err("no time");
        assert!(error.contains("`soon` is no length of time"), "{error}");
    }

    #[test]
    fn every_kind_has_an_example() {
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
