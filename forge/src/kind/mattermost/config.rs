//! Mattermost's settings: `config.json`, and the `MM_…` variables that override it.

use crate::error::Result;
use crate::file::{json, text};
use crate::kind::below;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Directories of systemd units, the one with the highest precedence first.
const UNITS: [&str; 3] = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

const UNIT: &str = "mattermost.service";

/// Settings that decide where data is.
const PLACES: [(&str, &str); 6] = [
    ("FileSettings", "DriverName"),
    ("FileSettings", "Directory"),
    ("SqlSettings", "DriverName"),
    ("SqlSettings", "DataSource"),
    ("PluginSettings", "Directory"),
    ("PluginSettings", "ClientDirectory"),
];

/// Settings of Mattermost. They include secrets, so the type does not implement `Debug`.
#[derive(Default)]
pub struct Config {
    file: Value,
    variables: BTreeMap<String, String>,
}

impl Config {
    /// Reads `config.json`. A missing file counts as empty.
    pub fn read(path: &Path, variables: BTreeMap<String, String>) -> Result<Config> {
        Ok(Config::of(json(path)?.unwrap_or_default(), variables))
    }

    /// Combines settings with variables that override them.
    pub fn of(settings: Value, variables: BTreeMap<String, String>) -> Config {
        Config { file: settings, variables }
    }

    /// Returns a note for each variable that overrides a different value of a setting in `PLACES`.
    /// Notes name no values, because these may contain passwords.
    pub fn overridden(&self, settings: &str) -> impl Iterator<Item = String> {
        PLACES.iter().filter_map(move |(section, key)| {
            let name = variable_of(section, key);
            let value = self.variables.get(&name)?;
            let beaten = self.file[section][key].as_str().filter(|beaten| !beaten.is_empty())?;
            (beaten != value).then(|| {
                format!("{name} in its environment overrides {section}.{key} in {settings}")
            })
        })
    }

    /// Returns a setting, or the variable that overrides it. Returns `None` if it is missing or
    /// empty.
    pub fn text(&self, section: &str, key: &str) -> Option<&str> {
        let variable = self.variables.get(&variable_of(section, key)).map(String::as_str);
        variable.or_else(|| self.file[section][key].as_str()).filter(|text| !text.is_empty())
    }

    /// Returns the directory of a setting. Relative paths start at `home`; `at` maps absolute paths
    /// to this machine.
    pub fn directory(
        &self,
        section: &str,
        key: &str,
        at: &dyn Fn(&Path) -> PathBuf,
        home: &Path,
    ) -> Option<PathBuf> {
        let path = Path::new(self.text(section, key)?);
        let whole = if path.is_absolute() { at(path) } else { home.join(path) };
        // Removes `.` components, for example from `./data/`.
        Some(whole.components().collect())
    }
}

/// Returns the name of the variable that overrides a setting.
fn variable_of(section: &str, key: &str) -> String {
    format!("MM_{section}_{key}").to_uppercase()
}

/// Reads a directory with one file per variable, in the format of runit's `chpst -e`.
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
    /// The unit file, its drop-ins, and its environment files.
    pub files: Vec<PathBuf>,
    /// Variables set for Mattermost.
    pub variables: BTreeMap<String, String>,
    /// Location of the settings given on the command line.
    pub config: Option<String>,
}

impl Unit {
    /// Reads the unit. Returns `None` if it does not exist.
    pub fn read(root: &Path) -> Result<Option<Unit>> {
        let found =
            UNITS.map(|dir| root.join(dir).join(UNIT)).into_iter().find(|path| path.exists());
        let Some(found) = found else { return Ok(None) };
        // A drop-in of a stronger directory replaces one of the same name.
        let mut added = BTreeMap::new();
        for dir in UNITS.iter().rev() {
            let entries = std::fs::read_dir(root.join(dir).join(format!("{UNIT}.d")));
            let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
            let paths = paths.filter(|path| path.extension().is_some_and(|end| end == "conf"));
            added.extend(paths.map(|path| (path.file_name().map(ToOwned::to_owned), path)));
        }
        let files: Vec<PathBuf> = std::iter::once(found).chain(added.into_values()).collect();
        let mut lines = Lines::default();
        for file in &files {
            let text = text(file)?.unwrap_or_default().replace("\\\n", " ");
            text.lines().for_each(|line| lines.take(line.trim()));
        }
        let mut unit = Unit { files, config: lines.config, ..Unit::default() };
        // Units have variables of their own, which begin with one percent sign.
        for assignment in &lines.environment {
            unit.variable(&assignment.replace("%%", "%"));
        }
        // Files override assignments, wherever they stand.
        for path in &lines.environment_files {
            for path in matching(&below(root, Path::new(path))) {
                unit.environment_file(path)?;
            }
        }
        Ok(Some(unit))
    }

