//! Rules: paths that a backup skips, named paths, and paths that a restore keeps.

use crate::support::instance::configured;
use crate::support::sandbox::{Outcome, Sandbox, need_root};

const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55";
const GIT_DIR: [(&str, &str); 3] =
    [("HEAD", "ref: refs/heads/main\n"), ("objects/aa/x", "x"), ("refs/heads/main", "x")];

/// A directory `source/p` (or the same in a git directory) that a rule skips.
struct Case {
    base: &'static str,
    rule: &'static str,
    arguments: &'static [&'static str],
}

const BASES: [&str; 2] = ["source", "source/r.git"];
const RULES: [(&str, &[&str]); 3] =
    [("pattern", &["--exclude", "p"]), ("cache", &["--exclude-caches"]), ("mount", &["-x"])];

fn cases() -> impl Iterator<Item = Case> {
    need_root();
    RULES.into_iter().flat_map(|(rule, arguments)| BASES.map(|base| Case { base, rule, arguments }))
}

/// Runs a test with the directory of a case in place.
fn within(case: &Case, test: impl FnOnce(&Sandbox, &str)) {
    let sandbox = Sandbox::with_store();
    let dir = format!("{}/p", case.base);
    for (name, content) in GIT_DIR {
        sandbox.write(&format!("source/r.git/{name}"), content);
    }
    sandbox.write("source/beside", "beside");
    std::fs::create_dir_all(sandbox.path(&dir)).expect("a directory");
    let is_mount = case.rule == "mount";
    if is_mount {
        sandbox.tool("mount").args(["-t", "tmpfs", "none", &dir]).run().ok();
    }
    if case.rule == "cache" {
        sandbox.write(&format!("{dir}/CACHEDIR.TAG"), TAG);
    }
    sandbox.write(&format!("{dir}/out"), "skipped");
    sandbox.write(&format!("{dir}/in/f"), "named");
    test(&sandbox, &dir);
    if is_mount {
        sandbox.tool("umount").args(["-l", &dir]).run().ok();
    }
}

/// Returns true if the newest snapshot has this path.
fn has(sandbox: &Sandbox, path: &str) -> bool {
    let listed = sandbox.run(["ls", &sandbox.newest()]).ok().stdout;
    let path = sandbox.text(path);
    listed.lines().any(|line| line == path)
}

#[test]
fn named_paths_are_included_despite_rules_for_parents() {
    for case in cases() {
        let text = format!("{} in {}", case.rule, case.base);
        within(&case, |sandbox, dir| {
            let [out, named, below] = ["out", "in", "in/f"].map(|name| format!("{dir}/{name}"));
            let backup = |paths: &[&str]| {
                sandbox.forgekeep(["backup"]).args(case.arguments).args(paths).run().ok();
            };
            for again in ["first", "second"] {
                backup(&["source"]);
                assert!(!has(sandbox, &out) && !has(sandbox, &below), "{text}, {again}");
                assert!(has(sandbox, "source/r.git/objects/aa/x"), "{text}, {again}");
                let has_tag = has(sandbox, &format!("{dir}/CACHEDIR.TAG"));
                assert_eq!(has_tag, case.rule == "cache", "{text}, {again}");
                backup(&["source", &named]);
                assert!(!has(sandbox, &out) && has(sandbox, &below), "{text}, {again}");
                backup(&["source", dir]);
                assert!(has(sandbox, &out) && has(sandbox, &below), "{text}, {again}");
            }
        });
    }
}

