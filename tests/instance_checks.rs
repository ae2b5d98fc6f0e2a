//! Checks of files and repositories that the databases name, in backups and inspections.

use crate::support::gitlab::{self, Builder, Gitlab, database, files};
use crate::support::instance::{backup, configure, configured, lines, summary};
use crate::support::sandbox::{Run, Sandbox, need_root};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Returns verdict, text and examples of the check of this name.
#[track_caller]
fn check(all: &[Value], name: &str) -> (String, String) {
    let found = lines(all, "check").into_iter().find(|check| check["name"] == name);
    let found = found.unwrap_or_else(|| panic!("{name}: {all:?}"));
    let verdict = found["verdict"].as_str().expect("a word").to_owned();
    let hint = found["hint"].as_str().unwrap_or_default();
    let text = found["text"].as_str().expect("a text");
    (verdict, format!("{text} {} {hint}", found["examples"]))
}

/// Returns the directory of a project's repository.
fn repository(gitlab: &Gitlab, project: u64) -> PathBuf {
    let mut all = gitlab.repositories.iter();
    all.find(|known| known.project == Some(project)).expect("is known").dir.clone()
}

fn remove(path: impl Into<PathBuf>) {
    let path = path.into();
    let is_dir = path.symlink_metadata().expect("is there").is_dir();
    let removed = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    removed.expect("removes");
}

#[test]
fn only_repositories_that_git_accepts_are_present() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let broken = repository(&gitlab, 1);
    remove(broken.join("HEAD"));
    remove(broken.join("objects"));
    // The instance matches the copy.
    let all = backup(&sandbox).run().ok().json();
    let (verdict, text) = check(&all, "repositories");
    assert_eq!(verdict, "warning", "{text}");
    assert!(text.starts_with("1 of 8 projects are missing or damaged in the copy"), "{text}");
    assert!(text.contains("has no readable HEAD"), "{text}");
    let looked = configured(&sandbox, ["inspect", "--instance", "forge"]).run().ends_with(3);
    assert!(looked.all_output().contains("has no readable HEAD"), "{}", looked.all_output());

    // A repository that lost all its references is lost, whatever else it has.
    let emptied = repository(&gitlab, 2);
    remove(emptied.join("refs"));
    remove(emptied.join("packed-refs"));
    std::fs::create_dir_all(emptied.join("refs/heads")).expect("directories");
    let gone = repository(&gitlab, 7);
    remove(&gone);
    for _ in 0..2 {
        // Also the second time: an incomplete snapshot does not count as the previous one.
        let all = backup(&sandbox).run().ends_with(3).json();
        assert_eq!(summary(&all)["is_complete"], false);
        let (verdict, text) = check(&all, "references");
        assert_eq!(verdict, "failed", "{text}");
        assert!(text.starts_with("2 repositories had references"), "{text}");
        assert!(text.contains("project2: /") && text.contains("project7: /"), "{text}");
    }
    let main = database::MAIN;
    gitlab.postgres.sql(main, "update projects set pending_delete = true where id in (2, 7)");
    let all = backup(&sandbox).run().ok().json();
    let (verdict, text) = check(&all, "references");
    assert_eq!(verdict, "ok", "{text}");
    assert!(text.contains("projects of 2 of them are being deleted"), "{text}");
    assert!(check(&all, "repositories").1.contains("1 without a repository are being deleted"));
}

