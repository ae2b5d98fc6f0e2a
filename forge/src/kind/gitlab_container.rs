//! GitLab in a container of its official image, which contains the Linux package.
//!
//! A compose file, or the program that runs the container, names the directories of its volumes on
//! this machine. Everything else is as in the package. The container's own clients and `gitlab-ctl`
//! run inside it, and it stays up while its services are stopped.

mod accounts;
mod running;

use super::docker_gitlab::compose::{Compose, Service, Surroundings};
use super::docker_gitlab::containers::Containers;
use super::docker_gitlab::find::{self, Sought};
use super::docker_gitlab::{configuration, volumes_dir};
use super::gitlab::Gitlab;
use super::gitlab::package::{CONFIG, Container, DATA, Package};
use super::{Kind, Site};
use crate::error::{Error, Result};
use crate::file;
use crate::links::real;
use crate::plan::{Plan, Product};
use accounts::Accounts;
use running::Running;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
            Some(format!("container {} of {program}", first.name))
        })
    }

    fn propose(&self, root: &Path) -> Vec<String> {
        let files = find::compose_files(root, SOUGHT);
        let mut lines = find::proposed(&files);
        let compose = files.first().and_then(|file| find::read(root, file).ok());
        lines.extend(compose.and_then(|compose| Some(format!("# {}", other_services(&compose)?))));
        let running = found_running(root);
        let is_of_file = |one: &Running| {
            let real: Vec<PathBuf> = one.compose.iter().map(|file| real(file)).collect();
            files.iter().any(|file| real.contains(&self::real(file)))
        };
        let mut others: Vec<_> = running.iter().filter(|(_, one)| !is_of_file(one)).collect();
        let of_file = running.iter().find(|(_, one)| is_of_file(one));
        let mut program = of_file.map(|(program, _)| *program);
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

    fn fill(&self, site: &Site<'_>, plan: &mut Plan) -> Result<()> {
        let (name, service) = container(site, plan)?;
        let container =
            Container { name: &name, service: &service, links: std::cell::RefCell::default() };
        let package = Package { site, container: Some(container) };
        for needed in [CONFIG, DATA] {
            package.place(Path::new(needed)).map_err(|reason| {
                site.wrong(format!("cannot back up container {name}: {reason}"))
            })?;
        }
        plan.volumes = service.volumes();
        plan.product = product(&package, &service, plan);
        package.fill(plan)?;
        // User names are valid only in the container.
        let accounts = match site.is_offline {
            true => None,
            false => Accounts::of(&site.settings.docker, &name, site.progress)?,
        };
        for part in &mut plan.parts {
            let owner = part.owner.take();
            part.owner = owner.zip(accounts.as_ref()).and_then(|(name, all)| all.numbers(&name));
        }
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
    let found = official(compose);
    let by_image = found.iter().find(|(_, service)| edition(service).is_some());
    by_image.or(found.first()).copied()
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

/// Returns the running containers with a GitLab, each with the program that runs it. Programs are
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

/// Returns the name of the container, with its volumes and environment. Adds a part with the files
/// that create it.
fn container(site: &Site<'_>, plan: &mut Plan) -> Result<(String, Service)> {
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

/// Returns a running container, and adds its compose files to the plan.
fn of_running(site: &Site<'_>, running: Running, plan: &mut Plan) -> (String, Service) {
    let files: Vec<PathBuf> = running.compose.iter().map(|file| site.at(file)).collect();
    let files: Vec<PathBuf> = files.into_iter().filter(|file| file.exists()).collect();
    match files.first() {
        Some(first) => {
            let about = "the compose file of the container";
            let part = plan.takes("compose", about, first.clone());
            part.paths.extend(files.iter().skip(1).cloned());
            let env = first.with_file_name(".env");
            part.paths.extend(env.exists().then_some(env));
        }
        None => plan.notes.push(format!(
            "no compose file of container {} is known, so the backup lacks the command that \
             created the container; keep that command, or set parts.compose.path",
            running.name
        )),
    }
    (running.name, running.service)
}

/// Returns the container of a compose service. Adds volumes that only the container itself knows.
fn of_compose(site: &Site<'_>, plan: &mut Plan) -> Result<(String, Service)> {
    let settings = site.settings;
    let surroundings = Surroundings {
        root: &settings.root,
        volumes: &volumes_dir(site, plan),
        project: settings.project.as_deref(),
    };
    let compose = Compose::read(&find::chosen(site, SOUGHT)?, surroundings)?;
    plan.notes.extend(compose.notes.iter().cloned());
    configuration(&compose, plan);
    let path = compose.path.clone();
    plan.notes.extend(other_services(&compose));
    let Some((name, service)) = chosen(&compose) else {
        let failed = compose.services.values().find_map(|service| service.as_ref().err());
        return Err(match failed.map(ToString::to_string) {
            Some(reason) => Error::Malformed { path, reason },
            None => site.wrong(format!(
                "{} has no service with an image {}; is it the right compose file?",
                path.display(),
                SOUGHT.image
            )),
        });
    };
    let containers = Containers { site, compose: &compose };
    let container = containers.name_of(name, service, plan)?;
    let mut mounts = service.mounts.clone();
    // Adds volumes without a name, and volumes with a different name in compose.
    match running::one(&settings.docker, &container, &settings.root, site.progress) {
        Ok(Some(running)) => {
            plan.notes.extend(running::add_mounts(&mut mounts, running.service.mounts));
        }
        Ok(None) => {}
        Err(error) if error.is_interrupted() => return Err(error),
        Err(error) => plan.notes.push(format!(
            "cannot list volumes of {container}: {error}; check that the container runs"
        )),
    }
    let service = Service {
        image: service.image.clone(),
        environment: service.environment.clone(),
        mounts,
        ..Service::default()
    };
    Ok((container, service))
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
        assert!(plan.left_out.iter().any(|left| left.path == hidden), "{:?}", plan.left_out);
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
        let (_root, plan) = plan_of(&[("srv/forge/compose.yaml", &compose)], "docker = ['false']");
        let error = plan.expect_err("is refused").to_string();
        assert!(error.contains("/var/opt/gitlab of the container is not in a volume"), "{error}");
        let (_root, plan) = plan_of(&[], "docker = ['false']");
        let error = plan.expect_err("is refused").to_string();
        assert!(error.contains("no compose file with an image gitlab/gitlab-ce"), "{error}");
        let truncated = &COMPOSE[..COMPOSE.len() - 60];
        let (_root, plan) = plan_of(&[("srv/forge/compose.yaml", truncated)], "docker = ['false']");
        assert!(plan.is_ok(), "its volumes are whole");
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
