//! Mattermost's settings: `config.json`, and the `MM_…` variables that override it.

use crate::error::Result;
use crate::file::{json, matching, text};
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

    /// Returns the directory of a setting. `at` maps absolute and relative paths to this machine.
    pub fn directory(
        &self,
        section: &str,
        key: &str,
        at: &dyn Fn(&Path) -> PathBuf,
    ) -> Option<PathBuf> {
        let path = Path::new(self.text(section, key)?);
        // Removes `.` components, for example from `./data/`.
        Some(at(path).components().collect())
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

/// Parses names and values, each with a zero byte after it.
pub fn variables_of(text: &str) -> BTreeMap<String, String> {
    let mut words = text.split('\0');
    let mut variables = BTreeMap::new();
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        let line = value.lines().next().unwrap_or_default().trim_end();
        variables.insert(name.to_owned(), line.to_owned());
    }
    variables
}

/// The systemd unit of Mattermost.
#[derive(Default)]
pub struct Unit {
    /// The unit file, its drop-ins, and its environment files.
    pub files: Vec<PathBuf>,
    /// Variables set for Mattermost.
    pub variables: BTreeMap<String, String>,
    /// Location of the settings given on the command line. It may contain a password.
    pub config: Option<String>,
    /// Directory in which Mattermost works, if the unit sets one.
    pub directory: Option<String>,
    /// User who runs it, if the unit sets one.
    pub user: Option<String>,
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
        let Lines { directory, user, .. } = &mut lines;
        let (directory, user) = (directory.take(), user.take());
        let mut unit = Unit { files, directory, user, ..Unit::default() };
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
        // `env` and shells take assignments before the program.
        let command = words_of_command(&lines.command);
        command.iter().for_each(|word| unit.variable(word));
        let config = config_option(&command);
        unit.config = config.map(|text| expanded(text, &unit.variables));
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
        let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if let Some((name, value)) = assignment.split_once('=')
            && is_name(name)
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
    /// Command that starts Mattermost.
    command: String,
    directory: Option<String>,
    user: Option<String>,
}

impl Lines {
    fn take(&mut self, line: &str) {
        let Some((key, value)) = line.split_once('=') else { return };
        let value = value.trim();
        match key.trim() {
            "Environment" => extend_or_reset(&mut self.environment, words_of(value)),
            "EnvironmentFile" => {
                let path = value.trim_start_matches('-').trim();
                let path = Some(path.to_owned()).filter(|path| !path.is_empty());
                extend_or_reset(&mut self.environment_files, path.into_iter().collect());
            }
            // A later line may be the empty one that takes the command back.
            "ExecStart" => self.command = value.replace("%%", "%"),
            // A number is not a name that other messages could use.
            "User" => {
                let is_name = |name: &&str| name.starts_with(|c: char| c.is_ascii_alphabetic());
                self.user = Some(value).filter(is_name).map(str::to_owned);
            }
            "WorkingDirectory" => {
                let path = value.trim_start_matches('-').replace("%%", "%");
                // `~` is the home directory of a user.
                self.directory = Some(path).filter(|path| path.starts_with('/'));
            }
            _ => {}
        }
    }
}

/// Splits a command into words. Those of a shell's script replace those of the shell.
fn words_of_command(text: &str) -> Vec<String> {
    let words = words_of(&text.replace("$$", "$"));
    let is_shell = |word: &String| {
        let name = word.rsplit('/').next().unwrap_or(word);
        ["sh", "bash", "dash", "ash"].contains(&name.trim_start_matches(['-', '@', ':', '+', '!']))
    };
    let is_option =
        |word: &String| word.starts_with('-') && !word.starts_with("--") && word.ends_with('c');
    let shell = words.iter().position(is_shell);
    let script = shell.and_then(|at| {
        let rest = &words[at + 1..];
        rest.get(rest.iter().position(is_option)? + 1)
    });
    let Some(script) = script else { return words };
    let words = words_of(&script.replace(';', " ; "));
    words.into_iter().filter(|word| word != ";").collect()
}

