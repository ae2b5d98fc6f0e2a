//! Files that an image is built from.

use crate::links::lexically;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Returns true if a context is on another machine, or is another image.
pub fn is_remote(context: &str) -> bool {
    context.contains("://") || context.starts_with("git@") || context.starts_with("service:")
}

/// Returns the existing paths below a context that a Dockerfile copies into its image. If it names
/// them by a variable, that is the whole context.
pub fn sources(dockerfile: &str, context: &Path) -> BTreeSet<PathBuf> {
    let text = dockerfile.replace("\\\r\n", " ").replace("\\\n", " ");
    let words = text.lines().filter_map(copied).flatten();
    let paths = words.filter(|word| !is_remote(word) && !word.starts_with("<<"));
    let paths = paths.map(|word| {
        if word.contains('$') {
            return context.to_owned();
        }
        let plain = word.trim_start_matches('/').split('/');
        let plain = plain.take_while(|name| !name.contains(['*', '?', '[']));
        let path = plain.fold(context.to_owned(), |path, name| path.join(name));
        lexically(&path)
    });
    // Paths of an image's files never leave its context.
    paths.filter(|path| path.starts_with(context) && path.exists()).collect()
}

/// Returns the sources of a line that copies files from the context.
fn copied(line: &str) -> Option<Vec<String>> {
    let (verb, rest) = line.trim_start().split_once(char::is_whitespace)?;
    if !["COPY", "ADD"].contains(&verb.to_uppercase().as_str()) {
        return None;
    }
    let mut rest = rest.trim();
    while let Some(flag) = rest.strip_prefix("--") {
        // Another stage of the build, or another image.
        if flag.starts_with("from=") {
            return None;
        }
        rest = flag.split_once(char::is_whitespace)?.1.trim_start();
    }
    let mut words: Vec<String> = match serde_json::from_str(rest) {
        Ok(words) => words,
        Err(_) => rest.split_whitespace().map(str::to_owned).collect(),
    };
    words.pop();
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_a_dockerfile_are_found() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["hooks/a.d/run", "own.rb", "b c", "conf/x.conf", "more"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below")).expect("directories");
            std::fs::write(path, "").expect("writes");
        }
        let found = |text: &str| {
            let all = sources(text, dir.path()).into_iter();
            let names = all.map(|path| path.strip_prefix(dir.path()).expect("below").to_owned());
            names.map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        let text = "FROM gitlab/gitlab-ce\n# COPY more /\ncopy --chown=git:git own.rb \\\n  hooks /opt/\n\
                    COPY --from=build /bin/x /bin/x\nADD [\"b c\", \"/d/\"]\nADD https://example.org/x /x\n\
                    COPY conf/*.conf /etc/\nCOPY gone <<EOF /a\n";
        assert_eq!(found(text), ["b c", "conf", "hooks", "own.rb"]);
        assert_eq!(found("ARG A\nCOPY $A /\n"), [""]);
        assert_eq!(found("COPY ../other /\n"), [""; 0]);
        assert_eq!(found("COPY . /\n"), [""]);
    }
}
