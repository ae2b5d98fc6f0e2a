//! Places of directories.

use super::*;

/// Creates a project with these environment variables and volumes of GitLab.
fn project(environment: &[&str], volumes: &[&str]) -> Machine {
    let list =
        |lines: &[&str]| lines.iter().map(|line| format!("    - \"{line}\"\n")).collect::<String>();
    let machine = Machine::new();
    machine.write(
        "/srv/git/compose.yml",
        &format!(
            "services:\n  postgresql: {{image: 'postgres:14'}}\n  gitlab:\n    \
             image: sameersbn/gitlab:8.0.0\n    environment:\n    - A=a\n{}    volumes:\n{}",
            list(environment),
            list(volumes)
        ),
    );
    let keys = "K=1\n";
    machine.write("/srv/git/.env", keys);
    machine
}

/// Returns the missing parts, without the keys.
fn gaps(plan: &Plan) -> Vec<&str> {
    lacking(plan).into_iter().filter(|part| *part != "secrets").collect()
}

fn looked_for<'p>(plan: &'p Plan, part: &str) -> &'p str {
    let absent = plan.lacking.iter().find(|absent| absent.part == part);
    &absent.expect("it is missing").looked_for
}

fn is_noted(plan: &Plan, words: &str) -> bool {
    plan.notes.iter().any(|note| note.contains(words))
}

#[test]
fn mounts_inside_a_part_belong_to_the_part() {
    let machine = project(
        &[],
        &[
            "/srv/data:/home/git/data",
            "/mnt/hashed:/home/git/data/repositories/@hashed",
            "/mnt/one:/home/git/data/repositories/@hashed/6b",
            "/mnt/pools:/home/git/data/repositories/@pools",
            "/mnt/gone:/home/git/data/uploads/-/system",
            "/mnt/reg:/home/git/data/shared/registry/docker",
            "/mnt/cache:/home/git/data/shared/cache/big",
            "/mnt/own:/opt/own",
            "/home/git/data/shared/artifacts/tmp",
            "/mnt/lfs:/home/git/data/shared/lfs-objects",
            "/etc/localtime:/etc/localtime:ro",
        ],
    );
    for dir in ["hashed", "one", "pools", "reg", "cache", "own", "lfs"] {
        machine.make(&format!("/mnt/{dir}"));
    }
    let plan = machine.plan("/srv/git");
    let repositories = ["/srv/data/repositories", "/mnt/hashed", "/mnt/one"];
    assert_eq!(machine.paths(&plan, "repositories"), repositories);
    assert_eq!(machine.paths(&plan, "repositories-pools"), ["/mnt/pools"]);
    assert_eq!(machine.paths(&plan, "registry"), ["/srv/data/shared/registry", "/mnt/reg"]);
    assert_eq!(machine.paths(&plan, "lfs"), ["/mnt/lfs"]);
    assert!(plan.skipped.iter().any(|left| left.path == machine.path("/mnt/cache")));
    assert!(is_noted(&plan, "mounted at /opt/own, is unknown"), "{:?}", plan.notes);
    assert!(!is_noted(&plan, "localtime"), "{:?}", plan.notes);
    // A missing disk, and a volume that only Docker knows.
    assert_eq!(gaps(&plan), ["uploads", "artifacts"], "{:?}", plan.lacking);
    assert!(looked_for(&plan, "uploads").contains("/mnt/gone"));
    assert!(looked_for(&plan, "artifacts").contains("parts.artifacts.path"));

    let copy = View::machine(&plan.mounts);
    for (seen, expected) in [
        ("/srv/data/repositories/@hashed/ab/c.git", "/mnt/hashed/ab/c.git"),
        ("/srv/data/repositories/@hashed/6b/c.git", "/mnt/one/c.git"),
        ("/srv/data/repositories/@pools/a.git", "/mnt/pools/a.git"),
        ("/srv/data/repositories/@hashes", "/srv/data/repositories/@hashes"),
        ("/srv/data/shared/registry/docker", "/mnt/reg"),
    ] {
        assert_eq!(copy.place(&machine.path(seen)), machine.path(expected));
    }
    machine.write("/mnt/one/86.git/HEAD", "");
    let seen = machine.path("/srv/data/repositories/@hashed/6b/86.git/HEAD");
    assert!(copy.has(&seen).expect("looks"));
}