#[test]
fn a_repository_without_packs_lacks_nothing_if_all_its_objects_are_loose() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    backup(&sandbox).run().ok();
    let dir = repository(&gitlab, 1);
    let sh = |script: &str| {
        let run = Run::limited("sh").args(["-ec", script]).within(&dir);
        run.env("ASIDE", sandbox.text("aside")).run().ok().stdout
    };
    sh("mkdir $ASIDE; mv objects/pack/* $ASIDE; git() { command git -c safe.directory='*' --git-dir=. \"$@\"; }
        for pack in $ASIDE/*.pack; do git unpack-objects -q <$pack; done; git fsck --full
        chown -R --reference=HEAD objects; find objects -type d -exec chmod 2750 {} +");
    let tree = sh("git -c safe.directory='*' --git-dir=. rev-parse main~2^{tree}");
    let (start, rest) = tree.trim().split_at(2);
    let tree = dir.join("objects").join(start).join(rest);
    let aside = sandbox.path("tree");
    std::fs::copy(&tree, &aside).expect("copies");
    remove(&tree);
    let all = backup(&sandbox).run().ends_with(3).json();
    let (verdict, text) = check(&all, "references");
    assert!(verdict == "failed" && text.contains("has no packs any more"), "{text}");
    std::fs::copy(&aside, &tree).expect("copies");
    backup(&sandbox).run().ok();
}

#[test]
fn a_missing_mount_gets_no_advice_to_restore_into_it() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    backup(&sandbox).run().ok();
    let storage = gitlab.path("mnt/storage2/repositories");
    std::fs::rename(&storage, storage.with_extension("away")).expect("moves");
    std::fs::create_dir(&storage).expect("a directory");
    let all = backup(&sandbox).run().ends_with(3).json();
    let (verdict, text) = check(&all, "repositories");
    assert!(verdict == "failed" && text.contains("check its mount"), "{text}");
    let checks = lines(&all, "check");
    assert!(checks.iter().all(|check| check["name"] != "references"), "{checks:?}");
}

#[test]
fn a_project_whose_import_failed_needs_no_repository() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let main = database::MAIN;
    gitlab.postgres.sql(
        main,
        "create table if not exists project_mirror_data (project_id bigint, status varchar); \
         create table if not exists project_statistics (project_id bigint, commit_count bigint); \
         insert into project_mirror_data (project_id, status) values (7, 'failed')",
    );
    remove(repository(&gitlab, 7));
    let (verdict, text) = check(&backup(&sandbox).run().ok().json(), "repositories");
    assert!(
        verdict == "ok" && text.contains("1 without a repository have a failed import"),
        "{text}"
    );
    // It had commits, so it had a repository.
    gitlab
        .postgres
        .sql(main, "insert into project_statistics (project_id, commit_count) values (7, 3)");
    let (verdict, text) = check(&backup(&sandbox).run().json(), "repositories");
    assert!(verdict != "ok", "{text}");
}

#[test]
fn a_project_that_is_being_imported_is_named_and_not_missing() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let sql = |sql: &str| gitlab.postgres.sql(database::MAIN, sql);
    // One with designs whose rows come before their repository, one without any repository, and one
    // that another instance sends.
    let designs = repository(&gitlab, 2).with_extension("design.git");
    remove(&designs);
    let half = repository(&gitlab, 7);
    remove(&half);
    let transferred = repository(&gitlab, 3);
    remove(transferred.join("HEAD"));
    let looked = backup(&sandbox).run().json();
    assert_ne!(check(&looked, "repositories").0, "ok");
    sql("create table project_mirror_data (project_id bigint, status varchar);
         create table project_statistics (project_id bigint, commit_count bigint);
         create table bulk_import_entities (project_id bigint, status smallint);
         create table if not exists design_management_designs (project_id bigint);
         insert into design_management_designs (project_id) values (2);
         insert into project_mirror_data (project_id, status) values (2, 'started'), (7, 'scheduled');
         insert into bulk_import_entities (project_id, status) values (3, 1)");
    let export = "var/opt/gitlab/gitlab-rails/shared/tmp/project_exports/half";
    std::fs::create_dir_all(gitlab.path(export)).expect("directories");
    let all = backup(&sandbox).run().ok().json();
    let (verdict, text) = check(&all, "repositories");
    assert_eq!(verdict, "ok", "{text}");
    let names = ["project2", "project3", "project7"].map(|name| text.find(name).expect(name));
    assert!(text.contains("first import has not finished: ") && names.is_sorted(), "{text}");
    let looked = configured(&sandbox, ["inspect", "--instance", "forge"]).run().ok();
    assert!(looked.all_output().contains("first import has not finished"), "{looked:?}");
    let projects = sandbox.run(["projects", "latest"]).ok().stdout;
    assert_eq!(projects.matches("(being imported)").count(), 3, "{projects}");
    sandbox.run(["ls", &format!("latest:{}", gitlab.path(export).display())]).ends_with(1);

    // A mirror has commits, and is updated with the same states.
    let again = repository(&gitlab, 6);
    remove_references(&again);
    sql("insert into project_mirror_data (project_id, status) values (6, 'started');
         insert into project_statistics (project_id, commit_count) values (6, 3), (7, 3)");
    let all = backup(&sandbox).run().ends_with(3).json();
    let (verdict, text) = check(&all, "references");
    assert!(verdict == "failed" && text.contains("project6"), "{text}");
    let (verdict, text) = check(&all, "repositories");
    assert!(verdict == "warning" && text.contains("1 of 8 projects are missing"), "{text}");

    // A second try of an import removes the repository of the first one.
    sql("delete from project_statistics");
    let all = backup(&sandbox).run().ok().json();
    let (verdict, text) = check(&all, "references");
    assert!(
        verdict == "ok" && text.contains("not finished: ") && text.contains("project6"),
        "{text}"
    );

    // Old versions have the state in the row of the project.
    sql("drop table project_mirror_data;
         alter table projects add import_status varchar;
         update projects set import_status = 'started' where id in (2, 6, 7)");
    backup(&sandbox).run().ok();
}

#[test]
fn an_inspection_without_its_store_warns() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let inspected = configured(&sandbox, ["inspect", "--instance", "forge"]);
    let inspected = inspected.args(["--store", &sandbox.text("gone")]).run().ok();
    assert!(inspected.stderr.contains("gone is missing or not mounted"), "{}", inspected.stderr);
}

#[test]
fn a_repository_that_was_moved_is_compared_with_its_earlier_place() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    backup(&sandbox).run().ok();
    // Each goes to another storage, first without its references.
    for (project, dir, storage) in [
        (8, "mnt/storage2/repositories", "storage2"),
        (6, "var/opt/gitlab/git-data/repositories", "default"),
    ] {
        let old = repository(&gitlab, project);
        let hashed = old.ancestors().nth(4).expect("a storage");
        let new = gitlab.path(dir).join(old.strip_prefix(hashed).expect("below it"));
        std::fs::create_dir_all(new.join("refs/heads")).expect("directories");
        std::fs::create_dir(new.join("objects")).expect("a directory");
        std::fs::copy(old.join("HEAD"), new.join("HEAD")).expect("copies");
        let sql = format!(
            "update projects set repository_storage = '{storage}' where id = {project};
             update project_repositories set shard_id = (select id from shards where name = '{storage}')
             where project_id = {project}"
        );
        gitlab.postgres.sql(database::MAIN, &sql);
        let all = backup(&sandbox).run().ends_with(3).json();
        let (verdict, text) = check(&all, "references");
        assert_eq!(verdict, "failed", "{text}");
        assert!(text.contains(&format!("project{project}: {}", new.display())), "{text}");
        // With its references it is complete, and its old place may go.
        remove(&new);
        std::fs::rename(&old, &new).expect("moves");
        backup(&sandbox).run().ok();
    }
}

#[test]
fn rows_that_only_follow_a_repository_do_not_say_where_it_is() {
    need_root();
    let gitlab = Builder::new().projects(5).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let sql = |sql: &str| gitlab.postgres.sql(database::MAIN, sql);
    // Left behind by a rename before the project had a path by its number.
    sql("update project_repositories set shard_id = 2, disk_path = 'old-group/project2' \
         where project_id = 2");
    let all = backup(&sandbox).run().ok().json();
    let (verdict, text) = check(&all, "repositories");
    assert_eq!(verdict, "ok", "{text}");
    assert!(text.contains("all are present") && text.contains("project2"), "{text}");
    let projects = sandbox.run(["projects", "latest"]).ok().stdout;
    assert!(!projects.contains("old-group"), "{projects}");
    // Left behind by a move that ended before the files came.
    let place = repository(&gitlab, 4);
    sql("update projects set repository_storage = 'storage2' where id = 4");
    let all = backup(&sandbox).run().ends_with(3).json();
    let (_, text) = check(&all, "repositories");
    assert!(text.contains(&format!("names {}, and one is there", place.display())), "{text}");
    assert!(text.contains("mnt/storage2/repositories/@hashed/4b"), "{text}");
}

/// Returns the only file below `objects/pack` with this extension.
fn pack_file(dir: &Path, extension: &str) -> PathBuf {
    let all = std::fs::read_dir(dir.join("objects/pack")).expect("lists");
    let mut all = all.map(|entry| entry.expect("an entry").path());
    all.find(|path| path.extension().is_some_and(|end| end == extension)).expect("is there")
}

/// Removes all references of a repository.
fn remove_references(dir: &Path) {
    remove(dir.join("refs"));
    if dir.join("packed-refs").exists() {
        remove(dir.join("packed-refs"));
    }
    std::fs::create_dir_all(dir.join("refs/heads")).expect("directories");
}

#[test]
fn damage_since_the_last_complete_snapshot_is_a_failure() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    backup(&sandbox).run().ok();
    let project = repository(&gitlab, 1);
    let fork = repository(&gitlab, 5);
    let pool = gitlab.repositories.iter().find_map(|known| known.pool.clone()).expect("a pool");
    let pool = fork.ancestors().nth(4).expect("a storage").join(pool);
    let wiki = project.with_extension("wiki.git");
    type Spoil = fn(&Path);
    let faults: &[(&Path, &str, Spoil)] = &[
        (&project, "has a truncated pack", |dir| {
            std::fs::write(pack_file(dir, "pack"), "").expect("writes");
        }),
        (&project, "lacks the index of a pack", |dir| remove(pack_file(dir, "idx"))),
        (&project, "has an unreadable config", |dir| {
            std::fs::write(dir.join("config"), "[core").expect("writes");
        }),
        (&project, "has a damaged reference", |dir| {
            std::fs::write(dir.join("refs/heads/new"), [0; 41]).expect("writes");
        }),
        (&project, "project1: ", remove_references),
        (&project, "lacks the commit of a branch", |dir| {
            // All that remains is the newest commit, as a loose object.
            let script = "head=$(git rev-parse HEAD) && mv objects/pack packs && mkdir objects/pack \
                          && cat packs/*.pack | git unpack-objects -q && rm -r packs && \
                          find objects -type f ! -path \"*/${head#??}\" -delete";
            let run =
                Run::program("sh").args(["-c", &format!("cd '{}' && {script}", dir.display())]);
            run.env("GIT_CONFIG_COUNT", "1")
                .env("GIT_CONFIG_KEY_0", "safe.directory")
                .env("GIT_CONFIG_VALUE_0", "*")
                .run()
                .ok();
        }),
        (&wiki, "project1 (wiki): ", |dir| remove(dir)),
        (&pool, "pool of ", remove_references),
        (&fork, "lacks the commit of a branch", |dir| {
            remove(dir.join("objects/info/alternates"));
        }),
    ];
    for (dir, words, spoil) in faults {
        let kept = gitlab.path("kept");
        Run::limited("cp").args(["-a".as_ref(), dir.as_os_str(), kept.as_os_str()]).run().ok();
        spoil(dir);
        let looked = configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
        let (verdict, text) = check(&looked.ends_with(3).json(), "references");
        assert!(verdict == "failed" && text.contains(words), "{words}: {verdict}: {text}");
        let outcome = backup(&sandbox).run().ends_with(3);
        let (verdict, text) = check(&outcome.json(), "references");
        assert!(verdict == "failed" && text.contains(words), "{words}: {verdict}: {text}");
        // Another copy would not find it.
        assert!(!outcome.all_output().contains("copying again"), "{}", outcome.all_output());
        if dir.exists() {
            remove(*dir);
        }
        std::fs::rename(&kept, dir).expect("moves back");
    }
    backup(&sandbox).run().ok();
}

