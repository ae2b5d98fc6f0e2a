//! Owners and modes of an instance: inspections report them, and dry restores count them.

use crate::support::gitlab::{Builder, DATA};
use crate::support::instance::{backup, configure, configured, lines, summary};
use crate::support::sandbox::{Run, Sandbox, need_root};

#[test]
fn wrong_owners_and_modes_are_reported_with_a_working_fix() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let owners = |code: i32| {
        let looked = configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
        let all = looked.ends_with(code).json();
        let found = lines(&all, "check").into_iter().find(|check| check["name"] == "owners");
        found.expect("a check").clone()
    };
    let right = owners(0);
    assert_eq!(right["verdict"], "ok", "{right}");
    assert!(right["text"].as_str().expect("text").ends_with("paths are correct"), "{right}");
    backup(&sandbox).run().ok();

    // As after `cp -R` by root.
    let data = gitlab.path(DATA);
    let sh = |command: &str| {
        Run::limited("sh").args(["-c", command]).within(&data).run().ok();
    };
    let repositories = "git-data/repositories";
    sh(&format!("chown -R root:root {repositories} gitlab-rails/uploads"));
    sh(&format!("find {repositories} -type d -exec chmod g-s {{}} +"));
    sh("chmod 0755 gitlab-rails/uploads; chmod o+w gitlab-rails/shared/artifacts");
    let count = |command: &str| {
        let counted = Run::limited("sh").args(["-c", command]).within(&data).run().ok();
        counted.stdout.trim().parse::<u64>().expect("a number")
    };
    let owned =
        count(&format!("find {repositories} gitlab-rails/uploads | grep -v +gitaly | wc -l"));
    let dirs = count(&format!("find {repositories} -type d | grep -v +gitaly | wc -l"));
    let wrong = owners(3);
    assert_eq!(wrong["verdict"], "warning");
    let text = wrong["text"].as_str().expect("text");
    for words in [
        format!("{owned} have a wrong owner or group"),
        "2 have a wrong mode".to_owned(),
        format!("{dirs} are directories without setgid"),
    ] {
        assert!(text.contains(&words), "{words}: {wrong}");
    }
    let examples = wrong["examples"].to_string();
    assert!(examples.contains("belongs to root:root instead of git:git"), "{examples}");
    assert!(examples.contains("without setgid"), "{examples}");
    assert!(examples.contains("GitLab requires 0700"), "{examples}");

    // A restore counts what it would set, and calls only content right.
    let tree = gitlab.root().display().to_string();
    let place = format!("latest:{tree}/{DATA}");
    let target = data.display().to_string();
    let dry = sandbox.run(["restore", &place, "--target", &target, "--dry-run", "--json"]).ok();
    let dry = summary(&dry.json()).clone();
    // Caches of git are not in the snapshot.
    let number = |name: &str| dry[name].as_u64().expect("a number");
    let counted = number("owners_to_set");
    assert!(counted > dirs && counted <= owned, "{owned}, {dry}");
    assert!(number("modes_to_set") >= dirs, "{dirs}, {dry}");
    let dry = sandbox.run(["restore", &place, "--target", &target, "--dry-run"]).ok();
    assert!(dry.all_output().contains(&format!("{counted} owners and ")), "{}", dry.all_output());

    // The command that is named mends all of it.
    let hint = wrong["hint"].as_str().expect("a hint");
    sh(hint.strip_prefix("to fix them: ").expect("commands"));
    assert_eq!(owners(0)["verdict"], "ok");
    let dry = sandbox.run(["restore", &place, "--target", &target, "--dry-run"]).ok();
    assert!(!dry.all_output().contains("owners and "), "{}", dry.all_output());
}

#[test]
fn directories_above_parts_must_be_accessible() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let sh = |command: &str| {
        Run::limited("sh").args(["-c", command]).within(gitlab.root()).run().ok();
    };
    let inspect = || configured(&sandbox, ["inspect", "--instance", "forge"]).run();
    for dir in ["git-data", "gitlab-rails", "gitlab-rails/shared", "redis", "../../../mnt/storage2"]
    {
        sh(&format!(
            "cd {DATA}; stat -c '%u:%g %a' {dir} >owner; chown 0:0 {dir}; chmod 700 {dir}"
        ));
        let printed = inspect().ends_with(3).all_output();
        assert!(printed.contains("belongs to root:root with mode 0700: git"), "{dir}: {printed}");
        let fix = printed.lines().find_map(|line| line.trim().strip_prefix("to fix them: "));
        sh(fix.expect("a command"));
        inspect().ok();
        sh(&format!(
            "cd {DATA}; read owner mode <owner; chown $owner {dir}; chmod $mode {dir}; rm owner"
        ));
    }
    sh(&format!("chmod o+w {DATA}/gitlab-rails"));
    let printed = inspect().ends_with(3).all_output();
    assert!(printed.contains("gitlab-rails has mode 0702: any user can write to it"), "{printed}");
    // The sticky bit protects the entries, as in `/tmp`.
    sh(&format!("chmod +t {DATA}/gitlab-rails"));
    inspect().ok();
}

#[test]
fn keys_readable_by_others_are_reported() {
    need_root();
    let gitlab = Builder::new().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let sh = |command: &str| {
        Run::limited("sh").args(["-c", command]).within(gitlab.root()).run().ok();
    };
    sh("mkdir -p etc/ssh; touch etc/ssh/ssh_host_rsa_key; chmod 0644 etc/ssh/ssh_host_rsa_key");
    sh("chmod 0640 etc/gitlab/gitlab-secrets.json; chmod 0664 var/opt/gitlab/.ssh/authorized_keys");
    let printed =
        configured(&sandbox, ["inspect", "--instance", "forge"]).run().ends_with(3).all_output();
    for words in
        ["3 have a wrong mode", "others can read the keys", "private key that others", "chmod 0600"]
    {
        assert!(printed.contains(words), "{words}: {printed}");
    }
}