#[test]
fn skipped_paths_survive_a_deleting_restore() {
    for case in cases() {
        within(&case, |sandbox, dir| {
            let text = format!("{} in {}", case.rule, case.base);
            let named = format!("{dir}/in");
            let paths = ["source", &named];
            sandbox.forgekeep(["backup"]).args(case.arguments).args(paths).run().ok();
            // As on a machine without mounts and without cache tags.
            let copy = "copy/source";
            let moved = dir.replacen("source", copy, 1);
            sandbox.tool("mkdir").args(["copy"]).run().ok();
            sandbox.tool("cp").args(["-a", "source", copy]).run().ok();
            let _ = std::fs::remove_file(sandbox.path(format!("{moved}/CACHEDIR.TAG")));
            for later in ["copy/source/later", &format!("{moved}/in/later")] {
                sandbox.write(later, "later");
            }
            let place = sandbox.at("latest", "source");
            sandbox.run(["restore", &place, "--target", copy, "--delete"]).ok();
            assert!(sandbox.has(format!("{moved}/out")), "{text}");
            assert!(sandbox.has(format!("{moved}/in/f")), "{text}");
            assert!(!sandbox.has("copy/source/later"), "{text}");
            // A named path is restored to its original state.
            assert!(!sandbox.has(format!("{moved}/in/later")), "{text}");
        });
    }
}

#[test]
fn a_mounted_file_counts_as_another_file_system() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/f", "below the mount");
    sandbox.write("source/r.git/HEAD", "ref: refs/heads/main");
    sandbox.write("source/r.git/config", "below the mount");
    std::fs::create_dir_all(sandbox.path("other")).expect("a directory");
    std::fs::create_dir_all(sandbox.path("source/r.git/refs")).expect("a directory");
    std::fs::create_dir_all(sandbox.path("source/r.git/objects")).expect("a directory");
    let mount = ["-t", "tmpfs", "none", "other"];
    need_root();
    sandbox.tool("mount").args(mount).run().ok();
    sandbox.write("other/f", "mounted");
    for name in ["source/f", "source/r.git/config"] {
        sandbox.tool("mount").args(["--bind", "other/f", name]).run().ok();
    }
    sandbox.backup(["source", "-x"]);
    let found = ["source/f", "source/r.git/config", "source/r.git/HEAD"];
    let found = found.map(|name| has(&sandbox, name));
    let place = sandbox.at("latest", "source");
    sandbox.run(["restore", &place, "--target", "source", "--delete"]).ok();
    let kept = sandbox.read("other/f");
    for name in ["source/f", "source/r.git/config", "other"] {
        sandbox.tool("umount").args(["-l", name]).run().ok();
    }
    assert_eq!(found, [false, false, true]);
    assert_eq!(kept, b"mounted");
    assert_eq!(sandbox.read("source/f"), b"below the mount");
}

#[test]
fn the_store_is_never_in_a_snapshot() {
    for place in ["source/store", "source/r.git/store"] {
        let sandbox = Sandbox::new();
        for (name, content) in GIT_DIR {
            sandbox.write(&format!("source/r.git/{name}"), content);
        }
        let run = |arguments: &[&str]| sandbox.forgekeep(arguments).args(["--store", place]).run();
        run(&["init"]).ok();
        let inner = format!("{place}/segments");
        run(&["backup", place]).fails(1, &["is the store or inside"]);
        run(&["backup", &inner, place]).fails(1, &["or inside the store"]);
        for paths in [&["source"][..], &["source", place], &["source", &inner]] {
            run(&[&["backup"], paths].concat()).ok();
            let listed = run(&["ls", "latest"]).ok().stdout;
            assert!(!listed.contains(place) && listed.contains("r.git/HEAD"), "{listed}");
        }
    }
}