#[test]
fn a_pool_without_objects_is_reported() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let pool = gitlab.repositories.iter().find_map(|known| known.pool.clone()).expect("a pool");
    let pool = repository(&gitlab, 5).ancestors().nth(4).expect("a storage").join(pool);
    for entry in std::fs::read_dir(pool.join("objects")).expect("lists") {
        remove(entry.expect("an entry").path());
    }
    let (verdict, text) = check(&backup(&sandbox).run().ends_with(3).json(), "pools");
    assert!(verdict == "failed" && text.contains("no objects"), "{text}");
    remove_references(&pool);
    let (verdict, text) = check(&backup(&sandbox).run().ends_with(3).json(), "pools");
    assert!(verdict == "failed" && text.contains("has no objects"), "{text}");
}

#[test]
fn objects_behind_a_link_are_missing_from_the_copy() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let objects = repository(&gitlab, 1).join("objects");
    std::fs::create_dir_all(gitlab.path("mnt/disk")).expect("directories");
    std::fs::rename(&objects, gitlab.path("mnt/disk/objects")).expect("moves");
    std::os::unix::fs::symlink("/mnt/disk/objects", &objects).expect("links");
    let looked = configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    assert_eq!(check(&looked.ok().json(), "repositories").0, "ok");
    let outcome = backup(&sandbox).run().ends_with(3);
    let (verdict, text) = check(&outcome.json(), "repositories");
    assert!(verdict == "failed" && text.contains("a place that is not in the copy"), "{text}");
    assert!(!outcome.all_output().contains("copying again"), "{}", outcome.all_output());
    // As a part, the target is copied.
    let more = format!(
        "checks = {{ sample = 'all' }}\nparts.disk = {{ path = '{}' }}",
        gitlab.path("mnt/disk").display()
    );
    configure(&sandbox, &gitlab, &more);
    let (verdict, text) = check(&backup(&sandbox).run().ok().json(), "repositories");
    assert_eq!(verdict, "ok", "{text}");
}

#[test]
fn objects_borrowed_from_outside_all_parts_are_missing_from_the_copy() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let known = gitlab.repositories.iter().find(|known| known.full_path == "group2/project1.wiki");
    let wiki = &known.expect("is known").dir;
    let outside = gitlab.path("mnt/base.git");
    std::fs::create_dir_all(gitlab.path("mnt")).expect("directories");
    std::fs::create_dir_all(outside.join("objects/pack")).expect("directories");
    sandbox.tool("cp").args(["-aT".as_ref(), wiki.as_path(), outside.as_path()]).run().ok();
    let info = wiki.join("objects/info");
    std::fs::create_dir_all(&info).expect("directories");
    let line = format!("{}\n", outside.join("objects").display());
    std::fs::write(info.join("alternates"), line).expect("writes");
    let words = "group2/project1 (wiki) borrows from";
    let looked = configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    let outcome = backup(&sandbox).run().ends_with(3);
    assert!(!outcome.all_output().contains("copying again"), "{}", outcome.all_output());
    for all in [looked.ends_with(3).json(), outcome.json()] {
        let (verdict, text) = check(&all, "pools");
        assert!(verdict == "failed" && text.contains(words), "{text}");
    }
    let checked = configured(&sandbox, ["config", "check"]).run().ends_with(3);
    assert!(checked.all_output().contains("borrow objects"), "{}", checked.all_output());
    // As a part, the lender is copied.
    let more =
        format!("checks = {{ sample = 'all' }}\nparts.base = {{ path = '{}' }}", outside.display());
    configure(&sandbox, &gitlab, &more);
    let (verdict, text) = check(&backup(&sandbox).run().ok().json(), "pools");
    assert_eq!(verdict, "ok", "{text}");
}

