//! A GitLab in a container of its official image.

use crate::support::gitlab::{self, Builder};
use crate::support::gitlab_container::{COMPOSE, GitlabContainer, NAME};
use crate::support::instance::{backup, configured, lines, load_databases, summary};
use crate::support::sandbox::{Run, Sandbox, need_root};
use serde_json::Value;

fn configure(sandbox: &Sandbox, gitlab: &GitlabContainer, more: &str) {
    let root = gitlab.root();
    let text = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n[instances.forge]\nkind = 'gitlab-container'\n\
         root = '{}'\ndocker = ['{}']\n{more}\n",
        sandbox.text("state"),
        sandbox.text("store"),
        root.display(),
        root.join("docker").display(),
    );
    sandbox.write("forgekeep.toml", text);
}

#[test]
fn an_official_container_is_restored() {
    need_root();
    let gitlab = GitlabContainer::start(Builder::new().mattermost());
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let checked = configured(&sandbox, ["config", "check"]).run().ok();
    for words in [NAME, "17.8.2 ce", "srv/gitlab/data/git-data/repositories", "mnt/disk"] {
        assert!(checked.stdout.contains(words), "{words}: {}", checked.all_output());
    }
    assert!(checked.stdout.contains("run as gitlab-psql"), "{}", checked.all_output());
    // The keys are tried, as for the package.
    let asked = "the databases contain no encrypted value in a known format";
    assert!(checked.stdout.contains(asked), "{}", checked.all_output());
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
    assert_eq!(summary(&all)["databases"], 3, "{all:?}");
    // Mattermost's environment, which the package sets, stays in the container.
    for check in lines(&all, "check").iter().filter(|check| check["name"] != "single-sign-on") {
        assert_eq!(check["verdict"], "ok", "{check}");
    }
    let asked = gitlab.asked();
    for words in [
        "--user gitlab-psql forge-gitlab-1 /opt/gitlab/embedded/bin/pg_dump",
        "/opt/gitlab/embedded/bin/redis-cli -s /var/opt/gitlab/redis/redis.socket",
    ] {
        assert!(asked.contains(words), "{words}: {asked}");
    }

    let scratch = gitlab::short_dir();
    let drill = ["drill", "forge", "--whole", "--json", "--scratch"];
    let drilled = configured(&sandbox, drill).args([scratch.path()]).run().ok().json();
    let names: Vec<_> =
        lines(&drilled, "check").iter().map(|check| check["name"].clone()).collect();
    for name in ["secrets", "files", "single-sign-on"] {
        assert!(names.iter().any(|known| known == name), "{name}: {drilled:?}");
    }

    sandbox.restore("latest", "restored");
    let restored = sandbox.path("restored");
    let root = restored.join(gitlab.root().strip_prefix("/").expect("absolute"));
    for path in [
        COMPOSE,
        "srv/forge/mail.env",
        "srv/gitlab/config/gitlab-secrets.json",
        "srv/gitlab/data/redis/dump.rdb",
        "srv/gitlab/data/gitlab-rails/etc/gitlab.yml",
    ] {
        assert!(root.join(path).exists(), "{path}");
    }
    assert!(!root.join("srv/gitlab/data/postgresql/data").exists());
    assert!(!root.join("srv/gitlab/logs").exists());
    let text = std::fs::read(restored.join(".forgekeep/instance.json")).expect("manifest");
    let manifest: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(manifest["product"]["image"], "gitlab/gitlab-ce:17.8.2-ce.0");
    assert!(manifest["services"].to_string().contains("sidekiq"), "{}", manifest["services"]);
    // As the container would see it.
    for (host, seen) in [("srv/gitlab/data", "var/opt/gitlab"), ("mnt/disk", "mnt/storage2")] {
        std::fs::create_dir_all(root.join(seen).parent().expect("below")).expect("directories");
        std::os::unix::fs::symlink(root.join(host), root.join(seen)).expect("links");
    }
    assert!(gitlab::fsck_all(&root) >= 5);
    let postgres = load_databases(&sandbox, &restored);
    assert!(gitlab::assert_rows_have_files(&postgres, &root) > 0);
}