#[test]
fn patterns_that_exclude_everything_are_not_a_success() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    sandbox.write("source/b.log", "b");
    sandbox.write("patterns", "\u{feff}*.log\r\n!b.log\r\n");
    let backup = |arguments: &[&str]| -> Outcome {
        sandbox.forgekeep(["backup", "source"]).args(arguments).run()
    };
    backup(&["--exclude", ""]).fails(2, &["bad pattern", "empty"]);
    backup(&["--exclude-file", "patterns"]).fails(2, &["negated", "patterns, line 2"]);
    sandbox.run(["restore", "latest", "-t", "x", "--include", ""]).fails(2, &["bad pattern"]);
    for all in ["*", "**", "a,b"] {
        let all = if all == "a,b" { "{a,b.log}" } else { all };
        let outcome = backup(&["--exclude", all]).ends_with(3);
        assert!(outcome.stderr.contains("nothing to back up"), "{}", outcome.all_output());
    }
    backup(&["--exclude", "*.log"]).ok();
    assert!(has(&sandbox, "source/a") && !has(&sandbox, "source/b.log"));
}

#[test]
fn an_unreadable_source_does_not_make_the_others_nothing() {
    need_root();
    let sandbox = Sandbox::new();
    sandbox.write("source/a/1", "1");
    sandbox.write("source/b/2", "2");
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(sandbox.path("source/b"), closed).expect("a mode");
    std::fs::create_dir(sandbox.path("own")).expect("a directory");
    sandbox.give_to_nobody("own");
    sandbox.as_nobody(["init", "--store", "own/store"]).run().ok();
    let backup = ["backup", "--store", "own/store", "source/a", "source/b"];
    let run = sandbox.as_nobody(backup).run();
    let run = run.ends_with(3);
    assert!(!run.stderr.contains("nothing to back up"), "{}", run.all_output());
}

/// Writes the configuration of an instance of two parts, one of them skipped.
fn configure(sandbox: &Sandbox, more: &str) {
    let text = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n[instances.wiki]\nkind = 'plain'\n\
         exclude = ['*.tmp']\nparts.all.path = '{data}'\nparts.all.exclude = ['logs']\n\
         parts.big.path = '{data}/big'\nparts.big.skip = true\n{more}\n",
        sandbox.text("state"),
        sandbox.text("store"),
        data = sandbox.text("data"),
    );
    sandbox.write("forgekeep.toml", text);
}

#[test]
fn files_excluded_by_configuration_survive_a_deleting_restore() {
    let sandbox = Sandbox::new();
    let skipped = ["data/logs/x", "data/sub/logs/x", "data/big/x", "data/a.tmp", "data/sub/b.tmp"];
    for name in ["data/kept", "data/sub/kept"].iter().chain(&skipped) {
        sandbox.write(name, "x");
    }
    configure(&sandbox, "");
    let run = |arguments: &[&str]| configured(&sandbox, []).args(arguments).run();
    let backup = ["backup", "--instance", "wiki", "--init", "--exclude", "*.bak"];
    sandbox.write("data/c.bak", "x");
    run(&backup).ok();
    sandbox.write("data/later", "x");
    let (place, store) = (sandbox.at("latest", "data"), sandbox.text("store"));
    let restore = ["restore", &place, "--target", "data", "--delete", "--yes", "--store", &store];
    run(&restore).ok();
    for name in skipped.iter().chain(&["data/kept", "data/sub/kept", "data/c.bak"]) {
        assert!(sandbox.has(name), "{name}");
    }
    assert!(!sandbox.has("data/later"));
    let listed = run(&["ls", "latest", "--store", &store]).ok().stdout;
    for name in skipped {
        assert!(!listed.contains(&sandbox.text(name)), "{name}");
    }
}