#[test]
fn directories_hidden_by_a_mount_are_skipped() {
    let machine =
        project(&[], &["/srv/data:/home/git/data", "/mnt/git:/home/git/data/repositories"]);
    machine.make("/srv/data/repositories").write("/srv/data/other/file", "").make("/mnt/git");
    let plan = machine.plan("/srv/git");
    assert_eq!(machine.paths(&plan, "repositories"), ["/mnt/git"]);
    let hidden = machine.path("/srv/data/repositories");
    let left = plan.skipped.iter().find(|left| left.path == hidden).expect("skipped");
    assert!(left.reason.contains("hidden"));
    assert!(is_noted(&plan, "/srv/data/other is unknown"), "{:?}", plan.notes);
}

#[test]
fn variables_move_data_directories() {
    let machine = project(
        &[
            "GITLAB_DATA_DIR=/data",
            "GITLAB_UPLOADS_STORAGE_PATH=/public/",
            "GITLAB_BACKUP_DIR=/data/archives",
            "GITLAB_SHARED_DIR=/shared",
            "GITLAB_LFS_OBJECTS_DIR=/lfs",
            "GITLAB_PACKAGES_DIR=shared/packages",
            "GITLAB_TERRAFORM_STATE_STORAGE_PATH=/state",
        ],
        &["/srv/data:/data", "/srv/public:/public", "/srv/shared:/shared", "/srv/lfs:/lfs"],
    );
    machine.write("/srv/data/tmp/VERSION", "8.0.1\n");
    let plan = machine.plan("/srv/git");
    let at = |part| machine.paths(&plan, part).join(" ");
    assert_eq!(at("repositories"), "/srv/data/repositories");
    assert_eq!(at("uploads"), "/srv/public/uploads");
    assert_eq!(at("artifacts"), "/srv/shared/artifacts");
    assert_eq!(at("packages"), "/srv/shared/packages");
    assert_eq!(at("lfs"), "/srv/lfs");
    assert_eq!(at("ssh-host-keys"), "/srv/data/ssh");
    assert!(plan.skipped.iter().any(|left| left.path == machine.path("/srv/data/archives")));
    assert!(is_noted(&plan, "8.0.1"), "{:?}", plan.notes);
    // A variable names it, but no volume holds it.
    assert_eq!(gaps(&plan), ["terraform-state"]);
    assert!(looked_for(&plan, "terraform-state").contains("not in a volume"));

    // The image's link for uploads leads to the default directory.
    let machine = project(
        &["GITLAB_DATA_DIR=/data"],
        &["/srv/data:/data", "/srv/old:/home/git/data", "/srv/git:/home/git/data/repositories"],
    );
    machine.make("/srv/git");
    let plan = machine.plan("/srv/git");
    assert_eq!(machine.paths(&plan, "uploads"), ["/srv/data/uploads", "/srv/old/uploads"]);
    let machine = project(
        &["GITLAB_UPLOADS_STORAGE_PATH=/home/git/gitlab/public"],
        &["/srv/data:/home/git/data"],
    );
    let plan = machine.plan("/srv/git");
    assert_eq!(machine.paths(&plan, "uploads"), ["/srv/data/uploads"]);
    assert_eq!(gaps(&plan), [""; 0]);
}

#[test]
fn data_beside_archives_is_copied() {
    let variable = "GITLAB_BACKUP_DIR=/home/git/data";
    let machine = project(&[variable], &["/srv/data:/home/git/data"]);
    machine.make("/srv/data/uploads").make("/srv/data/shared/.snapshots/1/snapshot");
    machine.write("/srv/data/1700000000_gitlab_backup.tar", "archive");
    let plan = machine.plan("/srv/git");
    let is_left = |path: &str| plan.skipped.iter().any(|left| left.path == machine.path(path));
    assert!(!is_left("/srv/data"), "{:?}", plan.skipped);
    assert!(is_left("/srv/data/1700000000_gitlab_backup.tar"), "{:?}", plan.skipped);
    assert!(is_left("/srv/data/shared/.snapshots"), "{:?}", plan.skipped);
    assert!(!is_noted(&plan, "unknown"), "{:?}", plan.notes);
}

