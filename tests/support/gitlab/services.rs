//! The services that runit supervises.

use super::repositories::Repository;
use super::{Builder, git};
use crate::support::accounts::Account;
use crate::support::runit::{Runit, write_service};
use std::fmt::Write;
use std::path::Path;

/// Starts the services and waits until they run.
pub fn start(builder: &Builder, root: &Path, repositories: &[Repository]) -> Runit {
    let gitlab = root.join("opt/gitlab");
    let service = gitlab.join("service");
    let waits = "#!/bin/sh\nexec sleep infinity\n";
    // These only appear as services; their servers belong to the tests.
    let mut scripts = vec![("gitaly", waits), ("postgresql", waits), ("redis", waits)];
    if builder.writers {
        scripts.push((builder.web, include_str!("puma")));
        scripts.push(("sidekiq", include_str!("sidekiq")));
    } else {
        scripts.extend([(builder.web, waits), ("sidekiq", waits)]);
    }
    if builder.mattermost {
        scripts.push(("mattermost", waits));
    }
    std::fs::create_dir_all(&service).expect("a directory");
    std::fs::create_dir_all(gitlab.join("init")).expect("a directory");
    let projects = list_of_projects(repositories);
    for (name, script) in scripts {
        let dir = gitlab.join("sv").join(name);
        let script = script.replace("{{root}}", root.to_str().expect("a readable root"));
        super::layout::directory(&dir, Account::root(), 0o755);
        super::layout::file(&dir.join("projects"), git(), 0o644, &projects);
        super::layout::file(&dir.join("work"), Account::root(), 0o755, script);
        let user = if name == "mattermost" { name } else { "git" };
        let run = format!("#!/bin/sh\nexec 2>&1\nexec chpst -u {user} {}/work\n", dir.display());
        write_service(&dir, &run);
        super::layout::link(&dir, &service.join(name));
        // An init script is sv under the name of the service.
        super::layout::link(Path::new("/usr/bin/sv"), &gitlab.join("init").join(name));
    }
    let services = Runit::start(&service, &root.join("var/log/gitlab/runsvdir"));
    services.wait_until_up();
    services
}

/// Returns id and directory of every project's repository, one per line.
pub fn list_of_projects(repositories: &[Repository]) -> String {
    let mut list = String::new();
    for repository in repositories {
        if let Some(project) = repository.project {
            writeln!(list, "{project} {}", repository.dir.display()).expect("writes to a string");
        }
    }
    list
}
