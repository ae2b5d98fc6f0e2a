//! Containers, as reported by the program that runs them.

use super::compose::{Compose, Service, Source, VolumeMount};
use crate::error::{Error, Result};
use crate::kind::below;
use crate::links::{lexically, real};
use crate::process::Command;
use crate::process::QUESTION;
use crate::view::shown;
use serde_json::Value;
use std::path::{Path, PathBuf};
use store::observe::Progress;

/// Maximum number of containers to inspect.
const CONTAINERS_MAX: usize = 200;

/// Labels in which compose records its files.
const COMPOSE_FILES: [&str; 2] =
    ["com.docker.compose.project.config_files", "io.podman.compose.config_files"];

/// Label with the directory at which relative paths start.
const WORKING_DIR: &str = "com.docker.compose.project.working_dir";
/// Label with the files of variables that were passed to compose.
const ENV_FILES: &str = "com.docker.compose.project.environment_file";
/// Labels with the project and the service.
const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";
/// Labels of swarm with the stack, and with the service after the name of the stack.
const STACK: &str = "com.docker.stack.namespace";
const STACK_SERVICE: &str = "com.docker.swarm.service.name";

/// A container.
#[derive(Debug)]
pub struct Running {
    /// Id of the container; empty if the program shows none.
    pub id: String,
    /// Name of the container.
    pub name: String,
    /// Image, environment and volumes of the container.
    pub service: Service,
    /// Compose files that created it, on this machine.
    pub compose: Vec<PathBuf>,
    /// Directory at which relative paths in them start.
    pub dir: Option<PathBuf>,
    /// Files with variables for them, if compose was given any.
    pub env_files: Vec<PathBuf>,
    /// Name of the compose project or swarm stack that it belongs to.
    pub project: Option<String>,
    /// Name of its service in the compose file.
    pub service_name: Option<String>,
    /// Further names of the container in its networks.
    pub aliases: Vec<String>,
    /// False if it is stopped.
    pub is_up: bool,
}

impl Running {
    /// Returns true if one of its compose files belongs to a project.
    pub fn is_created_from(&self, compose: &Compose) -> bool {
        let known: Vec<PathBuf> =
            compose.files.iter().chain([&compose.path]).map(|file| real(file)).collect();
        self.compose.iter().any(|file| known.contains(&real(file)))
    }

    /// Returns true if it is the container of a service. Without the labels of compose, image and
    /// volumes decide.
    pub fn runs(&self, compose: &Compose, name: &str, service: &Service) -> bool {
        let is_named = self.service_name.as_deref() == Some(name);
        if self.service_name.is_some() && self.is_created_from(compose) {
            return is_named;
        }
        let is_image = service.image.is_none()
            || (file_name(service.repository()) == file_name(self.service.repository()));
        // A stack has no compose file, and names its volumes itself.
        if is_image && is_named && self.compose.is_empty() {
            return true;
        }
        let own: Vec<(&Path, PathBuf)> = self.service.volumes().collect();
        let mut wanted = service.volumes().peekable();
        is_image && wanted.peek().is_some() && wanted.all(|volume| own.contains(&volume))
    }

    /// Returns its compose files that exist.
    pub fn files(&self) -> Vec<PathBuf> {
        self.compose.iter().filter(|file| file.exists()).cloned().collect()
    }

    /// Returns the files that created it, unless compose reads exactly these for a project.
    pub fn other_files(&self, compose: &Compose) -> Vec<PathBuf> {
        let known: Vec<PathBuf> = compose.files.iter().map(|file| real(file)).collect();
        let files = self.files();
        let is_known = files.iter().all(|file| known.contains(&real(file)));
        if is_known { Vec::new() } else { files }
    }
}

/// Last part of the name of an image.
fn file_name(repository: &str) -> &str {
    repository.rsplit('/').next().unwrap_or(repository)
}