#[test]
fn each_directory_may_be_a_separate_volume() {
    let machine = project(
        &[],
        &["./repositories:/home/git/data/repositories", "./uploads:/home/git/data/uploads"],
    );
    let plan = machine.plan("/srv/git");
    assert_eq!(machine.paths(&plan, "repositories"), ["/srv/git/repositories"]);
    assert_eq!(gaps(&plan), ["artifacts", "lfs", "ssh-host-keys"]);
}

#[test]
fn volume_subpaths_and_secret_directories_are_found() {
    let machine = project(&[], &["./secrets:/run/secrets:ro"]);
    let file = machine.path("/srv/git/compose.yml");
    let text = std::fs::read_to_string(&file).expect("reads");
    let volume = "    - {type: volume, source: all, target: /home/git/data, volume: {subpath: git}}\n\
                  volumes: {all: {name: all}}\n";
    std::fs::write(&file, text + volume).expect("writes");
    let keys = ["DB_KEY_BASE", "SECRET_KEY_BASE", "OTP_KEY_BASE"];
    let keys: String = keys.iter().map(|key| format!("GITLAB_SECRETS_{key}=k\n")).collect();
    machine.write("/srv/git/secrets/gitlab-secrets", &keys);
    let plan = machine.plan("/srv/git");
    let data = "/var/lib/docker/volumes/all/_data/git/uploads";
    assert_eq!(machine.paths(&plan, "uploads"), [data]);
    let file = "/srv/git/secrets/gitlab-secrets".to_owned();
    assert!(machine.paths(&plan, "secrets").contains(&file));
    assert_eq!(lacking(&plan), [""; 0], "{:?}", plan.lacking);
}

#[test]
fn data_in_object_stores_is_noted() {
    let machine = project(
        &[
            "GITLAB_LFS_OBJECT_STORE_ENABLED=True",
            "GITLAB_ARTIFACTS_OBJECT_STORE_ENABLED=true",
            "GITLAB_PACKAGES_OBJECT_STORE_ENABLED=false",
            "GITLAB_DEPENDENCY_PROXY_OBJECT_STORE_ENABLED=true",
        ],
        &["/srv/data:/home/git/data"],
    );
    machine.make("/srv/data/shared/lfs-objects");
    let plan = machine.plan("/srv/git");
    assert!(is_noted(&plan, "lfs: in an object store"), "{:?}", plan.notes);
    assert!(is_noted(&plan, "data/shared/lfs-objects are copied"), "{:?}", plan.notes);
    assert!(is_noted(&plan, "artifacts: in an object store"), "{:?}", plan.notes);
    assert!(is_noted(&plan, "dependency-proxy: in an object store"), "{:?}", plan.notes);
    assert!(!is_noted(&plan, "packages: "), "{:?}", plan.notes);
    let lfs = plan.parts.iter().find(|part| part.name == "lfs").expect("what is left");
    assert!(!lfs.is_required);
    assert!(plan.parts.iter().all(|part| part.name != "artifacts"));
}