#[test]
fn a_storage_that_is_not_mounted_is_a_problem_of_the_configuration() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    backup(&sandbox).run().ok();
    let config_check = |more: &[&str]| configured(&sandbox, ["config", "check"]).args(more).run();
    config_check(&[]).ok();
    for (dir, words) in [
        ("git-data/repositories", "check its mount"),
        ("gitlab-rails/uploads", "directories have lost their files of snapshot"),
    ] {
        let dir = gitlab.path("var/opt/gitlab").join(dir);
        let away = dir.with_extension("away");
        std::fs::rename(&dir, &away).expect("moves");
        std::fs::create_dir(&dir).expect("a directory");
        let checked = config_check(&[]).ends_with(3);
        assert!(checked.all_output().contains(words), "{}", checked.all_output());
        let offline = config_check(&["--offline"]).ends_with(3);
        let words = "directories have lost their files of snapshot";
        assert!(offline.all_output().contains(words), "{}", offline.all_output());
        remove(&dir);
        std::fs::rename(&away, &dir).expect("moves back");
    }
    config_check(&[]).ok();
}

#[test]
fn every_kind_of_repository_is_checked() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let all = backup(&sandbox).run().ok().json();
    let others = check(&all, "other-repositories");
    assert_eq!(others.0, "ok");
    assert!(
        others.1.starts_with("checked 3 repositories of snippets and group wikis"),
        "{others:?}"
    );
    sandbox.restore("latest", "restored");
    let list = sandbox.read("restored/.forgekeep/repositories.jsonl");
    assert!(String::from_utf8(list).expect("text").contains("\"of\":\"wiki of group\""));
    for (name, of, words) in [
        ("snippets/1", "other-repositories", "snippet 1: "),
        ("groups/1.wiki", "other-repositories", "wiki of group 1: "),
        ("group3/project2.design", "repositories", "project2 (designs): "),
        ("group2/project1.wiki", "repositories", "project1 (wiki): "),
    ] {
        let mut known = gitlab.repositories.iter();
        let known = known.find(|known| known.full_path == name).expect("is known");
        let away = known.dir.with_extension("away");
        std::fs::rename(&known.dir, &away).expect("moves");
        std::fs::create_dir(&known.dir).expect("a directory");
        std::fs::copy(away.join("HEAD"), known.dir.join("HEAD")).expect("copies");
        let all = backup(&sandbox).run().ends_with(3).json();
        let (verdict, text) = check(&all, of);
        assert_ne!(verdict, "ok", "{name}: {text}");
        assert!(text.contains(words) && text.contains("has no objects"), "{name}: {text}");
        assert_eq!(check(&all, "references").0, "failed", "{name}");
        remove(&known.dir);
        std::fs::rename(&away, &known.dir).expect("moves back");
    }
}

#[test]
fn every_table_of_files_is_compared() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    let (verdict, text) = check(&inspect().ok().json(), "files");
    assert_eq!(verdict, "ok", "{text}");
    // GitLab has removed the files of these rows.
    gitlab.postgres.sql(
        database::MAIN,
        "alter table packages_package_files add status smallint not null default 0;
         create table packages_packages (id bigint, project_id bigint, status smallint);
         insert into packages_packages values (1000, 3, 4), (1001, 3, 0);
         insert into packages_package_files (package_id, project_id, size, file, file_name, file_store, status)
         values (1000, 3, 3, 'gone', 'gone', 1, 0), (1001, 3, 3, 'gone', 'gone', 1, 1);",
    );
    let (verdict, text) = check(&inspect().ok().json(), "files");
    assert_eq!(verdict, "ok", "{text}");
    let shared = gitlab.path("var/opt/gitlab/gitlab-rails/shared");
    for (dir, words) in [
        ("../uploads/-/system/namespace", "uploads row "),
        ("../uploads/-/system/personal_snippet", "uploads row "),
        ("external-diffs", "external-diffs row "),
        ("packages", "packages row "),
        ("terraform_state", "terraform-state row "),
        ("ci_secure_files", "ci-secure-files row "),
        ("pages", "pages row "),
        ("artifacts", "artifacts row "),
        ("lfs-objects", "lfs row "),
    ] {
        let (dir, away) = (shared.join(dir), gitlab.path("away"));
        std::fs::rename(&dir, &away).expect("moves");
        std::fs::create_dir(&dir).expect("a directory");
        let (verdict, text) = check(&inspect().ends_with(3).json(), "files");
        assert_ne!(verdict, "ok", "{dir:?}: {text}");
        assert!(text.contains(words), "{dir:?}: {text}");
        remove(&dir);
        std::fs::rename(&away, &dir).expect("moves back");
    }
}

#[test]
fn files_of_package_formats_are_compared() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    gitlab.postgres.sql(
        database::MAIN,
        "create table packages_nuget_symbols (id bigint, package_id bigint, size integer, file_store smallint,
           file text, object_storage_key text, status smallint default 0);
         insert into packages_nuget_symbols values (1, 7, 3, 1, 'a.pdb', 'aa/bb/aabb/packages/nuget/7/symbols/f', 0),
           (2, null, 3, 1, 'gone', 'aa/gone', 1), (3, 7, 3, 2, 'elsewhere', 'aa/elsewhere', 0);
         create table packages_rpm_repository_files (id bigint, project_id bigint, size integer, file_store integer,
           file text, file_name text, status smallint default 0);
         insert into packages_rpm_repository_files values (4, 3, 3, 1, 'x', 'repomd.xml', 0);
         create table packages_debian_project_distributions (id bigint, project_id bigint, file_store smallint,
           file text, signed_file text, signed_file_store smallint);
         insert into packages_debian_project_distributions values (5, 3, 1, 'Release', 'InRelease', 1), (6, 3, 1, null, null, 1);
         create table packages_debian_project_components (id bigint, distribution_id bigint);
         insert into packages_debian_project_components values (8, 5);
         create table packages_debian_project_component_files (id bigint, component_id bigint, size integer,
           file_store smallint, file text);
         insert into packages_debian_project_component_files values (9, 8, 3, 1, 'Packages');",
    );
    let packages = gitlab.path("var/opt/gitlab/gitlab-rails/shared/packages");
    // The hash of project 3.
    let project = "4e/07/4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce";
    let files = [
        "aa/bb/aabb/packages/nuget/7/symbols/f/a.pdb".to_owned(),
        format!("{project}/projects/3/rpm/repository_files/4/repomd.xml"),
        format!("{project}/debian_project_distribution/5/Release"),
        format!("{project}/debian_project_distribution/5/InRelease"),
        format!("{project}/debian_project_component_file/9/Packages"),
    ]
    .map(|name| packages.join(name));
    for file in &files {
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("makes");
        std::fs::write(file, "abc").expect("writes");
    }
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    let (verdict, text) = check(&inspect().json(), "files");
    assert_eq!(verdict, "ok", "{text}");
    for (file, id) in files.iter().zip([1, 4, 5, 5, 9]) {
        std::fs::remove_file(file).expect("removes");
        let (verdict, text) = check(&inspect().json(), "files");
        assert_ne!(verdict, "ok", "{file:?}: {text}");
        assert!(text.contains(&format!("packages row {id} of packages_")), "{text}");
        std::fs::write(file, "abc").expect("writes");
    }
}