#[test]
fn uploads_in_a_volume_of_their_own_are_found_through_the_link_in_the_container() {
    need_root();
    let gitlab = GitlabContainer::start(Builder::new());
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let (old, new) = (
        gitlab.root().join("srv/gitlab/data/gitlab-rails/uploads"),
        gitlab.root().join("mnt/disk/uploads"),
    );
    // The administrator copied the files and left the old ones, which get no new ones.
    sandbox.tool("cp").args(["-a".as_ref(), old.as_path(), new.as_path()]).run().ok();
    std::fs::remove_dir_all(&old).expect("removes");
    std::fs::create_dir(&old).expect("a directory");
    std::fs::write(old.join("stale"), "").expect("writes");
    let public = gitlab.root().join("opt/gitlab/embedded/service/gitlab-rails/public/uploads");
    std::fs::remove_file(&public).expect("removes");
    std::os::unix::fs::symlink("/mnt/storage2/uploads", &public).expect("links");
    let checked = configured(&sandbox, ["config", "check"]).run().ok();
    assert!(checked.stdout.contains("mnt/disk/uploads"), "{}", checked.all_output());
    let all = backup(&sandbox).run().ok().json();
    let files = lines(&all, "check").into_iter().find(|check| check["name"] == "files");
    assert_eq!(files.expect("a check")["verdict"], "ok");
    // Without an answer, the settings tell.
    let rb = gitlab.root().join("srv/gitlab/config/gitlab.rb");
    let text = std::fs::read_to_string(&rb).expect("reads");
    let set = "gitlab_rails['uploads_directory'] = \"/mnt/storage2/uploads\" # moved\n";
    std::fs::write(&rb, text + set).expect("writes");
    let offline = configured(&sandbox, ["config", "check", "--offline"]).run();
    assert!(offline.stdout.contains("mnt/disk/uploads"), "{}", offline.all_output());
}

#[test]
fn the_environment_of_mattermost_in_the_container_counts() {
    need_root();
    let gitlab = GitlabContainer::start(Builder::new().mattermost());
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let variable = |name: &str, value: &str| {
        let dir = gitlab.root().join("opt/gitlab/etc/mattermost/env");
        std::fs::write(dir.join(name), value).expect("writes");
    };
    variable("MM_FILESETTINGS_DRIVERNAME", "amazons3");
    let check = || configured(&sandbox, ["config", "check"]).run();
    let checked = check().ok();
    let words = "uploaded files are in an object store";
    assert!(checked.all_output().contains(words), "{}", checked.all_output());
    variable("MM_FILESETTINGS_DRIVERNAME", "local");
    variable("MM_SQLSETTINGS_DATASOURCE", "postgres://u:hush@db.example.com:5432/mm");
    let printed = check().all_output();
    assert!(printed.contains("db.example.com") && !printed.contains("hush"), "{printed}");
    // A container that does not run is named.
    std::fs::write(gitlab.root().join("stopped"), "").expect("writes");
    let printed = check().all_output();
    assert!(printed.contains("environment is inside the container and is not read"), "{printed}");
}

#[test]
fn maintenance_stops_services_but_not_the_container() {
    need_root();
    let gitlab = GitlabContainer::start(Builder::new());
    let sandbox = Sandbox::new();
    // Without its compose file, the container itself says where its volumes are.
    std::fs::remove_file(gitlab.root().join(COMPOSE)).expect("removes");
    let more = "mode = 'maintenance'\nchecks = { sample = 'all' }";
    configure(&sandbox, &gitlab, more);
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
    assert!(summary(&all)["seconds_down"].as_f64().is_some_and(|down| down > 0.0), "{all:?}");
    let asked = gitlab.asked();
    let at = |words: &str| asked.find(words).unwrap_or_else(|| panic!("{words}: {asked}"));
    for service in ["puma", "sidekiq"] {
        let ctl = format!("exec {NAME} /opt/gitlab/bin/gitlab-ctl");
        assert!(at(&format!("{ctl} stop {service}")) < at(&format!("{ctl} start {service}")));
        assert!(gitlab.inside.services.is_up(service), "{service}");
    }
    assert!(!asked.lines().any(|line| line.starts_with("stop ")), "{asked}");
    let notes: Vec<_> = all.iter().filter_map(|line| line["message"].as_str()).collect();
    assert!(notes.iter().any(|note| note.contains("no compose file")), "{notes:?}");

    configure(&sandbox, &gitlab, &format!("container = '{NAME}'"));
    configured(&sandbox, ["config", "check"]).run().ok();
    configure(&sandbox, &gitlab, "container = 'other'");
    configured(&sandbox, ["config", "check"]).run().fails(1, &["has no container other"]);
    // One that does not run says so.
    std::fs::write(gitlab.root().join("stopped"), "").expect("writes");
    configure(&sandbox, &gitlab, "postgres.wait = '1s'");
    backup(&sandbox).run().fails(1, &["is not running"]);
}