#[test]
fn a_remote_volume_can_be_replaced_by_a_configured_path() {
    let machine = project(&[], &["nfs:/home/git/data"]);
    let text = std::fs::read_to_string(machine.path("/srv/git/compose.yml")).expect("reads");
    let volume =
        "volumes:\n  nfs:\n    driver_opts: {type: nfs, o: 'addr=nas,rw', device: ':/git'}\n";
    machine.write("/srv/git/compose.yml", &(text + volume));
    let plan = machine.plan("/srv/git");
    let missing = looked_for(&plan, "repositories");
    for words in ["nfs", ":/git", "parts.repositories.path"] {
        assert!(missing.contains(words), "{words}: {missing}");
    }
    // Any directory on this volume may contain data.
    assert!(lacking(&plan).contains(&"packages"), "{:?}", plan.lacking);

    let named = "docker = ['true']\nparts.repositories.path = '/mnt/nfs/repositories'";
    let plan = machine.try_plan("/srv/git", named).expect("a plan");
    assert!(!lacking(&plan).contains(&"repositories"));
    let paths = |part: &str| plan.parts.iter().find(|found| found.name == part).map(|p| &p.paths);
    assert_eq!(paths("repositories"), Some(&vec![PathBuf::from("/mnt/nfs/repositories")]));
    let pools = Some(vec![PathBuf::from("/mnt/nfs/repositories/@pools")]);
    assert_eq!(paths("repositories-pools").cloned(), pools);
    let part = plan.parts.iter().find(|part| part.name == "repositories").expect("a part");
    assert_eq!(part.phase, crate::plan::Phase::Repositories);
}

#[test]
fn images_of_every_registry_are_copied_or_named() {
    let data = "/srv/data:/home/git/data";
    // Another machine.
    let variables = ["GITLAB_REGISTRY_ENABLED=true", "GITLAB_REGISTRY_API_URL=http://images:5000/"];
    let machine = project(&variables, &[data]);
    let plan = machine.plan("/srv/git");
    assert!(
        is_noted(&plan, "registry: images:5000 has the images; not copied"),
        "{:?}",
        plan.notes
    );
    machine.make("/srv/data/shared/registry");
    let plan = machine.plan("/srv/git");
    assert!(is_noted(&plan, "files still in"), "{:?}", plan.notes);
    // Its directory is not one of GitLab's container either.
    let dir = "GITLAB_REGISTRY_DIR=/nowhere";
    let old = ["REGISTRY_ENABLED=true", "REGISTRY_HOST=images.example.org", dir];
    let plan = project(&old, &[data]).plan("/srv/git");
    assert!(is_noted(&plan, "registry: images.example.org has the images"), "{:?}", plan.notes);
    assert!(!gaps(&plan).contains(&"registry"), "{:?}", plan.lacking);
    let off = project(&["REGISTRY_HOST=images.example.org"], &[data]).plan("/srv/git");
    assert!(!is_noted(&off, "has the images"), "{:?}", off.notes);

    // A container of the project, whatever its image is called.
    let with = |more: &str| {
        let machine = project(&variables, &[data]);
        let file = machine.path("/srv/git/compose.yml");
        let text = std::fs::read_to_string(&file).expect("reads");
        machine.write(
            "/srv/git/compose.yml",
            &format!("{text}  images:\n    image: distribution:3\n{more}"),
        );
        machine
    };
    let machine = with("    volumes: ['/mnt/images:/var/lib/registry']\n");
    machine.make("/mnt/images");
    let plan = machine.plan("/srv/git");
    assert!(machine.paths(&plan, "registry").contains(&"/mnt/images".to_owned()), "{plan:?}");
    assert!(!is_noted(&plan, "has the images"), "{:?}", plan.notes);
    // Its own file may have moved them.
    let config = "    volumes: ['/srv/registry.yml:/etc/docker/registry/config.yml', '/mnt/images:/images']\n";
    let machine = with(config);
    machine.make("/mnt/images");
    machine.write("/srv/registry.yml", "storage:\n  filesystem:\n    rootdirectory: /images\n");
    let plan = machine.plan("/srv/git");
    assert!(machine.paths(&plan, "registry").contains(&"/mnt/images".to_owned()), "{plan:?}");
    machine.write("/srv/registry.yml", "storage:\n  s3:\n    bucket: b\n");
    let plan = machine.plan("/srv/git");
    assert!(is_noted(&plan, "registry: in an object store"), "{:?}", plan.notes);
    let plan = with("    environment: [REGISTRY_STORAGE=s3]\n").plan("/srv/git");
    assert!(is_noted(&plan, "registry: in an object store"), "{:?}", plan.notes);
    // Without a volume, they are lost with the container.
    let plan = with("").plan("/srv/git");
    assert!(
        looked_for(&plan, "registry").contains("lost with the container"),
        "{:?}",
        plan.lacking
    );
}