#[test]
fn an_incomplete_snapshot_names_the_last_complete_one() {
    let sandbox = Sandbox::new();
    sandbox.write("data/kept", "x");
    sandbox.write("data/big/x", "x");
    sandbox.write("more/x", "x");
    let more = format!("parts.more.path = '{}'", sandbox.text("more"));
    configure(&sandbox, &more);
    let run = |arguments: &[&str]| configured(&sandbox, []).args(arguments).run();
    let backup = ["backup", "--instance", "wiki", "--init"];
    run(&backup).ok();
    std::fs::rename(sandbox.path("more"), sandbox.path("elsewhere")).expect("is moved");
    run(&backup).ends_with(3);
    let store = sandbox.text("store");
    let list = run(&["snapshots", "--json", "--store", &store]).ok().json();
    let [complete, last] =
        [0, 1].map(|at| list[at]["short_id"].as_str().expect("an id").to_owned());
    let place = sandbox.at(&last, "data");
    let outcome = run(&["restore", &place, "--target", "back", "--store", &store]).ok();
    assert!(outcome.stderr.contains("NOT COMPLETE"), "{}", outcome.all_output());
    assert!(outcome.stderr.contains(&complete), "{}", outcome.all_output());
    let restore = ["restore", &place, "--target", "data", "--delete", "--store", &store];
    run(&restore).fails(1, &["lacks a part of instance wiki"]);
    assert!(sandbox.has("data/big/x"));
}

#[test]
fn a_restore_above_the_sources_deletes_only_below_them() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/d/f", "1");
    sandbox.write("source/e/never_backed_up", "2");
    sandbox.backup(["source/d"]);
    sandbox.write("source/d/later", "3");
    let place = sandbox.at("latest", "source");
    sandbox.run(["restore", &place, "--target", "source", "--delete"]).ok();
    assert!(sandbox.has("source/e/never_backed_up") && !sandbox.has("source/d/later"));
}

#[test]
fn a_snapshot_without_a_named_path_is_not_complete() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/d/f", "1");
    let printed = sandbox.run(["backup", "source/d", "source/gone"]).ends_with(3).all_output();
    assert!(printed.contains("source/gone"), "{printed}");
    let place = sandbox.at("latest", "source");
    let printed = sandbox.run(["restore", &place, "--target", "target"]).ok();
    assert!(printed.stderr.contains("NOT COMPLETE"), "{}", printed.all_output());
    sandbox.run(["restore", &place, "--target", "target", "--delete"]).fails(1, &["1 path"]);
}

#[test]
fn absolute_patterns_follow_links_like_sources() {
    let sandbox = Sandbox::with_store();
    sandbox.write("real/x/secret", "1");
    sandbox.write("real/keep", "2");
    std::os::unix::fs::symlink("real", sandbox.path("link")).expect("links");
    let pattern = sandbox.text("link/x");
    sandbox.run(["backup", "--exclude", &pattern, "link"]).ok();
    let listed = sandbox.run(["ls", "latest"]).ok().stdout;
    assert!(listed.contains("keep") && !listed.contains("secret"), "{listed}");
}

#[test]
fn relative_patterns_follow_links_like_sources() {
    let sandbox = Sandbox::with_store();
    sandbox.write("real/x/secret", "1");
    sandbox.write("real/deep/x/kept", "2");
    std::os::unix::fs::symlink("real", sandbox.path("link")).expect("links");
    for source in ["link", "link/."] {
        sandbox.run(["backup", "--exclude", "link/x", source]).ok();
        assert!(!has(&sandbox, "real/x/secret") && has(&sandbox, "real/deep/x/kept"), "{source}");
    }
}

#[test]
fn a_source_that_lost_all_of_its_files_is_reported_until_it_is_meant() {
    let sandbox = Sandbox::with_store();
    std::fs::create_dir_all(sandbox.path("always/empty")).expect("makes");
    sandbox.write("disk/dir/1", "1");
    sandbox.write("other/2", "2");
    let backup = ["backup", "disk", "other", "always"];
    sandbox.run(backup).ok();
    // Skipped content is not lost.
    sandbox.forgekeep(backup).args(["--exclude", "disk/dir"]).run().ok();
    sandbox.run(backup).ok();
    sandbox.remove("disk/dir");
    let outcome = sandbox.run(backup).ends_with(3);
    let warning = format!("{} has no files", sandbox.text("disk"));
    assert!(outcome.stderr.contains(&warning), "{}", outcome.all_output());
    assert!(!outcome.stderr.contains("always"), "{}", outcome.all_output());
    sandbox.run(backup).ends_with(3);
    sandbox.forgekeep(backup).args(["--allow-loss"]).run().ok();
    sandbox.run(backup).ok();
}