#[test]
fn a_project_stored_by_name_is_complete() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    // As before hashed storage; and with a repository that uses it, and attachments that do not.
    let uploads = gitlab.path("var/opt/gitlab/gitlab-rails/uploads");
    for (project, version, path) in [(1, 0, "group2/project1"), (2, 1, "group3/project2")] {
        let main = database::MAIN;
        let query = format!("select path from uploads where id = {project}");
        let hashed = gitlab.postgres.query(main, query);
        let (dir, file) = hashed.trim().rsplit_once("/image.png").expect("a file");
        assert_eq!(file, "");
        let (_, secret) = dir.rsplit_once('/').expect("a secret");
        std::fs::create_dir_all(uploads.join(path)).expect("directories");
        std::fs::rename(uploads.join(dir), uploads.join(path).join(secret)).expect("moves");
        gitlab.postgres.sql(
            main,
            format!(
                "update uploads set path = '{secret}/image.png' where id = {project};
                 update projects set storage_version = {version} where id = {project};"
            ),
        );
        if version == 0 {
            let known = repository(&gitlab, project);
            let storage = known.ancestors().nth(4).expect("a storage").to_owned();
            let place = storage.join(format!("{path}.git"));
            std::fs::create_dir_all(place.parent().expect("a group")).expect("directories");
            std::fs::rename(&known, &place).expect("moves");
            let other = |end: &str| {
                PathBuf::from(format!("{}.{end}.git", known.with_extension("").display()))
            };
            let wiki = storage.join(format!("{path}.wiki.git"));
            std::fs::rename(other("wiki"), wiki).expect("moves");
            gitlab.postgres.sql(
                main,
                format!("update project_repositories set disk_path = '{path}' where project_id = {project}"),
            );
        }
    }
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(summary(&all)["is_complete"], true, "{all:?}");
    for check in lines(&all, "check") {
        assert_eq!(check["verdict"], "ok", "{check}");
    }
    let (_, text) = check(&all, "files");
    assert!(text.contains("all are present"), "{text}");
}

#[test]
fn tables_are_found_whatever_the_path_of_the_role_is() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    gitlab.postgres.sql(database::MAIN, "alter role \"gitlab-psql\" set search_path = pg_catalog");
    let all = backup(&sandbox).run().ok().json();
    let (verdict, text) = check(&all, "repositories");
    assert_eq!((verdict == "ok", text.contains("5 projects")), (true, true), "{text}");
}

#[test]
fn a_link_to_a_file_that_was_not_copied_is_named_as_such() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    let lfs = "var/opt/gitlab/gitlab-rails/shared/lfs-objects";
    let shell = format!(
        "file=$(find {lfs} -type f | head -1); mkdir mnt/disk; mv $file mnt/disk/object
         ln -sr mnt/disk/object $file
         mkdir -p var/opt/gitlab/gitlab-rails/uploads/many; cd var/opt/gitlab/gitlab-rails/uploads/many
         mkdir $(seq 400)"
    );
    Run::limited("sh").args(["-ec", &shell]).within(gitlab.root()).run().ok();
    // A path in the settings is copied alone.
    let path = gitlab.path(lfs);
    let more = format!("checks = {{ sample = 'all' }}\nparts.lfs.path = '{}'", path.display());
    configure(&sandbox, &gitlab, &more);
    let outcome = backup(&sandbox).run();
    let output = outcome.all_output();
    assert!(output.contains("is a link to a place that was not copied"), "{output}");
    assert!(!output.contains("has no such file"), "{output}");
    let limit = "uploads has more than 300 directories; links in the others";
    assert!(output.contains(limit), "{output}");
}

#[test]
fn truncated_diffs_are_told_from_empty_ones() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let dir = "var/opt/gitlab/gitlab-rails/shared/external-diffs/merge_request_diffs";
    let empty = |row: u64| {
        std::fs::write(gitlab.path(format!("{dir}/mr-{row}/diff-{row}")), "").expect("writes");
    };
    // A renamed file changes nothing.
    empty(1);
    gitlab.postgres.sql(
        database::MAIN,
        "update merge_request_diff_files set external_diff_offset = 0, external_diff_size = 0
             where merge_request_diff_id = 1;
         delete from merge_request_diff_files where merge_request_diff_id = 3",
    );
    let all = backup(&sandbox).run().ok().json();
    let (verdict, text) = check(&all, "files");
    assert_eq!(verdict, "ok", "{text}");
    empty(2);
    let all = backup(&sandbox).run().ok().json();
    let (verdict, text) = check(&all, "files");
    assert_eq!(verdict, "warning", "{text}");
    assert!(text.contains("external-diffs row 2"), "{text}");
}

