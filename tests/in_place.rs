//! Restores of an instance over the machine that it runs on, and of one of its projects.

use crate::support::gitlab::Builder;
use crate::support::gitlab_container::GitlabContainer;
use crate::support::instance::{backup, configure};
use crate::support::sandbox::{Run, Sandbox, need_root};

#[test]
fn an_instance_is_restored_in_place_only_with_consent() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let ssh = gitlab.path("etc/ssh");
    std::fs::create_dir_all(&ssh).expect("a directory");
    let names = ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config", "moduli"];
    let write = |text: &str| {
        names.iter().for_each(|name| std::fs::write(ssh.join(name), text).expect("writes"));
    };
    let read = || names.map(|name| std::fs::read_to_string(ssh.join(name)).expect("reads"));
    write("old");
    backup(&sandbox).run().ok();
    write("new");

    // Of everything nothing is done, and all is named.
    let dangers = [
        "overwrites files of this machine",
        "/.forgekeep with database dumps",
        "sshd_config",
        "--yes",
    ];
    sandbox.run(["restore", "latest", "--target", "/"]).fails(1, &dangers);
    assert_eq!(read(), ["new"; 4]);
    let dry = sandbox.run(["restore", "latest", "--target", "/", "--dry-run"]).ok();
    assert!(dry.stderr.contains("stay unchanged"), "{}", dry.all_output());

    let root = gitlab.root().display().to_string();
    let (place, etc) = (format!("latest:{root}"), format!("{root}/etc"));
    let restore = |more: &[&str]| {
        let words = ["restore", &place, "--target", &root, "--include", &etc];
        sandbox.run(words.iter().chain(more))
    };
    restore(&[]).fails(1, &["needs --yes"]);
    assert_eq!(read(), ["new"; 4]);
    restore(&["--exclude", &format!("{etc}/gitlab"), "--yes"]).ok();
    // Whoever asks for all of `/etc` does not ask for settings that lock everybody out.
    assert_eq!(read(), ["old", "old", "new", "new"]);
    write("new");
    let only = |include: &str| {
        let words = ["restore", &place, "--target", &root, "--yes", "--include", include];
        sandbox.run(words).ok().stderr
    };
    for pattern in [format!("{etc}/**"), format!("{etc}/ssh/*")] {
        let printed = only(&pattern);
        assert!(printed.contains("sshd_config"), "{pattern}: {printed}");
        assert_eq!(read()[2..], ["new", "new"], "{pattern}");
    }
    write("new");
    let printed = only(&format!("{etc}/ssh/sshd_config"));
    assert!(printed.contains("restoring settings of sshd: "), "{printed}");
    assert_eq!(read(), ["new", "new", "old", "new"]);
    write("new");
    let secrets = format!("{root}/var/opt/gitlab/.ssh");
    sandbox.run(["restore", &place, "--target", &root, "--exclude", &secrets, "--yes"]).ok();
    assert_eq!(read(), ["old", "old", "new", "new"]);

    // Elsewhere all of it is restored, without a question.
    sandbox.restore("latest", "restored");
    let restored = sandbox.path("restored").join(root.trim_start_matches('/')).join("etc/ssh");
    assert_eq!(std::fs::read(restored.join("sshd_config")).expect("reads"), b"old");
}

#[test]
fn delete_keeps_settings_of_sshd_that_the_snapshot_lacks() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let ssh = gitlab.path("etc/ssh");
    std::fs::create_dir_all(&ssh).expect("a directory");
    std::fs::write(ssh.join("ssh_host_rsa_key"), "old").expect("writes");
    backup(&sandbox).run().ok();
    std::fs::create_dir(ssh.join("sshd_config.d")).expect("a directory");
    let newer = ["sshd_config.d/ca.conf", "user_ca.pub", "ssh_host_ed25519_key"];
    newer.iter().for_each(|name| std::fs::write(ssh.join(name), "new").expect("writes"));
    let root = gitlab.root().display().to_string();
    let (place, etc) = (format!("latest:{root}/etc"), format!("{root}/etc"));
    let restore = |more: &[&str]| {
        let words = ["restore", &place, "--target", &etc, "--delete", "--yes"];
        sandbox.run(words.iter().chain(more)).ok()
    };
    let printed = restore(&[]);
    assert!(printed.stderr.contains("user_ca.pub"), "{}", printed.all_output());
    newer.iter().for_each(|name| assert!(ssh.join(name).exists(), "{name}"));
    // A user who names the directory means all of it.
    restore(&["--include", &format!("{etc}/ssh")]);
    newer.iter().for_each(|name| assert!(!ssh.join(name).exists(), "{name}"));
    assert_eq!(std::fs::read(ssh.join("ssh_host_rsa_key")).expect("reads"), b"old");
}