#[test]
fn a_part_that_lost_all_of_its_files_is_reported() {
    let sandbox = Sandbox::with_store();
    let part =
        |name: &str| format!("[instances.i.parts.{name}]\npath = '{}'\n", sandbox.text(name));
    configure_plain(&sandbox, &(part("disk") + &part("other")));
    let backup = ["backup", "--config", "forgekeep.toml", "--instance", "i"];
    for name in ["disk/1", "other/2"] {
        sandbox.write(name, name);
    }
    sandbox.run(backup).ok();
    sandbox.remove("disk/1");
    let outcome = sandbox.run(backup).ends_with(3);
    let warning = format!("{} has no files", sandbox.text("disk"));
    assert!(outcome.stderr.contains(&warning), "{}", outcome.all_output());
}

/// Writes a configuration of an instance `i` without a product, with more lines for it.
fn configure_plain(sandbox: &Sandbox, more: &str) {
    let [state, store] = ["state", "store"].map(|name| sandbox.text(name));
    let text = format!(
        "state = '{state}'\n[stores.main]\npath = '{store}'\n[instances.i]\nkind = 'plain'\n{more}\n"
    );
    sandbox.write("forgekeep.toml", text);
}

#[test]
fn the_patterns_of_a_part_do_not_apply_in_another_part_below() {
    let sandbox = Sandbox::with_store();
    for name in ["a", "cache/1", "pages/cache/c", "pages/t.tmp", "pages/x/own", "both/cache/c"] {
        sandbox.write(&format!("w/{name}"), name);
    }
    let [all, pages, both] = ["w", "w/pages", "w/both"].map(|name| sandbox.text(name));
    let absolute = format!("'{all}/cache', '{all}/pages/t.tmp', '{pages}/cache'");
    for globs in
        [&absolute[..], "'cache', '*.tmp'", "'**'", "'pages/cache', '/pages/*.tmp', '/cache'"]
    {
        let more = format!(
            "parts.all = {{ path = '{all}', exclude = [{globs}] }}\n\
             parts.pages = {{ path = '{pages}', exclude = ['own'] }}\n\
             parts.both = {{ path = '{both}', exclude = ['cache'] }}\n\
             parts.again.path = '{both}'"
        );
        configure_plain(&sandbox, &more);
        configured(&sandbox, ["backup", "--instance", "i"]).run().ok();
        for name in ["w/pages/cache/c", "w/pages/t.tmp", "w/both/cache/c"] {
            assert!(has(&sandbox, name), "{globs}: {name}");
        }
        assert!(!has(&sandbox, "w/cache/1") && !has(&sandbox, "w/pages/x/own"), "{globs}");
    }
    sandbox.write("w/cache/new", "skipped");
    sandbox.write("w/pages/cache/new", "extra");
    let from = sandbox.at("latest", "w");
    sandbox.run(["restore", &from, "--target", "w", "--delete", "--yes"]).ok();
    assert!(sandbox.has("w/cache/new") && !sandbox.has("w/pages/cache/new"));
}

#[test]
fn patterns_that_are_not_utf8_spare_what_they_skipped() {
    use std::os::unix::ffi::OsStrExt;
    let sandbox = Sandbox::with_store();
    sandbox.write("source/a", "a");
    let foreign = std::ffi::OsStr::from_bytes(b"caf\xe9");
    let skipped = sandbox.path("source").join(foreign);
    std::fs::write(&skipped, "skipped").expect("writes");
    sandbox.forgekeep(["backup", "source", "--exclude"]).args([foreign]).run().ok();
    let from = sandbox.at("latest", "source");
    sandbox.run(["restore", &from, "--target", "source", "--delete"]).ok();
    assert!(skipped.exists());
}