#[test]
fn the_documented_commands_restore_the_databases() {
    need_root();
    let gitlab = GitlabContainer::start(Builder::new());
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let before = gitlab.inside.written();
    backup(&sandbox).run().ok();
    let docker = gitlab.root().join("docker");
    let ctl = |verb: &[&str]| {
        let run = Run::limited(&docker).args(["exec", NAME, "/opt/gitlab/bin/gitlab-ctl"]);
        run.args(verb).run();
    };
    ctl(&["stop"]);
    let client = |program: &str, arguments: &[&str]| {
        let run = Run::limited(&docker).args(["exec", "-i", "--user", "gitlab-psql", NAME]);
        let run = run.args([format!("/opt/gitlab/embedded/bin/{program}")]);
        let run = run.args(["-h", "/var/opt/gitlab/postgresql", "-U", "gitlab-psql"]);
        run.args(arguments)
    };
    sandbox.restore("latest", "restored");
    let dir = sandbox.path("restored/.forgekeep/databases");
    let read = |name: &str| std::fs::read(dir.join(name)).expect("is there");
    // Roles that exist are named, and no more.
    client("psql", &["-d", "postgres"]).input(read("globals.sql")).run().ok();
    for name in [gitlab::database::MAIN, gitlab::database::CI] {
        let drop = format!("drop database if exists \"{name}\"");
        client("psql", &["-d", "postgres", "-c", &drop]).run().ok();
        let load = ["--create", "--exit-on-error", "-d", "postgres"];
        client("pg_restore", &load).input(read(&format!("{name}.dump"))).run().ok();
        client("psql", &["-d", name, "-c", "analyze"]).run().ok();
        let owner =
            "select pg_get_userbyid(datdba) from pg_database where datname = current_database()";
        assert_eq!(gitlab.inside.postgres.query(name, owner), "gitlab");
    }
    let after = gitlab.inside.written();
    assert!(after.iter().zip(before).all(|(after, before)| *after >= before), "{after:?}");
    ctl(&["start"]);
    gitlab.inside.services.wait_until_up();
    let looked = configured(&sandbox, ["inspect", "--instance", "forge"]).run();
    assert!(looked.stdout.contains("all are present"), "{}", looked.all_output());
}

#[test]
fn an_official_image_is_found_in_compose_files() {
    let sandbox = Sandbox::new();
    let path = "root/srv/gitlab/docker-compose.yml";
    sandbox.write(path, "services:\n  web:\n    image: 'gitlab/gitlab-ee:latest'\n    volumes: ['./config:/etc/gitlab', './data:/var/opt/gitlab']\n");
    let found = sandbox.run(["detect", "--root", &sandbox.text("root")]).ok();
    assert!(found.stdout.contains("kind = \"gitlab-container\""), "{}", found.all_output());
    assert!(!found.stdout.contains("docker-gitlab"), "{}", found.all_output());
    assert!(found.stdout.contains(&sandbox.text(path)), "{}", found.all_output());
    for words in ["Not covered", "Helm chart", "Praefect", "Geo", "object store"] {
        assert!(found.stdout.contains(words), "{words}: {}", found.all_output());
    }
    // The image comes from a variable, or is built; the environment file sets the variable.
    for (image, env) in [
        ("image: ${GITLAB_IMAGE}", "GITLAB_IMAGE=gitlab/gitlab-ce:17.8.2-ce.0\n"),
        ("image: gitlab/gitlab-${EDITION:-ce}:17", ""),
        ("image: \"$REGISTRY/gitlab-ee\"", "REGISTRY=registry.example.org/gitlab\n"),
        ("build: .", ""),
    ] {
        let volumes = "volumes: ['./config:/etc/gitlab', './data:/var/opt/gitlab']";
        let text = format!("services:\n  web:\n    {image}\n    {volumes}\n");
        sandbox.write("variable/srv/gitlab/compose.yaml", text);
        sandbox.write("variable/srv/gitlab/.env", env);
        let found = sandbox.run(["detect", "--root", &sandbox.text("variable")]).ok();
        let words = "kind = \"gitlab-container\"";
        assert!(found.stdout.contains(words), "{image}: {}", found.all_output());
    }
    sandbox
        .write("forgekeep.toml", format!("state = '{}'\n{}", sandbox.text("state"), found.stdout));
    let checked = configured(&sandbox, ["config", "check", "--offline"]).run().ends_with(3);
    assert!(checked.stdout.contains("root/srv/gitlab/data"), "{}", checked.all_output());
    assert!(checked.stdout.contains("MISSING"), "{}", checked.all_output());
    // Without docker, nothing shows whether the container has a volume of its own.
    sandbox.write(
        path,
        "services:\n  web:\n    image: gitlab/gitlab-ee\n    volumes: ['./config:/etc/gitlab']\n",
    );
    let checked = configured(&sandbox, ["config", "check", "--offline"]).run();
    checked.fails(1, &["the compose file has no volume at /var/opt/gitlab"]);
}