    fn environment_file(&mut self, path: PathBuf) -> Result<()> {
        for line in text(&path)?.unwrap_or_default().lines() {
            if let Some((name, value)) = line.trim().split_once('=') {
                self.variable(&format!("{name}={}", unquoted(value)));
            }
        }
        self.files.push(path);
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

/// Settings of a unit and its drop-ins, in the order of the lines.
#[derive(Default)]
struct Lines {
    environment: Vec<String>,
    environment_files: Vec<String>,
    config: Option<String>,
}

impl Lines {
    fn take(&mut self, line: &str) {
        if let Some(words) = line.strip_prefix("Environment=") {
            extend_or_reset(&mut self.environment, words_of(words));
        }
        if let Some(path) = line.strip_prefix("EnvironmentFile=") {
            let path = path.trim().trim_start_matches('-').trim();
            let path = Some(path.to_owned()).filter(|path| !path.is_empty());
            extend_or_reset(&mut self.environment_files, path.into_iter().collect());
        }
        if let Some(words) = line.strip_prefix("ExecStart=") {
            let words = words_of(words);
            let inline = words.iter().find_map(|word| word.strip_prefix("--config="));
            let option = words.iter().position(|word| ["-c", "--config"].contains(&word.as_str()));
            let next = option.and_then(|at| words.get(at + 1)).map(String::as_str);
            // A later line may be the empty one that takes the command back.
            self.config = inline.or(next).map(|text| text.replace("%%", "%"));
        }
    }
}

/// systemd takes an empty assignment as the order to forget the earlier ones.
fn extend_or_reset(list: &mut Vec<String>, more: Vec<String>) {
    if more.is_empty() {
        list.clear();
    }
    list.extend(more);
}

/// The path itself or, where its last name is a pattern, the files that match it, by name.
fn matching(path: &Path) -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let name = path.file_name().unwrap_or_default().as_bytes();
    if !name.iter().any(|byte| b"*?[".contains(byte)) {
        return vec![path.to_owned()];
    }
    let Ok(globs) = store::glob::Globs::new([name]) else { return Vec::new() };
    let entries = path.parent().map(std::fs::read_dir).into_iter().flatten();
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .flatten()
        .filter(|entry| globs.matches(entry.file_name().as_bytes()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Splits a text at spaces outside quotes.
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

/// Returns a value without surrounding quotes.
fn unquoted(value: &str) -> &str {
    let value = value.trim();
    let inner = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_the_unit_override_the_file() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
            std::fs::write(path, text).expect("writes");
        };
        assert!(Unit::read(root.path()).expect("reads").is_none());
        write(
            "lib/systemd/system/mattermost.service",
            "[Service]\nEnvironment=\"MM_A_B=one two\" \\\n  MM_C_D=3 PATH=/bin\nExecStart=/opt/mm/mattermost server -c postgres://a%%40b/c\nEnvironmentFile=-/etc/mm.env\nEnvironmentFile=/etc/none.env\nEnvironmentFile=\nEnvironmentFile=-/etc/mm.env\nEnvironmentFile=/etc/mm.d/*.env\n",
        );
        let own = "Environment=MM_C_D=4 MM_G_H=loses\n";
        write("etc/systemd/system/mattermost.service.d/own.conf", own);
        write("lib/systemd/system/mattermost.service.d/own.conf", "Environment=MM_C_D=5\n");
        write("etc/mm.d/one.env", "MM_G_H=wins\n");
        write("etc/mm.d/two.other", "MM_G_H=nobody\n");
        write("etc/mm.env", "# comment\nMM_FILESETTINGS_DIRECTORY=\"./data/\"\nMM_E_F=''\n");
        let unit = Unit::read(root.path()).expect("reads").expect("is there");
        assert_eq!(unit.files.len(), 4, "{:?}", unit.files);
        assert_eq!(unit.variables["MM_G_H"], "wins");
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
    fn variables_are_named_after_their_files() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("MM_A_B"), "one\ntwo\n").expect("writes");
        std::fs::write(dir.path().join("PATH"), "/bin").expect("writes");
        let variables = variables_in(dir.path()).expect("reads");
        assert_eq!(variables, BTreeMap::from([("MM_A_B".into(), "one".into())]));
        assert!(variables_in(&dir.path().join("none")).expect("reads").is_empty());
    }
}
