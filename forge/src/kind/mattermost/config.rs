//! What a Mattermost is told: `config.json`, and the variables `MM_…` that go before it.

use crate::error::Result;
use crate::file::{json, text};
use crate::kind::below;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where systemd looks for a unit, the first that has it first.
const UNITS: [&str; 3] = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

/// The name of the unit.
const UNIT: &str = "mattermost.service";

/// Settings that decide where something is.
const PLACES: [(&str, &str); 6] = [
    ("FileSettings", "DriverName"),
    ("FileSettings", "Directory"),
    ("SqlSettings", "DriverName"),
    ("SqlSettings", "DataSource"),
    ("PluginSettings", "Directory"),
    ("PluginSettings", "ClientDirectory"),
];

/// The settings. There are secrets among them, so that they cannot be printed.
#[derive(Default)]
pub struct Config {
    file: Value,
    variables: BTreeMap<String, String>,
}

impl Config {
    /// Reads `config.json`, if there is one.
    pub fn read(path: &Path, variables: BTreeMap<String, String>) -> Result<Config> {
        Ok(Config::of(json(path)?.unwrap_or_default(), variables))
    }

    /// Settings, and variables that go before them.
    pub fn of(settings: Value, variables: BTreeMap<String, String>) -> Config {
        Config { file: settings, variables }
    }

    /// Notes that say of each variable which other value it goes before, of settings that decide
    /// where something is. Values may have passwords in them.
    pub fn overridden(&self, settings: &str) -> impl Iterator<Item = String> {
        PLACES.iter().filter_map(move |(section, key)| {
            let name = variable_of(section, key);
            let value = self.variables.get(&name)?;
            let beaten = self.file[section][key].as_str().filter(|beaten| !beaten.is_empty())?;
            (beaten != value).then(|| {
                format!("{name} of its environment goes before {section}.{key} of {settings}")
            })
        })
    }

    /// A setting that is not empty.
    pub fn text(&self, section: &str, key: &str) -> Option<&str> {
        let variable = self.variables.get(&variable_of(section, key)).map(String::as_str);
        variable.or_else(|| self.file[section][key].as_str()).filter(|text| !text.is_empty())
    }

    /// A directory; a relative one is below that of the installation. `at` says where this machine
    /// has what is absolute.
    pub fn directory(
        &self,
        section: &str,
        key: &str,
        at: &dyn Fn(&Path) -> PathBuf,
        home: &Path,
    ) -> Option<PathBuf> {
        let path = Path::new(self.text(section, key)?);
        let whole = if path.is_absolute() { at(path) } else { home.join(path) };
        // Without the `.` of `./data/`.
        Some(whole.components().collect())
    }
}

/// The variable that goes before a setting.
fn variable_of(section: &str, key: &str) -> String {
    format!("MM_{section}_{key}").to_uppercase()
}

/// Variables in a directory with a file for each, as runit's `chpst -e` reads it.
pub fn variables_in(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("MM_") {
            continue;
        }
        let text = text(&entry.path())?.unwrap_or_default();
        let line = text.lines().next().unwrap_or_default().trim_end().to_owned();
        variables.insert(name, line);
    }
    Ok(variables)
}

/// The systemd unit of Mattermost.
#[derive(Default)]
pub struct Unit {
    /// Files that belong to it: itself, what adds to it, and files of variables.
    pub files: Vec<PathBuf>,
    /// Variables that Mattermost gets.
    pub variables: BTreeMap<String, String>,
    /// Where its settings are, if its command line says so.
    pub config: Option<String>,
}

impl Unit {
    /// Reads it, if there is one.
    pub fn read(root: &Path) -> Result<Option<Unit>> {
        let found =
            UNITS.map(|dir| root.join(dir).join(UNIT)).into_iter().find(|path| path.exists());
        let Some(found) = found else { return Ok(None) };
        let mut unit = Unit { files: vec![found], ..Unit::default() };
        for dir in UNITS.iter().rev() {
            let entries = std::fs::read_dir(root.join(dir).join(format!("{UNIT}.d")));
            let mut added: Vec<PathBuf> =
                entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            added.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
            added.sort();
            unit.files.extend(added);
        }
        for file in unit.files.clone() {
            for line in text(&file)?.unwrap_or_default().lines() {
                unit.line(root, line.trim())?;
            }
        }
        Ok(Some(unit))
    }

