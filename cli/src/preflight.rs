//! Finds problems that would prevent a backup or its notifications, without performing either.

use crate::config::Config;
use forge::plan::Plan;
use forge::process::{Command, PATH, quoted_path};
use forge::secret::Secret;
use forge::service::control::Control;
use forge::service::step::Step;
use forge::settings::Mode;
use rustix::fs::Access;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use store::entry::Displayed;

/// Returns the problems with a plan's programs, users, patterns and secrets.
pub fn of_plan(plan: &Plan) -> Vec<String> {
    let mut problems = Vec::new();
    let mut look = |what: &str, command: &Command| {
        let found = of_command(command);
        problems.extend(found.map(|problem| format!("{what}: {problem}")));
    };
    let mut look_at_steps = |what: &str, steps: &[Step]| {
        steps.iter().for_each(|step| look(what, &step.command));
    };
    look_at_steps("before", &plan.before);
    look_at_steps("after", &plan.after);
    match &plan.control {
        Control::Commands { stop, start } => {
            look_at_steps("services.stop", stop);
            look_at_steps("services.start", start);
        }
        // Other modes stop nothing. They only ask the supervisor which services run, and do not
        // need an answer.
        Control::Supervised(supervisor) if plan.mode == Mode::Maintenance => {
            look("services", &Command::new(&supervisor.program));
        }
        Control::Supervised(_) | Control::Nothing => {}
    }
    if let Some(server) = &plan.postgres {
        look("postgres", &server.reach.command("psql", [""; 0]));
    }
    if let Some(redis) = &plan.redis {
        look("redis", &redis.reach.command("redis-cli", [""; 0]));
    }
    let patterns = plan.exclude.iter().chain(plan.parts.iter().flat_map(|part| &part.exclude));
    for pattern in patterns {
        if let Err(error) = store::glob::Globs::new([pattern.as_bytes()]) {
            problems.push(format!("exclude: {error}"));
        }
    }
    let secrets = [
        ("postgres.password", plan.postgres.as_ref().and_then(|server| server.secret.as_ref())),
        ("redis.password", plan.redis.as_ref().and_then(|redis| redis.secret.as_ref())),
    ];
    for (key, secret) in secrets {
        let problem = secret.and_then(of_secret);
        problems.extend(problem.map(|problem| format!("{key}: {problem}")));
    }
    problems.extend(of_unreadable(plan, &|path| rustix::fs::access(path, Access::READ_OK)));
    problems
}

/// Paths that a problem names; more are only counted.
const NAMED: usize = 3;

/// Returns the problem that this user may not read paths of parts. Such a path may look missing.
fn of_unreadable(plan: &Plan, read: &dyn Fn(&Path) -> rustix::io::Result<()>) -> Option<String> {
    let paths = plan.parts.iter().flat_map(|part| &part.paths);
    let denied = paths.filter(|path| read(path) == Err(rustix::io::Errno::ACCESS));
    let mut denied: Vec<&PathBuf> = denied.collect();
    denied.sort();
    denied.dedup();
    let named: Vec<String> = denied.iter().take(NAMED).map(|path| path.displayed()).collect();
    let more = denied.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!denied.is_empty()).then(|| {
        format!("this user may not read {}{more}; run the command as root", named.join(", "))
    })
}

/// Returns the problem with a store's location, if there is one.
pub fn of_store(place: &Path) -> Option<String> {
    let shown = place.displayed();
    let unreachable = |error| format!("store {shown}: cannot access it: {error}");
    match place.join("store.json").try_exists() {
        Ok(true) => return None,
        Ok(false) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {}
        Err(error) => return Some(unreachable(error)),
    }
    let there = place.ancestors().find(|path| path.exists())?;
    if !there.is_dir() {
        return Some(format!("store {shown}: {} is not a directory", there.displayed()));
    }
    if let Err(error) = rustix::fs::access(there, Access::WRITE_OK) {
        return Some(format!("store {shown}: {} is not writable: {error}", there.displayed()));
    }
    let is_empty = |dir: &Path| {
        let mut entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.all(|entry| entry.file_name() == "lost+found")
    };
    (there == place && !is_empty(place))
        .then(|| format!("store {shown}: the directory is not a store, and is not empty"))
}

/// Returns the problems with notifiers, and with the mode of the configuration file.
pub fn of_notifiers(config: &Config, file: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for notifier in &config.notify {
        let found = notifier.secrets().into_iter().filter_map(of_secret);
        problems.extend(found.map(|problem| format!("{}: {problem}", notifier.name())));
        let found = notifier.fault_of_file();
        problems.extend(found.map(|problem| format!("{}: {problem}", notifier.name())));
        if let Some(dir) = notifier.directory().filter(|dir| !dir.is_dir()) {
            problems.push(format!("{}: {} is not a directory", notifier.name(), dir.displayed()));
        }
    }
    let mode = std::fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o004 != 0 && config.notify.iter().any(|notifier| notifier.has_open_address()) {
        problems.push(format!(
            "all users can read {}, which contains an address that works like a password; \
             run: chmod 600 {}",
            file.displayed(),
            quoted_path(file)
        ));
    }
    problems
}