/// Returns all containers, at most `CONTAINERS_MAX`; those that run come first.
pub fn all(program: &[String], root: &Path) -> Result<Vec<Running>> {
    let progress = Progress::default();
    let listed = |words: &[&str]| -> Result<Vec<String>> {
        let ids = ask(program, words, &progress)?;
        let ids = String::from_utf8_lossy(&ids);
        let ids = ids.lines().filter_map(|line| line.split_whitespace().next());
        Ok(ids.map(str::to_owned).collect())
    };
    let mut ids = listed(&["ps", "--quiet"])?;
    for stopped in listed(&["ps", "--quiet", "--all"]).unwrap_or_default() {
        if !ids.contains(&stopped) {
            ids.push(stopped);
        }
    }
    ids.truncate(CONTAINERS_MAX);
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let words: Vec<&str> = ["inspect"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    let mut all = containers(&ask(program, &words, &progress)?, root);
    all.sort_by_key(|one| !one.is_up);
    Ok(all)
}

/// Returns the container with this name, if it exists.
pub fn one(
    program: &[String],
    name: &str,
    root: &Path,
    progress: &Progress,
) -> Result<Option<Running>> {
    match ask(program, &["inspect", name], progress) {
        Ok(answer) => Ok(containers(&answer, root).into_iter().next()),
        Err(Error::Failed { output, .. }) if is_unknown(&output) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns true if a program reports that it does not know a container.
pub fn is_unknown(output: &str) -> bool {
    output.to_lowercase().contains("no such")
}

/// Adds the volumes of a container to those of its compose file. The container takes precedence if
/// its directory exists, because it has the live data. Returns a note for each contradiction.
pub fn add_mounts(mounts: &mut Vec<VolumeMount>, own: Vec<VolumeMount>) -> Vec<String> {
    let mut notes = Vec::new();
    for mount in own {
        let is_there = |source: &Source| match source {
            Source::Path(path) => path.exists(),
            Source::Text(_) | Source::Memory => true,
            Source::Unknown(_) => false,
        };
        let Some(known) = mounts.iter_mut().find(|known| known.target == mount.target) else {
            mounts.push(mount);
            continue;
        };
        if !is_there(&known.source) {
            known.source = mount.source;
        } else if let (Source::Path(file), Source::Path(live)) = (&known.source, &mount.source)
            && live.exists()
            && real(file) != real(live)
        {
            notes.push(format!(
                "the container has {} at {}, but the compose file names {}; using the container's",
                shown(live),
                shown(&mount.target),
                shown(file)
            ));
            known.source = mount.source;
        }
    }
    notes
}

fn ask(program: &[String], words: &[&str], progress: &Progress) -> Result<Vec<u8>> {
    let words = program.iter().map(String::as_str).chain(words.iter().copied());
    // An inspected environment contains passwords.
    Command::new(words).within(QUESTION).secret(progress)
}

/// Parses the output of `inspect`, which is the same for docker and podman.
fn containers(answer: &[u8], root: &Path) -> Vec<Running> {
    let all: Vec<Value> = serde_json::from_slice(answer).unwrap_or_default();
    all.iter().filter_map(|one| container(one, root)).collect()
}

fn container(inspected: &Value, root: &Path) -> Option<Running> {
    let config = &inspected["Config"];
    let image = config["Image"].as_str().or(inspected["ImageName"].as_str())?;
    let variables = config["Env"].as_array().into_iter().flatten();
    let variables = variables.filter_map(|text| text.as_str()?.split_once('='));
    let mounts = inspected["Mounts"].as_array().into_iter().flatten();
    let label = |name: &str| config["Labels"][name].as_str().filter(|text| !text.is_empty());
    let at = |path: &Path| if path.starts_with(root) { path.to_owned() } else { below(root, path) };
    // podman-compose records the files as they were given.
    let dir = label(WORKING_DIR).map(Path::new);
    let listed = |files: Option<&str>| -> Vec<PathBuf> {
        let files = files.unwrap_or_default().split(',').filter(|file| !file.is_empty());
        let from = dir.unwrap_or(Path::new("/"));
        files.map(|file| at(&lexically(&from.join(file)))).collect()
    };
    let stack = label(STACK);
    let of_stack = label(STACK_SERVICE).map(|name| {
        let inner = stack.and_then(|stack| name.strip_prefix(stack)?.strip_prefix('_'));
        inner.unwrap_or(name)
    });
    Some(Running {
        id: inspected["Id"].as_str().unwrap_or_default().to_owned(),
        name: inspected["Name"].as_str()?.trim_start_matches('/').to_owned(),
        service: Service {
            image: Some(image.to_owned()),
            environment: variables
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            mounts: mounts.filter_map(|mount| self::mount(mount, root)).collect(),
            ..Service::default()
        },
        compose: listed(COMPOSE_FILES.into_iter().find_map(label)),
        dir: dir.map(at),
        env_files: listed(label(ENV_FILES)),
        project: label(PROJECT).or(stack).map(str::to_owned),
        service_name: label(SERVICE).or(of_stack).map(str::to_owned),
        aliases: aliases(inspected),
        is_up: inspected["State"]["Running"].as_bool() != Some(false),
    })
}

fn aliases(inspected: &Value) -> Vec<String> {
    let networks = inspected["NetworkSettings"]["Networks"].as_object();
    let all = networks.into_iter().flat_map(|networks| networks.values());
    let all = all.filter_map(|network| network["Aliases"].as_array()).flatten();
    all.filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn mount(inspected: &Value, root: &Path) -> Option<VolumeMount> {
    let target = PathBuf::from(inspected["Destination"].as_str()?);
    let source = inspected["Source"].as_str().filter(|source| !source.is_empty()).map(Path::new);
    let source = match (inspected["Type"].as_str(), source) {
        (Some("tmpfs"), _) => Source::Memory,
        (_, Some(path)) if path.starts_with(root) => Source::Path(path.to_owned()),
        (_, Some(path)) if path.is_absolute() => Source::Path(below(root, path)),
        _ => Source::Unknown("it is not on this machine".into()),
    };
    Some(VolumeMount { target, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &[u8] =
        br#"[{"Id": "00ff", "Name": "/git", "Config": {"Image": "docker.io/gitlab/gitlab-ee:17.8.2-ee.0",
        "Env": ["PATH=/bin", "GITLAB_OMNIBUS_CONFIG=external_url 'a=b'"],
        "Labels": {"com.docker.compose.project.config_files": "/srv/a.yml,/srv/b.yml"}},
        "Mounts": [{"Type": "bind", "Source": "/srv/config", "Destination": "/etc/gitlab"},
        {"Type": "volume", "Name": "data", "Source": "/var/lib/docker/volumes/data/_data",
        "Destination": "/var/opt/gitlab"}, {"Type": "tmpfs", "Source": "", "Destination": "/run"},
        {"Type": "volume", "Destination": "/far"}]}, {"Name": "odd"}, 7]"#;

    #[test]
    fn the_output_of_inspect_is_parsed() {
        let all = containers(ANSWER, Path::new("/"));
        assert_eq!(all.len(), 1);
        let Running { id, name, service, compose, .. } = &all[0];
        assert_eq!(id, "00ff");
        assert_eq!(name, "git");
        assert_eq!(service.repository(), "docker.io/gitlab/gitlab-ee");
        assert_eq!(service.tag(), Some("17.8.2-ee.0"));
        assert_eq!(service.variable("GITLAB_OMNIBUS_CONFIG"), Some("external_url 'a=b'"));
        assert_eq!(*compose, [Path::new("/srv/a.yml"), Path::new("/srv/b.yml")]);
        let sources: Vec<&Source> = service.mounts.iter().map(|mount| &mount.source).collect();
        let path = |path: &str| Source::Path(path.into());
        assert_eq!(*sources[0], path("/srv/config"));
        assert_eq!(*sources[1], path("/var/lib/docker/volumes/data/_data"));
        assert_eq!(*sources[2], Source::Memory);
        assert!(matches!(sources[3], Source::Unknown(_)));
        assert!(containers(b"no JSON", Path::new("/")).is_empty());
        let below = containers(ANSWER, Path::new("/srv"));
        let source = |at: usize| &below[0].service.mounts[at].source;
        assert_eq!(*source(0), path("/srv/config"));
        assert_eq!(*source(1), path("/srv/var/lib/docker/volumes/data/_data"));
    }

    #[test]
    fn stopped_containers_come_after_those_that_run() {
        let dir = tempfile::tempdir().expect("a directory");
        let one = |id: &str, is_up: bool| {
            format!(
                r#"{{"Id": "{id}", "Name": "/{id}", "State": {{"Running": {is_up}}},
                "Config": {{"Image": "gitlab/gitlab-ce"}},
                "NetworkSettings": {{"Networks": {{"net": {{"Aliases": ["db", "{id}"]}}}}}}}}"#
            )
        };
        let inspected = format!("[{}, {}]", one("down", false), one("up", true));
        std::fs::write(dir.path().join("inspected"), inspected).expect("writes");
        let script = format!(
            "case \"$*\" in 'ps --quiet') echo up ;; 'ps --quiet --all') echo down; echo up ;; \
             'inspect up down') cat {}/inspected ;; *) exit 1 ;; esac",
            dir.path().display()
        );
        let program = ["sh", "-c", &script, "docker"].map(str::to_owned);
        let all = all(&program, Path::new("/")).expect("answers");
        let names: Vec<(&str, bool)> = all.iter().map(|one| (&*one.name, one.is_up)).collect();
        assert_eq!(names, [("up", true), ("down", false)]);
        assert_eq!(all[0].aliases, ["db", "up"]);
    }

    #[test]
    fn compose_volumes_replace_missing_mounts() {
        let dir = tempfile::tempdir().expect("a directory");
        let mount = |target: &str, source: &Path| VolumeMount {
            target: target.into(),
            source: Source::Path(source.to_owned()),
        };
        let gone = dir.path().join("gone");
        let mut mounts = vec![mount("/a", dir.path()), mount("/b", &gone)];
        let own = ["/a", "/b", "/c"].map(|target| mount(target, Path::new("/own")));
        let notes = add_mounts(&mut mounts, own.to_vec());
        let own = Path::new("/own");
        assert_eq!(mounts, [mount("/a", dir.path()), mount("/b", own), mount("/c", own)]);
        assert!(notes.is_empty(), "{notes:?}");

        // A container that was made before its compose file was edited has the live data.
        let live = dir.path().join("live");
        std::fs::create_dir(&live).expect("a directory");
        let notes = add_mounts(&mut mounts, vec![mount("/a", &live)]);
        assert_eq!(mounts[0], mount("/a", &live));
        assert!(notes[0].contains("using the container's"), "{notes:?}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("live", &link).expect("links");
        assert!(add_mounts(&mut mounts, vec![mount("/a", &link)]).is_empty());
    }
}