#[test]
fn settings_of_sshd_in_a_part_of_the_user_stay_unchanged() {
    need_root();
    let sandbox = Sandbox::new();
    let etc = sandbox.path("machine/etc");
    std::fs::create_dir_all(etc.join("ssh")).expect("directories");
    let config = etc.join("ssh/sshd_config");
    std::fs::write(&config, "old").expect("writes");
    let text = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n[instances.forge]\nkind = 'plain'\n\
         parts.etc.path = '{}'\n",
        sandbox.text("state"),
        sandbox.text("store"),
        etc.display(),
    );
    sandbox.write("forgekeep.toml", text);
    backup(&sandbox).run().ok();
    std::fs::write(&config, "new").expect("writes");
    let place = format!("latest:{}", etc.display());
    let target = etc.display().to_string();
    sandbox.run(["restore", &place, "--target", &target, "--yes"]).ok();
    assert_eq!(std::fs::read(&config).expect("reads"), b"new");
}

#[test]
fn an_instance_below_another_root_is_restored_to_its_usual_paths_only_with_consent() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    backup(&sandbox).run().ok();
    // Both exist on each machine of the tests; a dry run writes nothing.
    let root = gitlab.root().display().to_string();
    let all = format!("latest:{root}");
    sandbox.run(["restore", &all, "--target", "/"]).fails(1, &["needs --yes"]);
    let dry = sandbox.run(["restore", &all, "--target", "/", "--dry-run"]);
    assert!(dry.stderr.contains("overwrites files of this machine"), "{}", dry.all_output());
}

#[test]
fn a_restore_over_another_version_of_a_container_warns() {
    need_root();
    let gitlab = GitlabContainer::start(Builder::new());
    let sandbox = Sandbox::new();
    let root = gitlab.root().display().to_string();
    let text = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n[instances.forge]\n\
         kind = 'gitlab-container'\nroot = '{root}'\ndocker = ['{root}/docker']\n",
        sandbox.text("state"),
        sandbox.text("store"),
    );
    sandbox.write("forgekeep.toml", text);
    backup(&sandbox).run().ok();
    let dry = || sandbox.run(["restore", "latest", "--target", "/", "--dry-run"]).ok();
    let warning = "but GitLab 18.5.1 is installed here";
    assert!(!dry().stderr.contains("is installed here"));
    // Each start of the container writes it.
    let version = gitlab.root().join("srv/gitlab/data/gitlab-rails/VERSION");
    std::fs::write(version, "18.5.1-ee\n").expect("writes");
    let dry = dry();
    assert!(dry.stderr.contains(warning), "{}", dry.all_output());
    let edition = "edition ce, but edition ee is installed here";
    assert!(dry.stderr.contains(edition), "{}", dry.all_output());
}

#[test]
fn a_snapshot_with_unreadable_facts_is_restored_in_place_only_with_consent() {
    let sandbox = Sandbox::with_store();
    let name = ".forgekeep/instance.json";
    sandbox.forgekeep(["backup", "--stdin-name", name]).input("{\"instance\": ").run().ok();
    let restored = sandbox.run(["restore", "latest", "--target", "/"]);
    restored.fails(1, &["instance.json of the snapshot is unreadable", "needs --yes"]);
    sandbox.forgekeep(["backup", "--stdin-name", "other"]).input("{").run().ok();
    let target = sandbox.text("there");
    sandbox.run(["restore", "latest", "--path", "other", "--target", &target]).ok();
}

#[test]
fn restore_accepts_the_listed_path_of_a_project() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    backup(&sandbox).run().ok();
    let listed = sandbox.run(["projects", "latest"]).ok();
    let lines: Vec<&str> = listed.stdout.lines().filter(|line| line.contains("/project")).collect();
    assert_eq!(lines.len(), 5, "{}", listed.all_output());
    for (at, line) in lines.iter().enumerate() {
        let path = line.split_whitespace().nth(2).expect("a path");
        assert!(path.starts_with('/'), "{line}");
        let program = env!("CARGO_BIN_EXE_forgekeep");
        let command = format!("{program} restore latest:{path} --target project{at}");
        let store = sandbox.text("store");
        let run = Run::limited("sh").args(["-c", &command]).within(sandbox.root());
        run.env("FORGEKEEP_STORE", store).run().ok();
        assert!(sandbox.has(format!("project{at}/HEAD")), "{line}");
    }
    for project in sandbox.json(["projects", "latest"]) {
        if project["message_type"] == "project" {
            let place = project["restore"].as_str().expect("what to restore");
            sandbox.run(["ls", place]).ok();
        }
    }
}

#[test]
fn a_plain_instance_has_no_warnings_of_dumps_and_host_keys() {
    need_root();
    let sandbox = Sandbox::new();
    sandbox.write("data/file", "1");
    let text = format!(
        "state = '{}'\n[stores.main]\npath = '{}'\n[instances.forge]\nkind = 'plain'\n\
         parts.data.path = '{}'\n",
        sandbox.text("state"),
        sandbox.text("store"),
        sandbox.text("data"),
    );
    sandbox.write("forgekeep.toml", text);
    backup(&sandbox).run().ok();
    let restore = ["restore", "latest", "--target", "/", "--delete", "--dry-run"];
    let dry = sandbox.run(restore).ok().stderr;
    assert!(dry.contains("overwrites files of this machine; stop"), "{dry}");
    for words in ["dumps", "databases", "sshd"] {
        assert!(!dry.contains(words), "{words}: {dry}");
    }
}
