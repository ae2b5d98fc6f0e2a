//! Rules of the source that a machine can keep.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The crates whose modules stand in order, with the file that lists them.
const CRATES: [(&str, &str); 4] = [
    ("chunker", "chunker/src/lib.rs"),
    ("store", "store/src/lib.rs"),
    ("forge", "forge/src/lib.rs"),
    ("cli", "cli/src/main.rs"),
];

/// Doc comments that begin with a riddle, in all crates. It may only shrink.
const RIDDLES_MAX: usize = 60;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// All files below a directory whose names end like this, with their text.
fn files(dir: &str, end: &str) -> BTreeMap<PathBuf, String> {
    fn collect(dir: &Path, end: &str, found: &mut BTreeMap<PathBuf, String>) {
        for item in fs::read_dir(dir).expect("lists") {
            let path = item.expect("lists").path();
            if path.is_dir() {
                collect(&path, end, found);
            } else if path.to_string_lossy().ends_with(end) {
                let text = fs::read_to_string(&path).expect("reads");
                found.insert(path, text);
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(&root().join(dir), end, &mut found);
    found
}

/// Code before the tests of a file, without comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end].lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

/// The modules that a crate's first file lists, in order; those of tests are not listed.
fn modules(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let name = |n: usize| {
        let line = lines[n].trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        let name = line.strip_prefix("mod ")?.strip_suffix(';')?;
        (n == 0 || lines[n - 1] != "#[cfg(test)]").then_some(name)
    };
    (0..lines.len()).filter_map(name).collect()
}

/// The top-level module that a file of a crate belongs to.
fn module_of(path: &Path, src: &Path) -> Option<String> {
    let first = path.strip_prefix(src).ok()?.components().next()?;
    let name = first.as_os_str().to_str()?;
    Some(name.trim_end_matches(".rs").to_owned())
}

/// Names that follow `crate::` in a line.
fn used(line: &str) -> Vec<String> {
    let mut names = Vec::new();
    for rest in line.split("crate::").skip(1) {
        let list =
            rest.strip_prefix('{').map_or(rest, |list| list.split('}').next().unwrap_or(list));
        let parts = if rest.starts_with('{') { list.split(',').collect() } else { vec![rest] };
        for part in parts {
            let name = part.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next();
            names.extend(name.map(str::to_owned));
        }
    }
    names
}

/// Types after a comma of the first level in each `Result<…>` of a text.
fn error_types(text: &str) -> Vec<&str> {
    let after = |start: usize| {
        let (mut depth, mut comma) = (1, None);
        for (at, byte) in text[start..].bytes().enumerate() {
            match byte {
                b'<' | b'(' | b'[' => depth += 1,
                b'>' if text[start..][..at].ends_with(['-', '=']) => {}
                b'>' | b')' | b']' => depth -= 1,
                b',' if depth == 1 && comma.is_none() => comma = Some(start + at + 1),
                _ => {}
            }
            if depth == 0 {
                let error = &text[comma?..start + at];
                return Some(error.trim().trim_end_matches(',').trim_end());
            }
        }
        None
    };
    text.match_indices("Result<").filter_map(|(at, mark)| after(at + mark.len())).collect()
}

/// Callers of a library distinguish errors by their types, never by their texts.
#[test]
fn no_library_returns_a_text_as_its_error() {
    let sample =
        "Result<Vec<(u8, u8)>, String> Result<BTreeMap<String, String>> Result<\n A,\n B,\n>";
    assert_eq!(error_types(sample), ["String", "B"]);
    for krate in ["chunker/src", "store/src", "forge/src"] {
        for (path, text) in files(krate, ".rs") {
            let code = code(&text).collect::<Vec<_>>().join("\n");
            let is_tests = path.ends_with("tests.rs") || path.iter().any(|name| name == "tests");
            let texts = error_types(&code).into_iter().filter(|error| *error == "String").count();
            assert!(is_tests || texts == 0, "{}: give the error a type", path.display());
        }
    }
}

/// A newcomer reads a crate from top to bottom, and a change touches only what comes after it.
#[test]
fn modules_use_only_earlier_modules() {
    let mut wrong = Vec::new();
    for (name, list) in CRATES {
        let src = root().join(name).join("src");
        let text = fs::read_to_string(root().join(list)).expect("reads");
        let modules = modules(&text);
        let place = |name: &str| modules.iter().position(|module| *module == name);
        for (path, text) in files(&format!("{name}/src"), ".rs") {
            let Some(own) = module_of(&path, &src).and_then(|own| place(&own)) else { continue };
            if path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("tests"))
            {
                continue; // Tests of a module may use the whole crate.
            }
            for line in code(&text) {
                for other in used(line).iter().filter_map(|other| place(other)) {
                    if other > own {
                        let shown = path.strip_prefix(root()).expect("below");
                        wrong.push(format!("{}: {}", shown.display(), modules[other]));
                    }
                }
            }
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "a module uses one that is listed after it:\n{}", wrong.join("\n"));
}

/// Chunker and store serve any directory tree: a new kind of instance must not touch them.
#[test]
fn chunker_and_store_do_not_name_kinds_of_instances() {
    for dir in ["chunker/src", "store/src"] {
        for (path, text) in files(dir, ".rs") {
            for word in ["gitlab", "mattermost", "bitbucket"] {
                let is_named = text.to_lowercase().contains(word);
                assert!(!is_named, "{} names {word}", path.display());
            }
        }
    }
}

/// Runs are repeatable in tests because only the command line knows what time it is.
#[test]
fn libraries_do_not_read_the_clock() {
    for dir in ["chunker/src", "store/src", "forge/src"] {
        for (path, text) in files(dir, ".rs") {
            for call in ["SystemTime::now", "Timestamp::now", "Zoned::now", "Utc::now"] {
                let is_called = code(&text).any(|line| line.contains(call));
                assert!(!is_called, "{} calls {call}", path.display());
            }
        }
    }
}

/// A doc comment that begins like a question makes its reader look for the answer.
/// `Path::display` replaces bytes that are not text, and prints control characters as they are.
#[test]
fn paths_in_messages_are_displayed_in_one_way() {
    let mut wrong = Vec::new();
    for dir in ["store/src", "forge/src", "cli/src"] {
        for (path, text) in files(dir, ".rs") {
            let is_test = path.components().any(|part| part.as_os_str() == "tests")
                || path.ends_with("tests.rs");
            let code = text.split("\nmod tests {").next().unwrap_or_default();
            let lines = code.lines().enumerate().filter(|_| !is_test);
            let shows = |line: &str| line.contains(".display()") && !line.contains("to_string()");
            wrong.extend(
                lines
                    .filter(|(_, line)| shows(line))
                    .map(|(at, line)| format!("{}:{}: {}", path.display(), at + 1, line.trim())),
            );
        }
    }
    assert!(wrong.is_empty(), "use `Displayed`: {wrong:#?}");
}

#[test]
fn doc_comments_do_not_begin_like_questions() {
    const RIDDLES: [&str; 5] = ["What ", "Whether ", "Where ", "Who ", "How "];
    let mut found = Vec::new();
    for dir in ["chunker", "store", "forge", "cli", "tests", "fuzz/src", "fuzz/targets"] {
        for (path, text) in files(dir, ".rs") {
            let lines = text.lines().map(str::trim_start).enumerate();
            // A line may begin with such a word in the middle of a sentence.
            let mut is_first = true;
            for (number, line) in lines {
                let Some(comment) = line.strip_prefix("/// ") else {
                    is_first = !line.starts_with("///");
                    continue;
                };
                if is_first && RIDDLES.iter().any(|riddle| comment.starts_with(riddle)) {
                    found.push(format!("{}:{}: {comment}", path.display(), number + 1));
                }
                is_first = false;
            }
        }
    }
    assert!(found.len() <= RIDDLES_MAX, "{} of them:\n{}", found.len(), found.join("\n"));
}

/// A diff of a document shows the sentence that changed.
#[test]
fn documents_have_one_sentence_per_line() {
    let mut documents = files("docs", ".md");
    // Generated from the help of the commands.
    documents
        .retain(|path, _| !["docs/cli.md", "docs/json.md"].iter().any(|file| path.ends_with(file)));
    for name in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        let path = root().join(name);
        let text = fs::read_to_string(&path).expect("reads");
        documents.insert(path, text);
    }
    let mut wrong = Vec::new();
    for (path, text) in documents {
        let mut is_code = false;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            is_code ^= line.starts_with("```");
            let is_prose = !is_code && !line.starts_with(['|', '#']);
            if is_prose && ends_inside(line) {
                wrong.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{} lines:\n{}", wrong.len(), wrong.join("\n"));
}

/// Returns true if a sentence ends in the middle of a line.
fn ends_inside(line: &str) -> bool {
    const SHORT: [&str; 5] = ["e.g.", "i.e.", "etc.", "vs.", "no."];
    let ends = |at: usize| {
        let (before, after) = (&line[..=at], &line[at + 1..]);
        let begins = after.strip_prefix(' ').and_then(|rest| rest.chars().next());
        let is_short = SHORT.iter().any(|short| before.ends_with(short));
        let is_numbered = before.trim_end_matches('.').chars().all(|c| c.is_ascii_digit());
        begins.is_some_and(char::is_uppercase) && !is_short && !is_numbered
    };
    line.char_indices().any(|(at, c)| matches!(c, '.' | '?' | '!') && ends(at))
}
