//! Restores of an instance over the machine that it runs on, and of one of its projects.

use crate::support::gitlab::Builder;
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
    // Whoever names the whole directory means it.
    assert_eq!(read(), ["old"; 4]);
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