#[test]
fn a_copy_without_content_is_not_complete() {
    let sandbox = Sandbox::with_store();
    sandbox.write("w/a", "a");
    std::fs::create_dir_all(sandbox.path("w/inner")).expect("a directory");
    sandbox.tool("ln").args(["-s", "w", "link"]).run().ok();
    let [link, inner] = ["link", "w/inner"].map(|name| sandbox.text(name));
    let parts = format!("parts.all.path = '{link}'\nparts.inner.path = '{inner}'");
    let instance = |arguments: &[&str]| {
        configured(&sandbox, ["backup", "--instance", "i"]).args(arguments).run()
    };
    let is_reported = |outcome: Outcome, words: &[&str]| {
        let outcome = outcome.ends_with(3);
        for word in words {
            assert!(outcome.stderr.contains(word), "{word}: {}", outcome.all_output());
        }
    };
    let words = ["nothing to back up", "the backup is not complete"];
    configure_plain(&sandbox, &parts);
    instance(&[]).ok();
    for excludes in ["exclude = ['a']\n", "mode = 'maintenance'\nexclude = ['*']\n"] {
        configure_plain(&sandbox, &format!("{excludes}{parts}"));
        is_reported(instance(&["--dry-run"]), &words);
        is_reported(instance(&[]), &words);
    }
    sandbox.remove("w/a");
    configure_plain(&sandbox, &parts);
    is_reported(instance(&[]), &words);
    let listed = sandbox.run(["snapshots"]).ok().stdout;
    assert_eq!(listed.matches("NOT COMPLETE").count(), 3, "{listed}");
    is_reported(sandbox.run(["backup", "w", "w/inner"]), &words[..1]);
}

#[test]
fn a_backup_skips_files_that_a_restore_has_not_finished() {
    let sandbox = Sandbox::with_store();
    let unfinished = ".forgekeep-unfinished-0123456789abcdef";
    for name in ["1", unfinished, ".forgekeep-unfinished-restore", "g.git/refs/heads/main"] {
        sandbox.write(&format!("source/{name}"), name);
    }
    for name in ["g.git/HEAD", &format!("g.git/objects/pack/{unfinished}")] {
        sandbox.write(&format!("source/{name}"), name);
    }
    // Not names of a restore.
    let others = [format!("{unfinished}0"), format!("d/{unfinished}/1")];
    for name in &others {
        sandbox.write(&format!("source/{name}"), name);
    }
    let outcome = sandbox.run(["backup", "source"]).ok();
    let text = "skipped files that a restore has not finished, such as ";
    assert_eq!(outcome.stderr.matches(text).count(), 1, "{}", outcome.all_output());
    let listed = sandbox.run(["ls", "latest"]).ok().stdout;
    let listed: Vec<&str> = listed.lines().filter(|line| line.contains("unfinished")).collect();
    assert_eq!(listed.len(), 3, "{listed:?}");
    for other in others {
        assert!(listed.iter().any(|line| line.ends_with(&other)), "{listed:?}");
    }
}

#[test]
fn a_pattern_from_the_current_directory_skips_nothing_elsewhere() {
    let sandbox = Sandbox::with_store();
    for name in ["source/cache/1", "source/kept/cache/2"] {
        sandbox.write(name, name);
    }
    sandbox.write("patterns", "./cache\n");
    for option in [["--exclude", "./cache"], ["--exclude-file", "../patterns"]] {
        let store = sandbox.text("store");
        let run = sandbox.forgekeep(["backup", ".", "--store", &store]).args(option);
        run.within(&sandbox.path("source")).run().ok();
        assert!(!has(&sandbox, "source/cache/1") && has(&sandbox, "source/kept/cache/2"));
    }
}