/// Returns the value of the option that locates the settings.
fn config_option(command: &[String]) -> Option<&str> {
    let inline = |word: &'_ String| -> Option<usize> {
        ["--config=", "-c="].iter().find(|option| word.starts_with(**option)).map(|o| o.len())
    };
    let inline = command.iter().find_map(|word| Some(&word[inline(word)?..]));
    let option = command.iter().position(|word| ["-c", "--config"].contains(&word.as_str()));
    inline.or_else(|| command.get(option? + 1).map(String::as_str))
}

/// Expands `$NAME` and `${NAME}`.
fn expanded(text: &str, variables: &BTreeMap<String, String>) -> String {
    let whole = text.strip_prefix('$').and_then(|name| variables.get(name));
    whole.cloned().unwrap_or_else(|| {
        variables.iter().fold(text.to_owned(), |text, (name, value)| {
            text.replace(&format!("${{{name}}}"), value)
        })
    })
}

/// systemd takes an empty assignment as the order to forget the earlier ones.
fn extend_or_reset(list: &mut Vec<String>, more: Vec<String>) {
    if more.is_empty() {
        list.clear();
    }
    list.extend(more);
}

/// Splits a text at spaces outside quotes. `\` takes the next character as it is, except in single
/// quotes, where it does so only before a quote.
fn words_of(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut letters = text.chars().peekable();
    while let Some(c) = letters.next() {
        match (quote, c) {
            (Some('\''), '\\') if letters.peek() != Some(&'\'') => word.push(c),
            (_, '\\') => word.extend(letters.next()),
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
        let at = |path: &Path| Path::new("/r/mm").join(path);
        let dir = config.directory("FileSettings", "Directory", &at);
        assert_eq!(dir.as_deref(), Some(Path::new("/r/mm/data")));
    }

    #[test]
    fn the_location_of_the_settings_is_found_in_the_command() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("etc/systemd/system");
        std::fs::create_dir_all(&dir).expect("directories");
        for (command, config) in [
            ("/opt/mm/mattermost", None),
            ("/opt/mm/mattermost --config mm.json", Some("mm.json")),
            ("/opt/mm/mattermost --config=mm.json server", Some("mm.json")),
            (r#"/bin/sh -c 'exec /opt/mm/mattermost -c "a b.json"'"#, Some("a b.json")),
            (
                r#"/bin/bash -ec "cd /opt/mm; ./mattermost --config \"mm.json\"; true""#,
                Some("mm.json"),
            ),
            ("/usr/bin/env sh -c 'exec mattermost --config=$$MM_CONFIG'", Some("of/env.json")),
            ("/opt/mm/mattermost --config ${DIR}/mm.json", Some("/srv/mm.json")),
            (
                r#"/bin/sh -c 'mattermost --config "host=db password=a\'b c"'"#,
                Some("host=db password=a'b c"),
            ),
        ] {
            let text = format!(
                "[Service]\nEnvironment = MM_CONFIG=of/env.json DIR=/srv\nExecStart = {command}\n\
                 WorkingDirectory=-/srv/mm\n"
            );
            std::fs::write(dir.join(UNIT), text).expect("writes");
            let unit = Unit::read(root.path()).expect("reads").expect("is there");
            assert_eq!(unit.config.as_deref(), config, "{command}");
            assert_eq!(unit.directory.as_deref(), Some("/srv/mm"));
        }
        for command in ["sh -c 'export MM_CONFIG=a.json; exec mm'", "env MM_CONFIG=a.json mm"] {
            std::fs::write(dir.join(UNIT), format!("ExecStart=/bin/{command}\n")).expect("writes");
            let unit = Unit::read(root.path()).expect("reads").expect("is there");
            assert_eq!(unit.variables["MM_CONFIG"], "a.json", "{command}");
        }
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