#[test]
fn artifacts_of_old_versions_are_compared() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    gitlab.postgres.sql(
        database::CI,
        "insert into ci_job_artifacts (project_id, job_id, file_type, size, file, file_location, created_at)
         values (1, 70, 1, 3, 'a.zip', 1, '2017-10-31 23:30-02');
         create table ci_builds (id bigint, project_id bigint, artifacts_file text,
             artifacts_file_store int, created_at timestamp);
         insert into ci_builds values (71, 2, 'b.zip', null, '2016-02-01'), (72, 2, null, null, '2016-02-01'),
             (73, 2, '', 1, '2016-02-01'), (74, 2, 'c.zip', 2, '2016-02-01')",
    );
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    let (verdict, text) = check(&inspect().ends_with(3).json(), "files");
    assert_eq!(verdict, "warning", "{text}");
    let artifacts = gitlab.path("var/opt/gitlab/gitlab-rails/shared/artifacts");
    for place in ["2017_11/1/70/a.zip", "2016_02/2/71/b.zip"] {
        assert!(text.contains(place), "{place}: {text}");
        files::below(&artifacts, place, gitlab::git(), 0o644, "abc");
    }
    let (verdict, text) = check(&inspect().ok().json(), "files");
    assert!(verdict == "ok" && text.contains("all are present"), "{text}");
}

#[test]
fn terraform_states_without_versions_are_compared() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    gitlab.postgres.sql(
        database::MAIN,
        "alter table terraform_states add versioning_enabled boolean not null default true,
             add file text, add file_store int;
         insert into terraform_states (project_id, name, uuid, versioning_enabled, file)
         values (2, 'row', repeat('8', 32), false, null), (3, 'own', repeat('9', 32), false, 'n.tfstate');
         insert into terraform_state_versions (terraform_state_id, version, file)
         select id, 1, uuid || '.tfstate' from terraform_states where name = 'row'",
    );
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    let (verdict, text) = check(&inspect().ends_with(3).json(), "files");
    assert_eq!(verdict, "failed", "{text}");
    let states = gitlab.path("var/opt/gitlab/gitlab-rails/shared/terraform_state");
    for place in [format!("2/{}.tfstate", "8".repeat(32)), "3/n.tfstate".into()] {
        assert!(text.contains(&place), "{place}: {text}");
        files::below(&states, &place, gitlab::git(), 0o644, "abc");
    }
    let (verdict, text) = check(&inspect().ok().json(), "files");
    assert!(verdict == "ok" && text.contains("all are present"), "{text}");
}

#[test]
fn rows_of_a_table_that_another_database_owns_do_not_count() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let sql = |database: &str, text: &str| gitlab.postgres.sql(database, text);
    sql("postgres", "create database before template gitlabhq_production");
    let uploads = "insert into uploads (size, path, model_id, model_type, uploader)
        select 3, 'uploads/-/system/user/avatar/' || n || '/old.png', n, 'User', 'AvatarUploader'
        from generate_series(50, 99) n";
    let artifacts =
        "insert into ci_job_artifacts (project_id, job_id, file_type, size, file, file_location)
        select 1, n, 1, 3, 'artifacts.zip', 2 from generate_series(1, 30) n";
    let projects = "insert into namespaces (name, path) values ('o', 'o');
        insert into projects (name, path, namespace_id) select 'old' || n, 'old' || n, 1 from generate_series(50, 70) n";
    sql(database::CI, uploads);
    sql(database::CI, projects);
    sql(database::MAIN, artifacts);
    sql("before", uploads);
    sql("before", artifacts);
    sql("before", projects);
    for all in [
        backup(&sandbox).run().ok().json(),
        configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run().ok().json(),
    ] {
        for check in lines(&all, "check") {
            assert_eq!(check["verdict"], "ok", "{check}");
        }
        assert!(check(&all, "repositories").1.starts_with("checked 8 projects"), "{all:?}");
    }
    // GitLab blocks writes to a table that it has moved, whatever its name.
    sql(
        database::MAIN,
        "create function gitlab_schema_prevent_write() returns trigger language plpgsql
             as $$ begin raise exception 'blocked'; end $$;
         create trigger gitlab_schema_write_trigger_for_lfs_objects before insert or update or delete
             or truncate on lfs_objects for each statement execute function gitlab_schema_prevent_write();",
    );
    backup(&sandbox).run().ok();
    sql(
        database::CI,
        "insert into lfs_objects (oid, size, file) values (repeat('ab', 32), 3, 'gone')",
    );
    let all = backup(&sandbox).run().ends_with(3).json();
    let text = check(&all, "files").1;
    assert!(text.contains("all 1 rows of lfs are missing"), "{text}");
}

#[test]
fn projects_of_a_group_that_is_being_deleted_may_lose_repositories() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    backup(&sandbox).run().ok();
    // Its path is unknown.
    gitlab
        .postgres
        .sql(database::MAIN, "delete from routes where source_type = 'Project' and source_id = 1");
    remove_references(&repository(&gitlab, 1));
    let text = check(&backup(&sandbox).run().ends_with(3).json(), "references").1;
    assert!(text.contains("project 1 without a route: /"), "{text}");
    // An inspection also reports the owners of the new directories.
    let inspect = || {
        let outcome = configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
        check(&outcome.ends_with(3).json(), "references")
    };
    for (mark, undo) in [
        (
            "create table group_deletion_schedules (group_id bigint primary key, marked_for_deletion_on date);
             insert into group_deletion_schedules select namespace_id, now() from projects where id = 1",
            "drop table group_deletion_schedules",
        ),
        (
            "create table group_deletion_schedules (group_id int primary key);
             insert into namespaces (id, name, path) values (99, 'top', 'top');
             update namespaces set parent_id = 99 where id = (select namespace_id from projects where id = 1);
             insert into group_deletion_schedules values (99)",
            "drop table group_deletion_schedules; update namespaces set parent_id = null",
        ),
        (
            "create table namespace_details (namespace_id bigint, deleted_at timestamptz);
             insert into namespace_details select namespace_id, now() from projects where id = 1",
            "drop table namespace_details",
        ),
        (
            "alter table namespaces add state smallint;
             update namespaces set state = 2 where id = (select namespace_id from projects where id = 1)",
            "update namespaces set state = 1",
        ),
    ] {
        gitlab.postgres.sql(database::MAIN, mark);
        let (verdict, text) = inspect();
        assert_eq!(verdict, "ok", "{mark}: {text}");
        assert!(text.contains("projects of 1 of them are being deleted"), "{mark}: {text}");
        gitlab.postgres.sql(database::MAIN, undo);
        assert_eq!(inspect().0, "failed", "{undo}");
    }
    // So may its wiki.
    let mut all = gitlab.repositories.iter();
    let wiki = all
        .find(|known| known.dir.to_string_lossy().contains("@groups"))
        .expect("a wiki of a group");
    remove(&wiki.dir);
    gitlab.postgres.sql(database::MAIN, "update namespaces set state = 4");
    let all = backup(&sandbox).run().ok().json();
    let (verdict, text) = check(&all, "other-repositories");
    assert!(verdict == "ok" && text.contains("1 without a repository are being deleted"), "{text}");
}