#[test]
fn a_running_container_is_found_without_a_compose_file() {
    need_root();
    let sandbox = Sandbox::new();
    let answer = "[{\"Name\": \"git\", \"Config\": {\"Image\": \"docker.io/gitlab/gitlab-ce:17.8.2-ce.0\"}, \
                  \"Mounts\": []}]";
    sandbox.write("answer", answer);
    let stub = "#!/bin/sh\ncase $1 in ps) echo 0123abcd ;; inspect) cat ANSWER ;; esac\n";
    sandbox.write("stub", stub.replace("ANSWER", &sandbox.text("answer")));
    for (program, more) in [("docker", ""), ("podman", "docker = [\"podman\"]\n")] {
        // Where a login of root has its programs.
        let script = "mount -t tmpfs none /usr/local/sbin && install \"$1\" \"/usr/local/sbin/$2\" && \
                      exec \"$3\" detect";
        let found = Run::program("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .args([sandbox.text("stub"), program.into(), env!("CARGO_BIN_EXE_forgekeep").into()])
            .run()
            .ok();
        for words in ["kind = \"gitlab-container\"", "container = \"git\"\n", more] {
            assert!(found.stdout.contains(words), "{words}: {}", found.all_output());
        }
        let shown = format!("found container git of {program}");
        assert!(found.stdout.contains(&shown), "{}", found.all_output());
    }
    // Beside a compose file, a container that the file did not create is named.
    let compose = "services:\n  web:\n    image: gitlab/gitlab-ce\n";
    sandbox.write("srv/gitlab/compose.yaml", compose);
    let script = "mount -t tmpfs none /usr/local/sbin && install \"$1\" /usr/local/sbin/docker && \
                  mount --bind \"$2\" /srv && exec \"$3\" detect";
    let found = Run::program("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .args([sandbox.text("stub"), sandbox.text("srv"), env!("CARGO_BIN_EXE_forgekeep").into()])
        .run()
        .ok();
    for words in ["compose = \"/srv/gitlab/compose.yaml\"", "# Container git of docker runs GitLab"]
    {
        assert!(found.stdout.contains(words), "{words}: {}", found.all_output());
    }
}

#[test]
fn wrong_owners_in_the_volumes_of_a_container_are_reported() {
    need_root();
    let gitlab = GitlabContainer::start(Builder::new());
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge"]).run();
    let looked = inspect().ok();
    assert!(looked.stdout.contains("paths are correct"), "{}", looked.all_output());
    // As after `cp -r` by root.
    let sh = |command: &str| {
        Run::limited("sh").args(["-c", command]).within(gitlab.root()).run().ok();
    };
    sh("chown -R root:root srv/gitlab/data/git-data/repositories");
    sh("chmod 644 srv/gitlab/config/gitlab-secrets.json");
    sh("chmod 700 srv/gitlab/data/gitlab-rails/shared");
    let looked = inspect().ends_with(3);
    let locked = "gitlab-rails/shared belongs to ";
    assert!(looked.all_output().contains(locked), "{}", looked.all_output());
    for words in ["have a wrong owner or group", "others can read the keys", "chown -Rh "] {
        assert!(looked.all_output().contains(words), "{words}: {}", looked.all_output());
    }
}

#[test]
fn a_key_that_only_the_container_has_is_named() {
    need_root();
    let gitlab = GitlabContainer::start(Builder::new());
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let rb = gitlab.root().join("srv/gitlab/config/gitlab.rb");
    let text = std::fs::read_to_string(&rb).expect("reads");
    let text = text + "\nnginx['ssl_certificate_key'] = '/mnt/gitlab.key'\n";
    std::fs::write(&rb, text).expect("writes");
    let checked = configured(&sandbox, ["config", "check"]).run().ok();
    let words = "gitlab.rb names /mnt/gitlab.key, which is not copied";
    assert!(checked.stdout.contains(words), "{}", checked.all_output());
}
