//! GitLab in a container of its official image, which contains the Linux package.
//!
//! A compose file, or the program that runs the container, names the directories of its volumes on
//! this machine. Everything else is as in the package. The container's own clients and `gitlab-ctl`
//! run inside it, and it stays up while its services are stopped.

mod accounts;

use super::docker_gitlab::compose::{Compose, Service, Surroundings};
use super::docker_gitlab::containers::Containers;
use super::docker_gitlab::find::{self, Sought};
use super::docker_gitlab::running::{self, Running};
use super::docker_gitlab::{configuration, of_container, project, volumes_dir};
use super::gitlab::Gitlab;
use super::gitlab::paths::{CONFIG, Container, DATA, Package};
use super::{Kind, Rebuilding, Site};
use crate::error::{Error, Result};
use crate::file;
use crate::plan::{Part, Plan, Product, Volume};
use accounts::Accounts;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use store::entry::Displayed;

/// GitLab in a container of its official image.
pub struct GitlabContainer;

/// The service that runs GitLab.
const SOUGHT: Sought = Sought { image: "gitlab/gitlab-ce or gitlab/gitlab-ee", is_it: is_official };

/// Editions. Each has an image of its own.
const EDITIONS: [&str; 3] = ["ce", "ee", "jh"];

/// Programs that run containers.
const PROGRAMS: [&str; 2] = ["docker", "podman"];

impl Kind for GitlabContainer {
    fn name(&self) -> &'static str {
        "gitlab-container"
    }

    fn title(&self) -> &'static str {
        "GitLab in a container of its official image"
    }

    fn detect(&self, root: &Path) -> Option<String> {
        let file = find::compose_files(root, SOUGHT).into_iter().next();
        file.map(|path| path.display().to_string()).or_else(|| {
            let (program, first) = found_running(root).into_iter().next()?;
            let state = if first.is_up { "" } else { ", which is stopped" };
            Some(format!("container {} of {program}{state}", first.name))
        })
    }

    fn propose(&self, root: &Path) -> Vec<String> {
        let files = find::compose_files(root, SOUGHT);
        let all: Vec<Compose> =
            files.iter().filter_map(|file| find::read(root, file).ok()).collect();
        let compose = all.iter().find(|compose| files.first() == Some(&compose.path));
        let running = found_running(root);
        let is_of_file = |one: &Running| all.iter().any(|compose| is_of(one, compose));
        let mut others: Vec<_> = running.iter().filter(|(_, one)| !is_of_file(one)).collect();
        // The service that is backed up comes before others of its file.
        let of_first = |is_exact: bool| {
            running.iter().find(|(_, one)| {
                compose.is_some_and(|compose| {
                    let own = chosen(compose).filter(|_| is_exact);
                    own.map_or(!is_exact && is_of(one, compose), |(name, service)| {
                        one.runs(compose, name, service)
                    })
                })
            })
        };
        let own = of_first(true).or_else(|| of_first(false));
        let created = own.zip(compose).map(|((_, one), compose)| one.other_files(compose));
        let mut lines = find::proposed(&files, &created.unwrap_or_default());
        if let Some(((_, one), compose)) = own.zip(compose) {
            lines.extend(named_otherwise(one, compose));
        }
        lines.extend(compose.and_then(|compose| Some(format!("# {}", other_services(compose)?))));
        let mut program = own.map(|(program, _)| *program);
        if files.is_empty() && !others.is_empty() {
            let (own, first) = others.remove(0);
            program = Some(*own);
            lines.push(format!("container = {}", toml::Value::from(first.name.as_str())));
        }
        lines.extend(others.iter().map(|(program, other)| {
            format!(
                "# Container {} of {program} runs GitLab as well; give it an instance with \
                 container = {}.",
                other.name,
                toml::Value::from(other.name.as_str())
            )
        }));
        let program = program.filter(|program| *program != PROGRAMS[0]);
        lines.extend(program.map(|program| format!("docker = [{program:?}]")));
        lines
    }

    fn rebuilding(&self) -> Rebuilding {
        let of_package = Gitlab.rebuilding();
        let first = &["compose", "secrets", "gitlab.rb", "config"];
        Rebuilding { first, is_container_up: true, ..of_package }
    }

    fn fill(&self, site: &Site<'_>, plan: &mut Plan) -> Result<()> {
        let (name, service, unknown) = container(site, plan)?;
        let container =
            Container { name: &name, service: &service, links: std::cell::RefCell::default() };
        let package = Package { site, container: Some(container) };
        // What is known of the configuration is then missing, and the data is copied all the same.
        let needed = [CONFIG, DATA].into_iter().filter(|dir| *dir == DATA || unknown.is_some());
        for needed in needed {
            package.place(Path::new(needed)).map_err(|reason| {
                site.wrong(match &unknown {
                    // The image makes volumes that only the container itself knows.
                    Some(why) => format!(
                        "cannot back up container {name}: the compose file has no volume at \
                         {needed}, and the container's own are unknown ({why})"
                    ),
                    None => format!("cannot back up container {name}: {reason}"),
                })
            })?;
        }
        plan.volumes = Volume::all(None, service.volumes());
        plan.product = product(&package, &service, plan);
        package.fill(plan)?;
        // User names are valid only in the container.
        let accounts = match site.is_offline {
            true => None,
            false => Accounts::of(&site.settings.docker, &name, site.progress)?,
        };
        plan.notes.extend(number_owners(&mut plan.parts, accounts.as_ref()));
        plan.notes.extend(number_owners(&mut plan.servers, accounts.as_ref()));
        if let Ok(rails) = std::fs::metadata(package.at(DATA).join("gitlab-rails")) {
            plan.notes.push(format!(
                "GitLab's files belong to user {} and group {} of the container; a restore keeps \
                 these numbers",
                rails.uid(),
                rails.gid()
            ));
        }
        Ok(())
    }

    fn shares_with(&self) -> Option<&'static dyn Kind> {
        Some(&Gitlab)
    }
}