#[test]
fn an_optional_part_that_vanished_is_reported_until_it_is_meant() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    backup(&sandbox).run().ok();
    remove(gitlab.path("var/opt/gitlab/gitlab-rails/shared/encrypted_settings"));
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    for all in [inspect().ends_with(3).json(), backup(&sandbox).run().ends_with(3).json()] {
        let (verdict, text) = check(&all, "parts");
        assert!(verdict == "warning" && text.contains("encrypted-settings: /"), "{text}");
    }
    inspect().ends_with(3);
    backup(&sandbox).args(["--allow-loss"]).run().ok();
    inspect().ok();
}

#[test]
fn lost_packed_references_are_a_failure_although_a_branch_is_left() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "checks = { sample = 'all' }");
    let dir = repository(&gitlab, 1);
    let git =
        |arguments: &[&str], input: &str| gitlab::repositories::run_git(&dir, arguments, input);
    let names: Vec<String> = (0..50).map(|n| format!("refs/heads/b{n}")).collect();
    let updates = |verb: &str, end: &str| -> String {
        names.iter().map(|name| format!("{verb} {name}{end}\n")).collect()
    };
    git(&["update-ref", "--stdin"], &updates("create", " refs/heads/feature"));
    git(&["pack-refs", "--all"], "");
    git(&["update-ref", "refs/heads/main", "refs/heads/feature"], "");
    backup(&sandbox).run().ok();
    let references = |code: i32| {
        let all = backup(&sandbox).run().ends_with(code).json();
        let is_there = lines(&all, "check").iter().any(|check| check["name"] == "references");
        is_there.then(|| check(&all, "references"))
    };
    // Somebody deletes most branches.
    git(&["update-ref", "--stdin"], &updates("delete", "").replace("delete refs/heads/b1\n", ""));
    assert_eq!(references(0), None);
    let (packed, aside) = (dir.join("packed-refs"), sandbox.path("aside"));
    for is_there in [false, true] {
        std::fs::copy(&packed, &aside).expect("copies");
        remove(&packed);
        if is_there {
            std::fs::write(&packed, "").expect("writes");
        }
        let (verdict, text) = references(3).expect("the check");
        assert_eq!(verdict, "failed", "{text}");
        assert!(text.contains("lacks its packed-refs, with ") && text.contains("b1"), "{text}");
        let looked = configured(&sandbox, ["inspect", "--instance", "forge"]).run().ends_with(3);
        let printed = looked.all_output();
        assert!(printed.contains("lacks its packed-refs"), "{printed}");
        std::fs::copy(&aside, &packed).expect("copies");
        assert_eq!(references(0), None);
    }
    // All references as loose ones, in a repository that was made again.
    let all = git(&["for-each-ref", "--format=%(refname) %(objectname)"], "");
    remove(&packed);
    for line in all.lines() {
        let (name, id) = line.split_once(' ').expect("two columns");
        std::fs::create_dir_all(dir.join(name).parent().expect("below")).expect("directories");
        std::fs::write(dir.join(name), format!("{id}\n")).expect("writes");
    }
    assert_eq!(references(0), None);
}

#[test]
fn keys_that_authorized_keys_lacks_are_reported() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge"]).run();
    let sql = |text: &str| gitlab.postgres.sql(database::MAIN, text);
    sql("create table if not exists keys (id serial primary key, user_id int, key text, \
         usage_type int)");
    sql("delete from keys; insert into keys (user_id, key, usage_type) \
         values (1, 'ssh-ed25519 A', 0), (2, 'ssh-ed25519 B', 1), (2, 'ssh-ed25519 C', 2)");
    inspect().ok();
    // As `gitlab-ctl reconfigure` makes it.
    let file = gitlab.path("var/opt/gitlab/.ssh/authorized_keys");
    std::fs::write(&file, "# made by GitLab\n").expect("writes");
    let printed = inspect().ends_with(3).all_output();
    assert!(printed.contains("has 0 of the 2 keys in the database"), "{printed}");
    assert!(printed.contains("gitlab-rake gitlab:shell:setup"), "{printed}");
    backup(&sandbox).run().ok();
    remove(&file);
    inspect().ends_with(3);
    // Another way to look keys up.
    sql("alter table application_settings add authorized_keys_enabled boolean default false");
    inspect().ok();
}

/// A file system in memory, mounted until the end of the test.
struct Mounted(PathBuf);

impl Mounted {
    fn at(sandbox: &Sandbox, path: PathBuf) -> Mounted {
        std::fs::create_dir_all(&path).expect("a directory");
        sandbox.tool("mount").args(["-t", "tmpfs", "none"]).args([&path]).run().ok();
        Mounted(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Run::limited("umount").args(["-l"]).args([&self.0]).run();
    }
}

#[test]
fn an_unmounted_directory_inside_a_part_is_a_failure() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let registry = gitlab.path("var/opt/gitlab/gitlab-rails/shared/registry/docker/registry/v2");
    remove(registry.join("blobs"));
    let disk = Mounted::at(&sandbox, registry.join("blobs"));
    std::fs::write(disk.0.join("data"), "layer").expect("writes");
    backup(&sandbox).run().ok();
    let blobs = disk.0.clone();
    drop(disk);
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    for all in [inspect().ends_with(3).json(), backup(&sandbox).run().ends_with(3).json()] {
        let (verdict, text) = check(&all, "directories");
        let named = format!("registry: {}, which was a mount point", blobs.display());
        assert!(verdict == "failed" && text.contains(&named), "{text}");
    }
    // It stays one until the settings say that the files are gone for good.
    let all = backup(&sandbox).run().ends_with(3).json();
    assert_eq!(summary(&all)["is_complete"], false);
    configure(&sandbox, &gitlab, "checks = { lost = 'ok' }");
    let all = backup(&sandbox).run().ok().json();
    assert_eq!(check(&all, "directories").0, "warning");
}