/// Returns the problem with a secret, if there is one. Reads a file. Only looks up a command, which
/// may ask for a password.
fn of_secret(secret: &Secret) -> Option<String> {
    match secret {
        Secret::File(_) => secret.read().err().map(|error| error.to_string()),
        Secret::Command(words) => of_command(&Command::new(words)),
    }
}

/// Returns the reason why a command cannot be started, if there is one.
fn of_command(command: &Command) -> Option<String> {
    let program = command.argv.first()?;
    if !is_program(program) {
        return Some(if program.contains('/') {
            format!("program {program} not found")
        } else {
            format!("program {program} not found in {PATH}")
        });
    }
    let user = command.user.as_ref()?;
    let known = nix::unistd::User::from_name(user).ok().flatten();
    known.is_none().then(|| format!("user {user} does not exist; {program} cannot run"))
}

/// Returns true if a child process finds this program.
fn is_program(program: &str) -> bool {
    self::program(program).is_some()
}

/// Returns the path of this program as a child process finds it, with its working directory and
/// `PATH`.
pub fn program(program: &str) -> Option<PathBuf> {
    let may_run = |path: &Path| {
        std::fs::metadata(path)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(Path::new("/").join(program)).filter(|path| may_run(path));
    }
    PATH.split(':').map(|dir| Path::new(dir).join(program)).find(|path| may_run(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_programs_and_users_are_reported() {
        let problem = |words: &[&str]| of_command(&Command::new(words.iter().copied()));
        assert_eq!(problem(&["sh"]), None);
        assert_eq!(problem(&["/bin/sh", "-c"]), None);
        assert!(problem(&["no-such"]).expect("none").contains("/usr/local/sbin"));
        assert_eq!(problem(&["/etc/passwd"]).as_deref(), Some("program /etc/passwd not found"));
        let nobody = Command::new(["sh"]).by(Some("no such user"));
        assert!(of_command(&nobody).expect("nobody").contains("user no such user does not exist"));
    }

    #[test]
    fn paths_that_this_user_may_not_read_are_named() {
        let settings = toml::from_str("kind = 'plain'").expect("settings");
        let mut plan = Plan::new("files", "plain", &settings);
        for name in ["a", "b", "c", "d", "gone"] {
            plan.needs(name, "files", Path::new("/srv").join(name));
        }
        let read = |path: &Path| match path.ends_with("gone") {
            true => Err(rustix::io::Errno::NOENT),
            false => Err(rustix::io::Errno::ACCESS),
        };
        let text =
            "this user may not read /srv/a, /srv/b, /srv/c and 1 more; run the command as root";
        assert_eq!(of_unreadable(&plan, &read).as_deref(), Some(text));
        assert_eq!(of_unreadable(&plan, &|_| Ok(())), None);
    }

    #[test]
    fn invalid_addresses_in_files_are_reported() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, url) = (dir.path().join("forgekeep.toml"), dir.path().join("url"));
        let text = format!("[[notify]]\nkind = 'ping'\nurl = {{ file = '{}' }}\n", url.display());
        std::fs::write(&file, text).expect("writes");
        let config = Config::read(&file).expect("valid");
        for (address, problems) in [("https://x/s3cret\n", 0), ("x/s3cret\n", 1)] {
            std::fs::write(&url, address).expect("writes");
            std::fs::set_permissions(&url, std::fs::Permissions::from_mode(0o600)).expect("chmod");
            let found = of_notifiers(&config, &file);
            assert_eq!(found.len(), problems, "{found:?}");
            assert!(found.iter().all(|one| one.contains("https://") && !one.contains("s3cret")));
        }
    }

    #[test]
    fn only_an_existing_or_creatable_store_passes() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = |name: &str| dir.path().join(name);
        assert_eq!(of_store(&place("a/b/c")), None);
        std::fs::create_dir(place("empty")).expect("makes");
        assert_eq!(of_store(&place("empty")), None);
        std::fs::write(place("file"), "").expect("writes");
        assert!(of_store(&place("file")).expect("a file").contains("is not a directory"));
        assert!(
            of_store(&place("file/store")).expect("below a file").contains("is not a directory")
        );
        assert!(of_store(dir.path()).expect("something else").contains("is not empty"));
        std::fs::write(place("empty/store.json"), "{}").expect("writes");
        assert_eq!(of_store(&place("empty")), None);
    }
}