/// Replaces the names of owners by numbers of this machine; `None` if the container does not answer.
/// Returns notes about accounts that it lacks.
fn number_owners(parts: &mut [Part], accounts: Option<&Accounts>) -> Vec<String> {
    let mut notes = Vec::new();
    for part in parts {
        let Some((name, accounts)) = part.owner.take().zip(accounts) else { continue };
        part.owner = accounts.numbers(&name);
        if part.owner.is_none() && part.is_there() {
            notes.push(format!(
                "the container has no account {name}; owners of part `{}` are not looked at",
                part.name
            ));
        }
    }
    notes
}

/// Returns true if a container runs a GitLab of a project.
fn is_of(running: &Running, compose: &Compose) -> bool {
    running.is_created_from(compose)
        || official(compose).iter().any(|(name, service)| running.runs(compose, name, service))
}

/// Returns configuration lines about a container whose project, or whose name, does not follow from
/// its compose file.
fn named_otherwise(running: &Running, compose: &Compose) -> Vec<String> {
    let mut lines = Vec::new();
    let project = running.project.as_ref().filter(|name| !compose.names.contains(name));
    if let Some(project) = project {
        lines.push(format!("project = {}", toml::Value::from(project.as_str())));
    }
    let projects = compose.names.iter().chain(project);
    let service = running.service_name.as_deref().unwrap_or_default();
    let mut usual = projects
        .flat_map(|project| [format!("{project}-{service}-1"), format!("{project}_{service}_1")]);
    let configured = official(compose)
        .iter()
        .any(|(_, service)| service.container.as_ref() == Some(&running.name));
    if !configured && !usual.any(|name| name == running.name) {
        lines.push(format!("# Its container is {}.", running.name));
    }
    lines
}

/// Names the services with a GitLab besides the one that is backed up; `None` if there are none.
fn other_services(compose: &Compose) -> Option<String> {
    let own = chosen(compose)?.0;
    let others = official(compose).into_iter().map(|(name, _)| name);
    let others: Vec<&str> = others.filter(|name| *name != own).collect();
    (!others.is_empty()).then(|| {
        format!(
            "The compose file also has GitLab in {}; give each an instance with its `container`.",
            others.join(", ")
        )
    })
}

/// Returns the service that is backed up: the first with an official image, or else one that looks
/// like it.
fn chosen(compose: &Compose) -> Option<(&str, &Service)> {
    let found = official(compose).into_iter();
    found.min_by_key(|(_, service)| (edition(service).is_none(), service.is_helper()))
}

/// Returns the services with a GitLab, by name.
fn official(compose: &Compose) -> Vec<(&str, &Service)> {
    let all = compose.services.iter();
    let all = all.filter_map(|(name, service)| Some((name.as_str(), service.as_ref().ok()?)));
    all.filter(|(_, service)| is_official(service)).collect()
}

/// Returns true if a service runs an official image, or an image made from one.
fn is_official(service: &Service) -> bool {
    edition(service).is_some()
        || service.environment.contains_key("GITLAB_OMNIBUS_CONFIG")
        || service.mounts.iter().any(|mount| mount.target == Path::new(DATA))
}

/// Returns the edition in the name of the image.
fn edition(service: &Service) -> Option<&'static str> {
    let name = service.repository().rsplit('/').next()?.strip_prefix("gitlab-")?;
    EDITIONS.into_iter().find(|edition| *edition == name)
}