#[test]
fn a_restore_of_excluded_sources_restores_nothing() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/1", "1");
    sandbox.run(["backup", "source"]).ok();
    for excludes in [&["--exclude", "source"][..], &["--exclude", "*"]] {
        let outcome = sandbox.forgekeep(["restore", "latest", "--target", "o"]).args(excludes);
        let outcome = outcome.run().ends_with(3);
        assert!(outcome.stderr.contains("nothing restored"), "{}", outcome.all_output());
        assert!(!sandbox.has("o"));
    }
}

#[test]
fn a_dry_run_names_replaced_objects_and_counts_no_holes() {
    let sandbox = Sandbox::with_store();
    sandbox.write("source/d/1", "1");
    let sparse = std::fs::File::create(sandbox.path("source/sparse")).expect("creates");
    sparse.set_len(1 << 43).expect("extends");
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", (1 << 43) - 3).expect("writes");
    sandbox.run(["backup", "source"]).ok();
    sandbox.remove("source/d");
    sandbox.remove("source/sparse");
    sandbox.write("source/d", "a file");
    let from = sandbox.at("latest", "source");
    let dry = sandbox.run(["restore", &from, "--target", "source", "--dry-run"]).ok();
    assert!(dry.stderr.contains("source/d: would replace a file by a directory"), "{}", dry.stderr);
    assert!(!dry.stderr.contains("bytes are free"), "{}", dry.stderr);
}

#[test]
fn deletion_does_not_search_skipped_directories() {
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/1", "1");
    sandbox.write("source/private/f", "f");
    sandbox.give_to_nobody(".");
    sandbox.tool("chown").args(["0", "source/private"]).run().ok();
    sandbox.tool("chmod").args(["700", "source/private"]).run().ok();
    let from = sandbox.at("latest", "source");
    let restore = |arguments: &[&str]| {
        let run = sandbox.as_nobody(["restore", &from, "--target", "source", "--delete"]);
        run.args(arguments).run()
    };
    sandbox.as_nobody(["backup", "source", "--exclude", "private"]).run().ok();
    restore(&["--dry-run"]).ok();
    restore(&[]).ok();
    sandbox.run(["backup", "source"]).ok();
    sandbox.give_to_nobody("store");
    restore(&["--exclude", "private"]).ok();
    assert!(restore(&[]).ends_with(3).stderr.contains("cannot search it for paths to delete"));
}

#[test]
fn deletion_opens_directories_of_its_user_for_a_time() {
    use std::os::unix::fs::PermissionsExt;
    need_root();
    let sandbox = Sandbox::with_store();
    sandbox.write("source/d/inner/1", "1");
    sandbox.write("source/other/2", "2");
    let closed = [("source/d/inner", 0o600), ("source/d", 0o300), ("source", 0o311)];
    let close = || {
        for (dir, mode) in closed {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(sandbox.path(dir), mode).expect("sets");
        }
    };
    close();
    sandbox.give_to_nobody(".");
    sandbox.run(["backup", "source"]).ok();
    sandbox.give_to_nobody("store");
    sandbox.write("source/d/inner/new", "new");
    sandbox.write("source/new/deep/f", "new");
    sandbox.give_to_nobody("source");
    sandbox.tool("chmod").args(["000", "source/new/deep", "source/new"]).run().ok();
    close();
    let [from, target] = [sandbox.at("latest", ""), sandbox.text("")];
    for arguments in [&["--dry-run"][..], &[]] {
        let run = sandbox.as_nobody(["restore", &from, "--target", &target, "--delete"]);
        let outcome = run.args(arguments).run();
        assert!(!outcome.stderr.contains("not deleted"), "{}", outcome.all_output());
        if arguments.is_empty() {
            outcome.ok();
        }
    }
    assert!(!sandbox.has("source/d/inner/new") && !sandbox.has("source/new"));
    for (dir, mode) in closed {
        let found = sandbox.path(dir).metadata().expect("is there").permissions().mode();
        assert_eq!(found & 0o7777, mode, "{dir}");
    }
}