#[test]
fn an_unmounted_disk_is_a_failure_although_older_files_are_below() {
    need_root();
    let gitlab = Builder::new().projects(8).build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let data = "var/opt/gitlab";
    let dirs = [
        // A storage, a disk within another one, a part, and a disk above several parts.
        ("repositories-storage2", "mnt/storage2/repositories".to_owned()),
        ("repositories", format!("{data}/git-data/repositories/@hashed")),
        ("uploads", format!("{data}/gitlab-rails/uploads")),
        ("registry, encrypted-settings", format!("{data}/gitlab-rails/shared")),
    ];
    let mut mount = "set -e\n".to_owned();
    for (_, dir) in &dirs {
        let dir = gitlab.path(dir).display().to_string();
        mount += &format!(
            "mkdir '{dir}.disk' && mount -t tmpfs none '{dir}.disk' && cp -a '{dir}/.' '{dir}.disk'
             chown --reference='{dir}' '{dir}.disk' && chmod --reference='{dir}' '{dir}.disk'
             mount --move '{dir}.disk' '{dir}' && rmdir '{dir}.disk'\n"
        );
    }
    let config = sandbox.text("forgekeep.toml");
    let run = |script: &str, command: &str| {
        let script = format!("{script}\nexec $FK {command} --instance forge --json");
        sandbox.in_mount_namespace(&script).env("FORGEKEEP_CONFIG", &config).run()
    };
    // A service has mounts of its own that show the same data.
    let builds = gitlab.path("var/opt/gitlab/gitlab-ci/builds").display().to_string();
    let bind = format!("mount --bind '{builds}' '{builds}'");
    run(&format!("{mount}{bind}"), "backup --init").ok();
    run(&mount, "backup").ok();
    // The disks have what was below, so only their absence tells.
    let text = |all: &[Value]| {
        let (verdict, text) = check(all, "directories");
        assert!(verdict == "failed" && !text.contains("builds"), "{text}");
        text
    };
    for all in
        [run("true", "inspect").ends_with(3).json(), run("true", "backup").ends_with(3).json()]
    {
        let text = text(&all);
        for (part, dir) in &dirs {
            let dir = gitlab.path(dir).display().to_string();
            let named = format!("{part}: {dir}, which was a mount point and has other files now");
            assert!(text.contains(&named), "{named}: {text}");
        }
    }
    let all = run("true", "backup").ends_with(3).json();
    let emptied = summary(&all)["emptied"].as_array().expect("a list").clone();
    for (_, dir) in &dirs[..3] {
        let dir = gitlab.path(dir).display().to_string();
        let is_it = |of: &&Value| of["path"] == dir && of["cause"] == "unmounted";
        assert!(emptied.iter().any(|of| is_it(&of)), "{dir}: {emptied:?}");
    }
    run("true", "backup --allow-loss").ok();
    run("true", "backup").ok();
}

#[test]
fn a_directory_that_lost_much_of_its_part_is_a_failure() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let registry = gitlab.path("var/opt/gitlab/gitlab-rails/shared/registry");
    let own = |dir: &Path| {
        drop(sandbox.tool("chown").args(["-R", "registry:git"]).args([dir]).run().ok())
    };
    let fill = |name: &str, files: usize| {
        let dir = registry.join(name);
        std::fs::create_dir_all(dir.join("deep")).expect("directories");
        for at in 0..files {
            std::fs::write(dir.join(format!("deep/{at}")), "content").expect("writes");
        }
        own(&registry);
        dir
    };
    let small = fill("uploads", 5);
    let large = fill("blobs", 60);
    let kept = fill("repositories", 30);
    backup(&sandbox).run().ok();
    let empty = |dir: &Path| {
        remove(dir.join("deep"));
        std::fs::create_dir(dir.join("deep")).expect("a directory");
        own(dir);
    };
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    // Services empty small directories, and those with less than half of the files.
    empty(&small);
    empty(&kept);
    inspect().ok();
    backup(&sandbox).run().ok();
    empty(&large);
    std::fs::write(kept.join("new"), "link").expect("writes");
    for all in [inspect().ends_with(3).json(), backup(&sandbox).run().ends_with(3).json()] {
        let (verdict, text) = check(&all, "directories");
        let named = format!("registry: {}\"", large.display());
        assert!(verdict == "failed" && text.contains(&named), "{text}");
    }
}

#[test]
fn an_inspection_names_parts_without_files() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let shared = gitlab.path("var/opt/gitlab/gitlab-rails/shared");
    std::fs::write(shared.join("encrypted_settings/ldap.yaml.enc"), "x").expect("writes");
    backup(&sandbox).run().ok();
    remove(shared.join("encrypted_settings"));
    std::fs::create_dir(shared.join("encrypted_settings")).expect("a directory");
    let looked = configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    let (verdict, text) = check(&looked.ends_with(3).json(), "directories");
    assert!(verdict == "failed" && text.contains("encrypted-settings: /"), "{text}");
    let printed = backup(&sandbox).run().ends_with(3).all_output();
    assert!(printed.contains("encrypted_settings has no files, and had"), "{printed}");
}

#[test]
fn an_empty_reference_is_damage_in_a_backup_as_well() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    backup(&sandbox).run().ok();
    let reference = repository(&gitlab, 1).join("refs/heads/broken");
    std::fs::create_dir_all(reference.parent().expect("a directory")).expect("directories");
    std::fs::write(&reference, "").expect("writes");
    let all = backup(&sandbox).run().ends_with(3).json();
    assert_eq!(summary(&all)["is_complete"], false);
    let (verdict, text) = check(&all, "empty-references");
    let named = format!("\"{}\"", reference.display());
    assert!(verdict == "failed" && text.contains(&named), "{text}");
    remove(&reference);
    backup(&sandbox).run().ok();
}

#[test]
fn usual_directories_that_vanished_are_reported() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    for (file, content) in [
        ("etc/gitlab/ssl/gitlab.crt", "certificate"),
        ("etc/gitlab/trusted-certs/ca.crt", "authority"),
        // A part inside a directory that is otherwise left out.
        ("var/opt/gitlab/gitaly/custom_hooks/pre-receive.d/check", "#!/bin/sh"),
    ] {
        let path = gitlab.path(file);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
        std::fs::write(path, content).expect("writes");
    }
    backup(&sandbox).run().ok();
    for dir in ["etc/gitlab/ssl", "etc/gitlab/trusted-certs", "var/opt/gitlab/gitaly/custom_hooks"]
    {
        remove(gitlab.path(dir));
    }
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
    for all in [inspect().ends_with(3).json(), backup(&sandbox).run().ok().json()] {
        let (verdict, text) = check(&all, "parts");
        assert_eq!(verdict, "warning", "{text}");
        for words in ["etc/gitlab/ssl", "trusted-certs", "server-hooks: /"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
    inspect().ok();
}