/// Returns the containers with a GitLab, each with the program that runs it. Programs are
/// asked only if `root` is `/`: containers of this machine do not belong to another root.
fn found_running(root: &Path) -> Vec<(&'static str, Running)> {
    let mut found: Vec<(&'static str, Running)> = Vec::new();
    for program in PROGRAMS.into_iter().filter(|_| root == Path::new("/")) {
        for one in running::all(&[program.to_owned()], root).unwrap_or_default() {
            // `podman` may be installed as `docker`, too.
            let is_new = one.id.is_empty() || found.iter().all(|(_, known)| known.id != one.id);
            if is_official(&one.service) && is_new {
                found.push((program, one));
            }
        }
    }
    found
}

/// Name of a container, with its volumes and environment, and the reason why further volumes are
/// unknown.
type Found = (String, Service, Option<String>);

/// Returns the container. Adds a part with the files that create it.
fn container(site: &Site<'_>, plan: &mut Plan) -> Result<Found> {
    let (settings, root) = (site.settings, &site.settings.root);
    if let Some(name) = &settings.container {
        let Some(running) = running::one(&settings.docker, name, root, site.progress)? else {
            let program = settings.docker.join(" ");
            return Err(site.wrong(format!("{program} has no container {name}")));
        };
        return Ok(of_running(site, running, plan));
    }
    let has_file = !find::named(site).is_empty() || find::compose_files(root, SOUGHT).len() == 1;
    if !has_file {
        let all = running::all(&settings.docker, root).unwrap_or_default();
        let mut all: Vec<_> =
            all.into_iter().filter(|running| is_official(&running.service)).collect();
        // A stopped one may be the one before an upgrade.
        if all.iter().filter(|one| one.is_up).count() == 1 {
            all.retain(|one| one.is_up);
        }
        if all.len() > 1 {
            let names: Vec<&str> = all.iter().map(|running| running.name.as_str()).collect();
            return Err(site.wrong(format!(
                "several containers run GitLab ({}); choose one: container = \"…\"",
                names.join(", ")
            )));
        }
        if let Some(running) = all.pop() {
            return Ok(of_running(site, running, plan));
        }
    }
    of_compose(site, plan)
}

/// Returns a running container. Adds its compose files to the plan, with the files that they name.
fn of_running(site: &Site<'_>, running: Running, plan: &mut Plan) -> Found {
    let named = find::named(site);
    let files = if named.is_empty() { running.files() } else { named };
    if files.is_empty() {
        plan.notes.push(format!(
            "no compose file of container {} is known, so the backup lacks the command that \
             created the container; keep that command, or set parts.compose.path",
            running.name
        ));
        return (running.name, running.service, None);
    }
    for file in running.compose.iter().filter(|file| !file.exists()) {
        plan.notes.push(format!(
            "compose file {} of container {} does not exist",
            file.displayed(),
            running.name
        ));
    }
    let (root, volumes) = (&site.settings.root, volumes_dir(site, plan));
    let project = site.settings.project.as_deref();
    let place = Surroundings { root, volumes: &volumes, project, dir: None, env_files: &[] };
    match of_container(&running, &files, place) {
        Ok(compose) => {
            plan.notes.extend(compose.notes.iter().cloned());
            configuration(&compose, plan);
        }
        Err(error) => {
            let part = plan.needs("compose", "the compose file of the container", PathBuf::new());
            part.paths = files;
            let text = format!("the files that the compose file names ({error})");
            plan.lacks("compose", text);
        }
    }
    (running.name, running.service, None)
}

/// Returns the container of a compose service. Adds volumes that only the container itself knows.
fn of_compose(site: &Site<'_>, plan: &mut Plan) -> Result<Found> {
    let settings = site.settings;
    let (compose, known) = project(site, SOUGHT, plan)?;
    configuration(&compose, plan);
    let path = compose.path.clone();
    plan.notes.extend(other_services(&compose));
    let Some((name, service)) = chosen(&compose) else {
        let failed = compose.services.values().find_map(|service| service.as_ref().err());
        return Err(match failed.map(ToString::to_string) {
            Some(reason) => Error::Malformed { path, reason },
            None => site.wrong(format!(
                "{} has no service with an image {}; is it the right compose file?",
                path.displayed(),
                SOUGHT.image
            )),
        });
    };
    let containers = Containers { site, compose: &compose, known: &known };
    let container = containers.name_of(name, service, plan)?;
    let (mut mounts, mut unknown) = (service.mounts.clone(), None);
    let known = known.into_iter().find(|one| one.name == container);
    let known = match known {
        Some(known) => Ok(Some(known)),
        None => running::one(&settings.docker, &container, &settings.root, site.progress),
    };
    // Adds volumes without a name, and volumes with a different name in compose.
    match known {
        Ok(Some(running)) => {
            plan.notes.extend(running::add_mounts(&mut mounts, running.service.mounts));
        }
        Ok(None) => {}
        Err(error) if error.is_interrupted() => return Err(error),
        Err(error) => {
            plan.notes.push(format!(
                "cannot list volumes of {container}: {error}; check that the container runs"
            ));
            unknown = Some(error.to_string());
        }
    }
    let service = Service {
        image: service.image.clone(),
        environment: service.environment.clone(),
        mounts,
        ..Service::default()
    };
    Ok((container, service, unknown))
}

/// Returns the version that started last, or else the one in the image's tag.
fn product(package: &Package<'_>, service: &Service, plan: &mut Plan) -> Product {
    let tag = service.tag().filter(|tag| tag.starts_with(|c: char| c.is_ascii_digit()));
    let number = |text: &str| text.split('-').next().unwrap_or(text).trim().to_owned();
    // 17.8.2-ce.0 is the first package of 17.8.2.
    let of_tag = tag.map(number);
    let path = package.at(DATA).join("gitlab-rails/VERSION");
    let of_data = file::text(&path).unwrap_or_else(|error| {
        plan.notes.push(format!("{error}; using the version of the image"));
        None
    });
    let of_data = of_data.map(|text| number(&text)).filter(|text| !text.is_empty());
    if let (Some(tag), Some(data)) = (&of_tag, &of_data)
        && tag != data
    {
        plan.notes.push(format!(
            "the image has version {tag}, but the data has version {data}: the container has not \
             started since the image changed"
        ));
    }
    Product {
        name: "GitLab".into(),
        edition: edition(service).map(str::to_owned),
        version: of_data.or(of_tag),
        image: service.image.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::docker_gitlab::compose::{Source, VolumeMount};
    use super::*;
    use crate::service::control::Control;
    use crate::settings::Settings;
    use store::observe::Progress;

    /// Plans the backup of a machine that has these files.
    fn plan_of(files: &[(&str, &str)], more: &str) -> (tempfile::TempDir, Result<Plan>) {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
            std::fs::write(path, text).expect("writes");
        }
        let text = format!("kind = 'gitlab-container'\nroot = '{}'\n{more}", root.path().display());
        let settings: Settings = toml::from_str(&text).expect("settings");
        let progress = Progress::default();
        let site =
            Site { instance: "forge", settings: &settings, progress: &progress, is_offline: true };
        let plan = crate::overrides::plan(&site).map(|(plan, _)| plan);
        (root, plan)
    }

    const RAILS: &str = "srv/data/gitlab-rails";
    const COMPOSE: &str = "services:\n  git:\n    image: registry.example.org/gitlab/gitlab-ee:17.8.2-ee.0\n    \
                           container_name: forge\n    volumes:\n      - /srv/config:/etc/gitlab\n      \
                           - /srv/data:/var/opt/gitlab\n      - /mnt/lfs:/var/opt/gitlab/gitlab-rails/shared/lfs-objects\n      \
                           - /mnt/git:/data/git\n";
    const GITLAB_YML: &str = "production:\n  artifacts:\n    path: /nowhere/artifacts\n  \
                              lfs:\n    storage_path: /var/opt/gitlab/gitlab-rails/shared/lfs-objects\n  \
                              uploads:\n    storage_path: /opt/gitlab/embedded/service/gitlab-rails/public\n  \
                              gitlab_ci: {}\n";

    #[test]
    fn unknown_volumes_are_named() {
        let compose = "services:\n  git:\n    image: gitlab/gitlab-ce:17\n    volumes:\n      \
                       - /srv/config:/etc/gitlab\n      - /srv/data:/var/opt/gitlab\n      \
                       - /srv/logs:/var/log/gitlab\n      - /etc/localtime:/etc/localtime\n      \
                       - /srv/tls:/extra/tls:ro\n";
        let (_root, plan) = plan_of(&[("srv/gitlab/compose.yaml", compose)], "");
        let notes = plan.expect("a plan").notes;
        let unknown: Vec<&String> =
            notes.iter().filter(|note| note.contains("is unknown and not copied")).collect();
        assert!(unknown.len() == 1 && unknown[0].contains("srv/tls, mounted at /extra/tls"));
    }

    #[test]
    fn paths_of_the_container_are_found_in_its_volumes() {
        let database =
            "production:\n  main:\n    database: gitlab\n    host: /var/opt/gitlab/postgresql\n";
        let gitaly = "[[storage]]\nname = 'default'\npath = '/data/git/repositories'\n\
                      [[storage]]\nname = 'inner'\npath = '/layer/repositories'\n";
        let files = [
            ("srv/forge/compose.yaml", COMPOSE),
            // The image writes only comments.
            ("srv/config/gitlab.rb", "# comment\n"),
            (&format!("{RAILS}/etc/gitlab.yml"), GITLAB_YML),
            (&format!("{RAILS}/etc/database.yml"), database),
            (&format!("{RAILS}/shared/new/file"), ""),
            (&format!("{RAILS}/VERSION"), "17.9.0-ee\n"),
            ("srv/data/gitaly/config.toml", gitaly),
            ("srv/data/postgresql/data/PG_VERSION", "16"),
            ("srv/data/geo-postgresql/data/PG_VERSION", "16"),
            ("srv/data/redis/dump.rdb", ""),
            // Docker makes the directory at which it mounts another volume.
            (&format!("{RAILS}/shared/lfs-objects/hidden"), ""),
        ];
        let (root, plan) = plan_of(&files, "docker = ['false']");
        let plan = plan.expect("a plan");
        let root = root.path().canonicalize().expect("is there");
        let place = |part: &str| {
            let place = plan.place(part).unwrap_or_else(|| panic!("{part}: {:?}", plan.parts));
            place.strip_prefix(&root).expect("below the root").display().to_string()
        };
        assert_eq!(place("config"), "srv/config");
        assert_eq!(place("uploads"), "srv/data/gitlab-rails/uploads");
        assert_eq!(place("lfs"), "mnt/lfs");
        assert_eq!(place("repositories"), "mnt/git/repositories");
        assert_eq!(place("shared-new"), "srv/data/gitlab-rails/shared/new");
        assert_eq!(place("compose"), "srv/forge/compose.yaml");
        assert!(plan.place("ssh-host-keys").is_none(), "they are in its configuration");
        let lacking: Vec<(&str, &str)> =
            plan.lacking.iter().map(|absent| (&*absent.part, &*absent.looked_for)).collect();
        let goes = "of the container is not in a volume and is lost with the container";
        assert_eq!(lacking.len(), 2, "{lacking:?}");
        assert!(lacking.contains(&("artifacts", &format!("/nowhere/artifacts {goes}"))));
        assert!(lacking.iter().any(|(part, text)| part.contains("inner") && text.ends_with(goes)));
        let server = plan.postgres.as_ref().expect("a server");
        assert_eq!(server.host.as_deref(), Some("/var/opt/gitlab/postgresql"));
        let command = server.reach.command("psql", ["-l"]).argv.join(" ");
        assert!(command.starts_with("false exec -i --env PGPASSWORD "), "{command}");
        let end = " --user gitlab-psql forge /opt/gitlab/embedded/bin/psql -l";
        assert!(command.ends_with(end), "{command}");
        let Control::Supervised(supervisor) = &plan.control else { panic!("{:?}", plan.control) };
        let program = ["false", "exec", "forge", "/opt/gitlab/bin/gitlab-ctl"];
        assert_eq!(supervisor.program, program);
        assert_eq!(plan.product.version.as_deref(), Some("17.9.0"));
        assert_eq!(plan.product.edition.as_deref(), Some("ee"));
        for words in [
            "the image has version 17.8.2, but the data has version 17.9.0",
            "Geo: ",
            "belong to user",
        ] {
            assert!(plan.notes.iter().any(|note| note.contains(words)), "{:?}", plan.notes);
        }
        assert!(plan.parts.iter().all(|part| part.owner.is_none()));
        let hidden = root.join(RAILS).join("shared/lfs-objects");
        assert!(plan.skipped.iter().any(|left| left.path == hidden), "{:?}", plan.skipped);
        let is_unknown = |note: &&String| note.contains("is unknown");
        let unknown: Vec<&String> = plan.notes.iter().filter(is_unknown).collect();
        assert!(unknown.iter().all(|note| note.contains("shared/new")), "{unknown:?}");
    }

    #[test]
    fn an_empty_gitlab_rb_is_right_only_with_settings_in_a_variable() {
        let variable =
            "    environment:\n      GITLAB_OMNIBUS_CONFIG: \"puma['worker_processes'] = 2\"\n";
        let rb = |text: &'static str| ("srv/config/gitlab.rb", text);
        for (compose, text, is_right) in [
            (COMPOSE.to_owned(), "", false),
            (COMPOSE.to_owned(), "# comment\n", true),
            (format!("{COMPOSE}{variable}"), "", true),
        ] {
            let files = [("srv/forge/compose.yaml", compose.as_str()), rb(text)];
            let (_root, plan) = plan_of(&files, "docker = ['false']");
            let lacking = plan.expect("a plan").lacking;
            let is_there = lacking.iter().all(|absent| absent.part != "gitlab.rb");
            assert_eq!(is_there, is_right, "{compose}{text}: {lacking:?}");
        }
    }

    #[test]
    fn links_in_volumes_are_followed_as_the_container_follows_them() {
        let (root, _) = plan_of(&[("mnt/git/real/repositories/x", "")], "docker = ['false']");
        let mount = |target: &str, source: &str| VolumeMount {
            target: target.into(),
            source: Source::Path(root.path().join(source)),
        };
        let service = Service {
            mounts: vec![mount("/var/opt/gitlab", "srv/data"), mount("/data/git", "mnt/git")],
            ..Service::default()
        };
        let link = |target: &str, path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below")).expect("directories");
            std::os::unix::fs::symlink(target, path).expect("links");
        };
        link("/data/git/moved", "srv/data/git-data");
        link("real", "mnt/git/moved");
        link("circle", "srv/data/circle");
        link("/nowhere", "srv/data/out");
        let path = Path::new("/var/opt/gitlab/git-data/repositories");
        let (followed, links) = service.follow(path);
        assert_eq!(followed, Path::new("/data/git/real/repositories"));
        assert_eq!(
            links,
            ["srv/data/git-data", "mnt/git/moved"].map(|path| root.path().join(path))
        );
        assert_eq!(service.follow(Path::new("/var/opt/gitlab/out")).0, Path::new("/nowhere"));
        service.follow(Path::new("/var/opt/gitlab/circle"));
    }

    #[test]
    fn a_container_without_its_volumes_is_refused() {
        let compose = COMPOSE.replace("/srv/data:/var/opt/gitlab\n", "/srv/data:/else\n");
        let knows_none = "docker = ['sh', '-c', 'echo no such object >&2; exit 1']";
        let (_root, plan) = plan_of(&[("srv/forge/compose.yaml", &compose)], knows_none);
        let error = plan.expect_err("is refused").to_string();
        assert!(error.contains("/var/opt/gitlab of the container is not in a volume"), "{error}");
        // Docker does not answer. The image may have made a volume.
        let (_root, plan) = plan_of(&[("srv/forge/compose.yaml", &compose)], "docker = ['false']");
        let error = plan.expect_err("is refused").to_string();
        assert!(
            error.contains("no volume at /var/opt/gitlab") && error.contains("unknown ("),
            "{error}"
        );
        let (_root, plan) = plan_of(&[], "docker = ['false']");
        let error = plan.expect_err("is refused").to_string();
        assert!(error.contains("no compose file with an image gitlab/gitlab-ce"), "{error}");
        let truncated = &COMPOSE[..COMPOSE.len() - 60];
        let (_root, plan) = plan_of(&[("srv/forge/compose.yaml", truncated)], "docker = ['false']");
        assert!(plan.is_ok(), "its volumes are whole");
    }

    #[test]
    fn accounts_that_the_container_lacks_are_named() {
        let settings = toml::from_str("kind = 'gitlab-container'").expect("settings");
        let mut plan = Plan::new("forge", "gitlab-container", &settings);
        for (name, owner) in [("uploads", "git"), ("registry", "registry"), ("config", "root")] {
            plan.takes(name, "", "/tmp".into()).owner = Some(owner.into());
        }
        plan.takes("redis", "", "/nowhere".into()).owner = Some("gitlab-redis".into());
        let all = "0 0 4294967295\n";
        let passwd = "root:x:0:0::/root:/bin/sh\ngit:x:998:998::/var/opt/gitlab:/bin/sh\n";
        let accounts = Accounts::parse(&format!("{all}{all}{passwd}"));
        let notes = number_owners(&mut plan.parts, Some(&accounts));
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("no account registry"), "{notes:?}");
        let owners: Vec<_> = plan.parts.iter().map(|part| part.owner.as_deref()).collect();
        assert_eq!(owners, [Some("998:998"), None, Some("0:0"), None]);
        assert!(number_owners(&mut plan.parts, None).is_empty());
    }

    #[test]
    fn a_configuration_outside_all_volumes_is_missing() {
        let compose = COMPOSE.replace("      - /srv/config:/etc/gitlab\n", "");
        let knows_none = "docker = ['sh', '-c', 'echo no such object >&2; exit 1']\n";
        let yml = format!("{RAILS}/etc/gitlab.yml");
        let keys = format!("{RAILS}/etc/secrets.yml");
        let files = [("srv/forge/compose.yaml", &*compose), (&yml, GITLAB_YML)];
        let (_root, plan) = plan_of(&files, knows_none);
        let plan = plan.expect("a plan");
        let lacking = |plan: &Plan, name: &str| {
            let mut lacking = plan.lacking.iter();
            lacking.find(|absent| absent.part == name).map(|absent| absent.is_required)
        };
        for part in ["config", "gitlab.rb", "secrets"] {
            assert_eq!(lacking(&plan, part), Some(true), "{part}: {:?}", plan.lacking);
        }
        // The generated file has the keys, too.
        let more =
            format!("{knows_none}parts.config.missing = 'ok'\nparts.'gitlab.rb'.missing = 'ok'\n");
        let (_root, plan) = plan_of(&[files[0], files[1], (&keys, "production: {}\n")], &more);
        let plan = plan.expect("a plan");
        assert!(plan.place("secrets").is_some_and(|path| path.ends_with(&keys)), "{plan:?}");
        assert_eq!(lacking(&plan, "secrets"), None, "{:?}", plan.lacking);
        assert_eq!(lacking(&plan, "config"), Some(false), "{:?}", plan.lacking);
    }

    /// Stands in for docker with one container, created from these files in this directory.
    fn docker_with(name: &str, labels: &str) -> (tempfile::TempDir, String) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let inspected = format!(
            r#"[{{"Id": "00ff", "Name": "/{name}", "Config": {{"Image": "gitlab/gitlab-ce:17.8.2-ce.0",
            "Env": [], "Labels": {{{labels}}}}}, "Mounts": [
            {{"Type": "bind", "Source": "/srv/config", "Destination": "/etc/gitlab"}},
            {{"Type": "bind", "Source": "/srv/data", "Destination": "/var/opt/gitlab"}}]}}]"#
        );
        std::fs::write(dir.path().join("inspected"), inspected).expect("writes");
        let docker = dir.path().join("docker");
        let script = format!(
            "#!/bin/sh\ncase \"$1 $2 $4\" in\nps*) echo 00ff ;;\ninspect\\ --format\\ {name}) echo ok ;;\n\
             inspect\\ --format*) echo 'no such object' >&2; exit 1 ;;\n\
             inspect\\ 00ff*|inspect\\ {name}*) cat '{}/inspected' ;;\n*) exit 1 ;;\nesac\n",
            dir.path().display()
        );
        std::fs::write(&docker, script).expect("writes");
        std::fs::set_permissions(&docker, std::fs::Permissions::from_mode(0o755)).expect("modes");
        let setting = format!("docker = ['{}']\n", docker.display());
        (dir, setting)
    }

    fn labels(project: &str, dir: &str, files: &str) -> String {
        let name = "com.docker.compose.project";
        format!(
            r#""{name}": "{project}", "com.docker.compose.service": "git", "{name}.working_dir": "{dir}",
            "{name}.config_files": "{files}""#
        )
    }

    const SHORT: &str = "services:\n  git:\n    image: gitlab/gitlab-ce:17.8.2-ce.0\n    volumes:\n      \
                         - /srv/config:/etc/gitlab\n      - /srv/data:/var/opt/gitlab\n";
    const WITH_ENV: &str = "services:\n  git:\n    env_file: mail.env\n";

    /// Names of the files in the part `compose`.
    fn compose_of(plan: &Plan) -> Vec<String> {
        let part = plan.parts.iter().find(|part| part.name == "compose").expect("the part");
        let name =
            |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
        let mut names: Vec<String> = part.paths.iter().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn files_that_the_compose_file_of_a_running_container_names_are_copied() {
        // podman-compose records a relative path.
        for file in ["/data/g/compose.yaml", "compose.yaml"] {
            let (_docker, setting) = docker_with("g-git-1", &labels("g", "/data/g", file));
            let compose = format!("{SHORT}    env_file: mail.env\n");
            let files = [
                ("data/g/compose.yaml", compose.as_str()),
                ("data/g/mail.env", "PASSWORD=hush\n"),
                ("data/g/.env", "A=b\n"),
                ("srv/data/x", ""),
                ("srv/config/gitlab.rb", "# comment\n"),
            ];
            for own in ["", "container = 'g-git-1'\n"] {
                let (_root, plan) = plan_of(&files, &format!("{setting}{own}"));
                let plan = plan.expect("a plan");
                assert_eq!(compose_of(&plan), [".env", "compose.yaml", "mail.env"], "{file} {own}");
            }
            let (_root, plan) = plan_of(&files[2..], &setting);
            assert!(
                plan.expect("a plan").notes.iter().any(|note| note.contains("no compose file"))
            );
            let (_root, plan) = plan_of(&[files[0], files[3]], &setting);
            let lacking = plan.expect("a plan").lacking;
            assert!(lacking.iter().any(|absent| absent.looked_for.contains("mail.env")));
        }
    }

    #[test]
    fn all_files_that_created_the_container_are_read() {
        let list = "/srv/g/docker-compose.yml,/srv/g/prod.yml";
        let (_docker, setting) = docker_with("g-git-1", &labels("g", "/srv/g", list));
        let files = [
            ("srv/g/docker-compose.yml", SHORT),
            ("srv/g/prod.yml", WITH_ENV),
            ("srv/g/mail.env", "PASSWORD=hush\n"),
            ("srv/data/x", ""),
            ("srv/config/gitlab.rb", "# comment\n"),
        ];
        let (_root, plan) = plan_of(&files, &setting);
        let plan = plan.expect("a plan");
        assert_eq!(compose_of(&plan), ["docker-compose.yml", "mail.env", "prod.yml"]);
        assert!(plan.notes.iter().any(|note| note.contains("created from")), "{:?}", plan.notes);
    }

    #[test]
    fn a_container_with_another_name_is_found() {
        let files = [
            ("srv/g/docker-compose.yml", SHORT),
            ("srv/data/x", ""),
            ("srv/config/gitlab.rb", "# comment\n"),
        ];
        let of = |project: &str| labels(project, "/srv/g", "/srv/g/docker-compose.yml");
        let stack = r#""com.docker.stack.namespace": "forge", "com.docker.swarm.service.name": "forge_git""#;
        for (name, labels) in [
            ("prod-git-1", of("prod")),
            ("g-git-2", of("g")),
            ("0123_g-git-1", of("g")),
            ("forge_git.1.x2y3", stack.to_owned()),
            ("by-hand", String::new()),
        ] {
            let (_docker, setting) = docker_with(name, &labels);
            let (_root, plan) = plan_of(&files, &setting);
            let plan = plan.expect("a plan");
            let Control::Supervised(supervisor) = &plan.control else { panic!("{name}") };
            assert_eq!(supervisor.program[2], name);
        }
    }

    #[test]
    fn volumes_within_parts_are_copied() {
        let inner = "      - /mnt/ssl:/etc/gitlab/ssl:ro\n      \
                     - /mnt/hashed:/var/opt/gitlab/git-data/repositories/@hashed\n      \
                     - /mnt/new:/var/opt/gitlab/gitlab-rails/shared/new_blobs\n      \
                     - /mnt/odd:/var/opt/gitlab/odd\n      - /mnt/pg:/var/opt/gitlab/postgresql/data\n";
        let compose = format!("{SHORT}{inner}");
        let yml = format!("{RAILS}/etc/gitlab.yml");
        let files = [
            ("srv/g/compose.yaml", compose.as_str()),
            ("srv/config/gitlab.rb", "# comment\n"),
            ("srv/config/ssl/x", ""),
            (&yml, GITLAB_YML),
            ("srv/data/git-data/repositories/@hashed/x", ""),
            ("srv/data/postgresql/data/x", ""),
            ("mnt/ssl/forge.key", "key"),
            ("mnt/hashed/a/b", ""),
            ("mnt/new/blob", ""),
            ("mnt/odd/x", ""),
            ("mnt/pg/x", ""),
        ];
        let (root, plan) = plan_of(&files, "docker = ['false']");
        let plan = plan.expect("a plan");
        let root = root.path().canonicalize().expect("is there");
        for (part, path) in
            [("config", "mnt/ssl"), ("repositories", "mnt/hashed"), ("shared-new_blobs", "mnt/new")]
        {
            let found = plan.parts.iter().find(|known| known.name == part);
            let found = found.unwrap_or_else(|| panic!("{part}: {:?}", plan.parts));
            assert!(found.paths.contains(&root.join(path)), "{part}: {found:?}");
        }
        let seen = root.join("srv/data/git-data/repositories/@hashed");
        assert!(plan.mounts.iter().any(|mount| mount.seen == seen), "{:?}", plan.mounts);
        let named = |path: &str| plan.notes.iter().any(|note| note.contains(path));
        assert!(named("mnt/odd") && !named("mnt/pg"), "{:?}", plan.notes);
        let paths = || plan.parts.iter().flat_map(|part| &part.paths);
        assert!(!paths().any(|path| path.starts_with(root.join("mnt/pg"))));
    }

    #[test]
    fn a_helper_of_the_same_image_is_not_backed_up_in_place_of_gitlab() {
        for helper in [
            "volumes_from: ['git:ro']",
            "volumes_from: [git]\n    command: gitlab-backup",
            "command: sleep\n    volumes: ['/srv/config:/etc/gitlab', '/srv/data:/var/opt/gitlab']",
        ] {
            let compose =
                format!("{COMPOSE}  a-backup:\n    image: gitlab/gitlab-ee\n    {helper}\n");
            let files = [("srv/forge/compose.yaml", compose.as_str()), ("srv/data/x", "")];
            let (_root, plan) = plan_of(&files, "docker = ['false']");
            let Control::Supervised(supervisor) = plan.expect("a plan").control else {
                panic!("{helper}")
            };
            assert_eq!(supervisor.program[2], "forge", "{helper}");
        }
        // Alone, it has the volumes of the other one.
        let compose = "services:\n  data:\n    image: busybox\n    volumes: ['/srv/config:/etc/gitlab', \
                       '/srv/data:/var/opt/gitlab']\n  git:\n    image: gitlab/gitlab-ce\n    \
                       container_name: forge\n    volumes_from: [data]\n";
        let files = [("srv/forge/compose.yaml", compose), ("srv/data/x", "")];
        let (root, plan) = plan_of(&files, "docker = ['false']");
        let root = root.path().canonicalize().expect("is there");
        assert_eq!(plan.expect("a plan").place("config"), Some(root.join("srv/config")));
    }

    #[test]
    fn files_that_an_image_is_built_from_are_copied() {
        let build = |context: &str| {
            format!("{SHORT}    build:\n      context: {context}\n      dockerfile: Own.docker\n")
        };
        let compose = build("./image");
        let dockerfile = "FROM gitlab/gitlab-ce\nCOPY hooks /opt/hooks\n";
        let files = [
            ("srv/g/compose.yaml", compose.as_str()),
            ("srv/g/image/Own.docker", dockerfile),
            ("srv/g/image/hooks/run", ""),
            ("srv/g/image/other", ""),
            ("srv/data/x", ""),
        ];
        let (_root, plan) = plan_of(&files, "docker = ['false']");
        assert_eq!(compose_of(&plan.expect("a plan")), ["Own.docker", "compose.yaml", "hooks"]);
        // The context has the volumes of the container.
        let compose = build("/srv");
        let files = [
            ("srv/g/compose.yaml", compose.as_str()),
            ("srv/Own.docker", "FROM gitlab/gitlab-ce\nCOPY . /\n"),
            ("srv/data/x", ""),
        ];
        let (_root, plan) = plan_of(&files, "docker = ['false']");
        let plan = plan.expect("a plan");
        assert_eq!(compose_of(&plan), ["Own.docker", "compose.yaml"]);
        let is_named = |note: &String| note.contains("is built from");
        assert!(plan.notes.iter().any(is_named), "{:?}", plan.notes);
    }

    #[test]
    fn a_project_with_its_image_in_another_file_is_detected() {
        let image = "services:\n  git:\n    image: gitlab/gitlab-ce:17.8.2-ce.0\n";
        let plain = SHORT.lines().filter(|line| !line.contains("image:"));
        let plain: String = plain.flat_map(|line| [line, "\n"]).collect();
        for files in [
            [("srv/g/compose.yaml", &*plain), ("srv/g/compose.override.yaml", image)].as_slice(),
            &[
                ("srv/g/compose.yaml", &*plain),
                ("srv/g/version.yml", image),
                ("srv/g/.env", "COMPOSE_FILE=compose.yaml:version.yml\n"),
            ],
            &[
                ("srv/g/base.yml", &*plain),
                ("srv/g/version.yml", image),
                ("srv/g/.env", "COMPOSE_FILE=base.yml:version.yml\n"),
            ],
        ] {
            let (root, _) = plan_of(files, "docker = ['false']");
            let found = GitlabContainer.detect(root.path());
            assert!(found.is_some_and(|found| found.ends_with(files[0].0)), "{files:?}");
        }
    }

    #[test]
    fn gitlab_images_are_recognised() {
        for (image, found) in [
            ("gitlab/gitlab-ce", Some("ce")),
            ("docker.io/gitlab/gitlab-ee:17.8.2-ee.0@sha256:00", Some("ee")),
            ("registry.example.org:5000/mirror/gitlab-jh:1", Some("jh")),
            ("gitlab/gitlab-runner:latest", None),
            ("sameersbn/gitlab:17.8.2", None),
        ] {
            let service = Service { image: Some(image.into()), ..Service::default() };
            assert_eq!(edition(&service), found, "{image}");
        }
    }
}