    fn line(&mut self, root: &Path, line: &str) -> Result<()> {
        if let Some(words) = line.strip_prefix("Environment=") {
            for word in words_of(words) {
                // Units have variables of their own, which begin with one.
                self.variable(&word.replace("%%", "%"));
            }
        }
        if let Some(words) = line.strip_prefix("ExecStart=") {
            let words = words_of(words);
            let inline = words.iter().find_map(|word| word.strip_prefix("--config="));
            let option = words.iter().position(|word| ["-c", "--config"].contains(&word.as_str()));
            let next = option.and_then(|at| words.get(at + 1)).map(String::as_str);
            // A later line may be the empty one that takes the command back.
            self.config = inline.or(next).map(|text| text.replace("%%", "%"));
        }
        if let Some(path) = line.strip_prefix("EnvironmentFile=") {
            let path = path.trim_start_matches('-').trim();
            // An empty one takes back what was said before, in a way that does not matter here; a
            // pattern names files that are read by nobody else.
            if path.is_empty() || path.contains(['*', '?', '[']) {
                return Ok(());
            }
            let path = below(root, Path::new(path));
            for line in text(&path)?.unwrap_or_default().lines() {
                let line = line.trim();
                if let Some((name, value)) = line.split_once('=') {
                    self.variable(&format!("{name}={}", unquoted(value)));
                }
            }
            self.files.push(path);
        }
        Ok(())
    }

    fn variable(&mut self, assignment: &str) {
        if let Some((name, value)) = assignment.split_once('=')
            && name.starts_with("MM_")
        {
            self.variables.insert(name.into(), value.into());
        }
    }
}

/// Words between spaces, some of them in quotes.
fn words_of(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, c) if c.is_whitespace() => words.push(std::mem::take(&mut word)),
            (_, c) => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// A value without the quotes around it.
fn unquoted(value: &str) -> &str {
    let value = value.trim();
    let inner = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_unit_go_before_the_file() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
            std::fs::write(path, text).expect("writes");
        };
        assert!(Unit::read(root.path()).expect("reads").is_none());
        write(
            "lib/systemd/system/mattermost.service",
            "[Service]\nEnvironment=\"MM_A_B=one two\" MM_C_D=3 PATH=/bin\nExecStart=/opt/mm/mattermost server -c postgres://a%%40b/c\nEnvironmentFile=-/etc/mm.env\n",
        );
        write("etc/systemd/system/mattermost.service.d/own.conf", "Environment=MM_C_D=4\n");
        write("etc/mm.env", "# comment\nMM_FILESETTINGS_DIRECTORY=\"./data/\"\nMM_E_F=''\n");
        let unit = Unit::read(root.path()).expect("reads").expect("is there");
        assert_eq!(unit.files.len(), 3, "{:?}", unit.files);
        assert_eq!(unit.config.as_deref(), Some("postgres://a%40b/c"));
        let text = r#"{"A": {"B": "file", "X": "file"}, "C": {"D": 5}, "E": {"F": "file"}}"#;
        write("config.json", text);
        let config = Config::read(&root.path().join("config.json"), unit.variables).expect("reads");
        let value = |section, key| config.text(section, key);
        assert_eq!(value("A", "B"), Some("one two"));
        assert_eq!(value("A", "X"), Some("file"));
        assert_eq!(value("C", "D"), Some("4"));
        assert_eq!(value("E", "F"), None);
        let at = |path: &Path| below(Path::new("/r"), path);
        let dir = config.directory("FileSettings", "Directory", &at, Path::new("/r/mm"));
        assert_eq!(dir.as_deref(), Some(Path::new("/r/mm/data")));
    }

    #[test]
    fn files_of_variables_are_read_by_their_names() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("MM_A_B"), "one\ntwo\n").expect("writes");
        std::fs::write(dir.path().join("PATH"), "/bin").expect("writes");
        let variables = variables_in(dir.path()).expect("reads");
        assert_eq!(variables, BTreeMap::from([("MM_A_B".into(), "one".into())]));
        assert!(variables_in(&dir.path().join("none")).expect("reads").is_empty());
    }
}
