//! Owners and modes of an instance: inspections report them, and dry restores count them.

use crate::support::gitlab::{Builder, DATA, Gitlab};
use crate::support::instance::{backup, configure, configured, lines, summary};
use crate::support::sandbox::{FORGEKEEP, Outcome, Run, Sandbox, need_root};
use std::os::unix::fs::PermissionsExt;

/// A machine with a GitLab, and the configuration of its backups.
struct Machine {
    gitlab: Gitlab,
    sandbox: Sandbox,
}

impl Machine {
    fn new() -> Machine {
        need_root();
        let (gitlab, sandbox) = (Builder::new().build(), Sandbox::new());
        configure(&sandbox, &gitlab, "");
        Machine { gitlab, sandbox }
    }

    /// Runs a shell command in the root of the machine.
    fn sh(&self, command: &str) {
        Run::limited("sh").args(["-c", command]).within(self.gitlab.root()).run().ok();
    }

    fn inspect(&self) -> Outcome {
        configured(&self.sandbox, ["inspect", "--instance", "forge"]).run()
    }
}

/// Returns the command that an inspection printed.
fn fix(printed: &str) -> Option<&str> {
    printed.lines().find_map(|line| line.trim().strip_prefix("to fix them: "))
}

#[test]
fn wrong_owners_of_the_bundled_mattermost_are_reported_with_a_working_fix() {
    need_root();
    let gitlab = Builder::new().mattermost().build();
    let sandbox = Sandbox::new();
    configure(&sandbox, &gitlab, "");
    let owners = |code: i32| {
        let looked = configured(&sandbox, ["inspect", "--instance", "forge", "--json"]).run();
        let all = looked.ends_with(code).json();
        let found = lines(&all, "check").into_iter().find(|check| check["name"] == "owners");
        found.expect("the check").clone()
    };
    assert_eq!(owners(0)["verdict"], "ok");
    let home = gitlab.path("var/opt/gitlab/mattermost");
    sandbox.tool("chown").args(["-R", "root:root"]).args([&home]).run().ok();
    let wrong = owners(3);
    let printed = wrong.to_string();
    assert!(printed.contains("mattermost cannot read it"), "{printed}");
    assert!(printed.contains("instead of mattermost"), "{printed}");
    let hint = wrong["hint"].as_str().expect("a hint");
    let commands = hint.strip_prefix("to fix them: ").expect("commands");
    Run::limited("sh").args(["-c", commands]).run().ok();
    assert_eq!(owners(0)["verdict"], "ok");
}

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
    let owned = count(&format!("find {repositories} gitlab-rails/uploads | wc -l"));
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
    let machine = Machine::new();
    let (sh, inspect) = (|command: &str| machine.sh(command), || machine.inspect());
    for dir in ["git-data", "gitlab-rails", "gitlab-rails/shared", "redis", "../../../mnt/storage2"]
    {
        sh(&format!(
            "cd {DATA}; stat -c '%u:%g %a' {dir} >owner; chown 0:0 {dir}; chmod 700 {dir}"
        ));
        let printed = inspect().ends_with(3).all_output();
        assert!(printed.contains("belongs to root:root with mode 0700: git"), "{dir}: {printed}");
        sh(fix(&printed).expect("a command"));
        inspect().ok();
        sh(&format!(
            "cd {DATA}; read owner mode <owner; chown $owner {dir}; chmod $mode {dir}; rm owner"
        ));
    }
    sh(&format!("chmod o+w {DATA}/gitlab-rails"));
    let printed = inspect().ends_with(3).all_output();
    assert!(printed.contains("gitlab-rails has mode 0757: any user can write to it"), "{printed}");
    // The sticky bit protects the entries, as in `/tmp`.
    sh(&format!("chmod +t {DATA}/gitlab-rails"));
    inspect().ok();
}

#[test]
fn keys_readable_by_others_are_reported() {
    let machine = Machine::new();
    let sh = |command: &str| machine.sh(command);
    sh("mkdir -p etc/ssh; touch etc/ssh/ssh_host_rsa_key; chmod 0644 etc/ssh/ssh_host_rsa_key");
    sh("chmod 0640 etc/gitlab/gitlab-secrets.json; chmod 0664 var/opt/gitlab/.ssh/authorized_keys");
    let printed = machine.inspect().ends_with(3).all_output();
    for words in
        ["3 have a wrong mode", "others can read the keys", "private key that others", "chmod 0600"]
    {
        assert!(printed.contains(words), "{words}: {printed}");
    }
}

#[test]
fn a_directory_that_redis_cannot_write_to_is_reported_with_a_working_fix() {
    let machine = Machine::new();
    machine.sh(&format!("chown root:root {DATA}/redis"));
    let printed = machine.inspect().ends_with(3).all_output();
    assert!(printed.contains("gitlab-redis cannot write to it"), "{printed}");
    machine.sh(fix(&printed).expect("a command"));
    machine.inspect().ok();
    machine.sh(&format!("test $(stat -c %U {DATA}/redis) = gitlab-redis"));
}

#[test]
fn an_access_list_causes_no_false_alarm() {
    let machine = Machine::new();
    // As `setfacl -m u:git:x` on a directory of mode 0700.
    machine.sh("chmod 0710 mnt; setfacl -m u:git:x mnt");
    machine.inspect().ok();
}

#[test]
fn a_service_that_cannot_reach_its_data_is_reported() {
    let machine = Machine::new();
    let sh = |command: &str| machine.sh(&format!("cd {DATA}; {command}"));
    let inspect = || machine.inspect();
    let mend = |printed: &str| {
        sh(fix(printed).expect("a command"));
        inspect().ok();
    };
    inspect().ok();
    // The registry has an account of its own.
    for dir in ["gitlab-rails/shared", "gitlab-rails"] {
        sh(&format!("chmod 0700 {dir}"));
        let printed = inspect().ends_with(3).all_output();
        assert!(printed.contains("with mode 0700: registry cannot enter it"), "{dir}: {printed}");
        assert!(printed.contains(" 1 are directories above parts"), "{dir}: {printed}");
        mend(&printed);
    }
    // It passes the directory of a link, and those of another part.
    sh(
        "mkdir -p gitlab-rails/uploads/away; mv gitlab-rails/shared/registry gitlab-rails/uploads/away",
    );
    sh("chown git:git gitlab-rails/uploads/away; chmod 0700 gitlab-rails/uploads/away");
    sh("ln -s ../uploads/away/registry gitlab-rails/shared/registry");
    let printed = inspect().ends_with(3).all_output();
    for dir in ["gitlab-rails/uploads belongs", "gitlab-rails/uploads/away belongs"] {
        assert!(printed.contains(dir), "{dir}: {printed}");
    }
    sh(
        "rm gitlab-rails/shared/registry; mv gitlab-rails/uploads/away/registry gitlab-rails/shared",
    );
    sh(
        "mkdir gitlab-rails/images; chmod 755 gitlab-rails/images; chown registry gitlab-rails/images",
    );
    sh("mv gitlab-rails/shared/registry gitlab-rails/images; chmod 0700 gitlab-rails/shared");
    sh("ln -s ../images/registry gitlab-rails/shared/registry");
    let printed = inspect().ends_with(3).all_output();
    assert!(printed.contains("registry cannot enter it"), "{printed}");
    mend(&printed);
    // GitLab reads its configuration.
    sh("chown root:root gitlab-rails/etc; chmod 0700 gitlab-rails/etc");
    let printed = inspect().ends_with(3).all_output();
    assert!(
        printed.contains("gitlab-rails/etc belongs to root:root with mode 0700: git"),
        "{printed}"
    );
    mend(&printed);
}

#[test]
fn each_printed_command_mends_its_fault() {
    let machine = Machine::new();
    let (sh, inspect) = (|command: &str| machine.sh(command), || machine.inspect());
    sh("mkdir -p etc/ssh; touch etc/ssh/ssh_host_rsa_key; chmod 0600 etc/ssh/ssh_host_rsa_key");
    inspect().ok();
    let repositories = "var/opt/gitlab/git-data/repositories";
    let shared = "var/opt/gitlab/gitlab-rails/shared";
    for fault in [
        "chmod 0777 etc/gitlab",
        "chmod 0077 etc/gitlab/ssl",
        "chmod 0000 etc/gitlab/ssl/gitlab.example.com.crt etc/gitlab/gitlab.rb",
        "chmod 0646 etc/gitlab/ssl/gitlab.example.com.key",
        "mkdir etc/gitlab/old.key; chmod 0777 etc/gitlab/old.key",
        "chmod 0066 etc/gitlab/gitlab-secrets.json; chown git etc/gitlab/gitlab-secrets.json",
        "chmod 0666 etc/gitlab/gitlab.rb",
        "chmod 0777 etc/ssh; chmod 0640 etc/ssh/ssh_host_rsa_key; chmod g+w etc/ssh/ssh_host_rsa_key",
        "chmod 0000 etc/ssh",
        "chmod 0722 var/opt/gitlab/.ssh; chmod 0022 var/opt/gitlab/.ssh/authorized_keys",
        "chmod 0777 var/opt/gitlab/gitlab-rails/uploads",
        "chmod 0500 var/opt/gitlab/gitlab-rails/uploads",
        &format!("chmod 0702 {repositories}"),
        &format!("chmod 0500 {repositories}/@hashed; chmod 0000 {repositories}/.gitaly-metadata"),
        &format!("chmod 1777 {shared}/artifacts; chmod -R 0007 {shared}/lfs-objects"),
        &format!("chown -R root:root {shared}/registry; chmod -R 0755 {shared}/registry"),
        "chmod 0702 var/opt/gitlab/git-data; chown root:root var/opt/gitlab/git-data",
        "chmod 0722 var/opt/gitlab/redis; chown root:root var/opt/gitlab/redis",
    ] {
        sh(fault);
        let printed = inspect().ends_with(3).all_output();
        sh(fix(&printed).unwrap_or_else(|| panic!("{fault}: no command: {printed}")));
        let mended = inspect();
        assert!(mended.code() == Some(0), "{fault}: {printed}: {}", mended.all_output());
    }
}

#[test]
fn a_configuration_that_gitlab_cannot_read_is_reported_with_a_working_fix() {
    let machine = Machine::new();
    let files =
        ["gitlab-rails/etc/database.yml", "gitlab-rails/etc/gitlab.yml", "gitaly/config.toml"];
    for file in files {
        machine.sh(&format!("chown root:root {DATA}/{file}; chmod 600 {DATA}/{file}"));
    }
    let printed = machine.inspect().ends_with(3).all_output();
    for file in files {
        let text = format!("{file} belongs to root:root with mode 0600: git cannot read it");
        assert!(printed.contains(&text), "{text} is not in {printed}");
    }
    machine.sh(fix(&printed).expect("a command"));
    machine.inspect().ok();
}

#[test]
fn a_closed_directory_above_the_databases_is_named_at_once() {
    let machine = Machine::new();
    machine.sh(&format!("chmod 700 {DATA}"));
    let started = std::time::Instant::now();
    let printed = machine.inspect().ends_with(3).all_output();
    assert!(started.elapsed() < std::time::Duration::from_secs(60), "{printed}");
    assert!(
        printed.contains("gitlab-psql cannot enter it") || printed.contains("git cannot enter it"),
        "{printed}"
    );
    assert!(printed.contains("cannot query the databases"), "{printed}");
    machine.sh(fix(&printed).expect("a command"));
    machine.inspect().ok();
}

/// Makes data of docker-gitlab with the owners of its container.
fn image_data(sandbox: &Sandbox) {
    let script = "mkdir -p data/repositories/@hashed/aa data/uploads/u data/shared/lfs-objects data/tmp \
         data/.ssh data/ssh && git init -q --bare data/repositories/@hashed/aa/a.git && \
         echo u > data/uploads/u/f && ln -s /etc/passwd data/uploads/link && \
         echo 17.5.1 > data/tmp/VERSION && echo k > data/.ssh/authorized_keys && \
         echo k > data/ssh/ssh_host_rsa_key && chmod 0600 data/ssh/ssh_host_rsa_key && \
         chown -Rh 1000:1000 data && chown -R 0:0 data/ssh && \
         chmod -R ug+rwX,o-rwx data/repositories && chmod -R go-rwx data/.ssh && \
         find data/repositories -type d -exec chmod g+s {} + && chmod 0700 data/uploads && \
         chown 0:0 data";
    sandbox.tool("sh").args(["-c", script]).run().ok();
}

fn states(sandbox: &Sandbox, dir: &str) -> String {
    let script = format!("cd {dir} && find . -printf '%p %m %U:%G\\n' | sort");
    sandbox.tool("sh").args(["-c", &script]).run().ok().stdout
}

#[test]
fn a_copy_made_by_root_is_diagnosed_and_repaired() {
    need_root();
    let sandbox = Sandbox::new();
    image_data(&sandbox);
    let inspect = |dir: &str| sandbox.run(["inspect", "--as", "docker-gitlab", dir]);
    inspect("data").ok();
    let right = states(&sandbox, "data");
    sandbox.tool("cp").args(["-R", "data", "copy"]).run().ok();
    let copied = states(&sandbox, "copy");
    let wrong = inspect("copy").ends_with(3).all_output();
    for words in ["have a wrong owner", "without setgid", "repair owners", "instead of 1000:1000"] {
        assert!(wrong.contains(words), "{words}: {wrong}");
    }
    let repair = ["repair", "owners", "--as", "docker-gitlab", "copy"];
    let dry = sandbox.forgekeep(repair).args(["--dry-run"]).run().ok();
    assert!(dry.stdout.contains("would change owner or mode of"), "{}", dry.stdout);
    assert_eq!(states(&sandbox, "copy"), copied);
    sandbox.forgekeep(repair).args(["--write-owner-map", "undo.map"]).run().ok();
    assert_eq!(states(&sandbox, "copy"), right);
    inspect("copy").ok();
    // A second repair has nothing to do, and leaves no file behind.
    let again = sandbox.forgekeep(repair).args(["--write-owner-map", "none.map"]).run().ok();
    assert!(again.stdout.contains("changed owner or mode of 0 of"), "{}", again.stdout);
    assert!(!sandbox.has("none.map"));
    let undo = ["--owner-map", "undo.map", "--write-owner-map", "redo.map"];
    sandbox.forgekeep(repair).args(undo).run().ok();
    assert_eq!(states(&sandbox, "copy"), copied);
}

#[test]
fn a_restore_sets_the_owners_of_the_product() {
    need_root();
    let sandbox = Sandbox::with_store();
    image_data(&sandbox);
    let right = states(&sandbox, "data");
    sandbox.tool("cp").args(["-R", "data", "copy"]).run().ok();
    sandbox.backup(["copy"]);
    let place = sandbox.at("latest", "copy");
    let restore = ["restore", &place, "--target", "restored", "--as", "docker-gitlab"];
    sandbox.run(restore).ok();
    assert_eq!(states(&sandbox, "restored"), right);
    sandbox.run(["inspect", "--as", "docker-gitlab", "restored"]).ok();
    let other = ["restore", &place, "--target", "other", "--as", "docker-gitlab=1005:1006"];
    sandbox.run(other).ok();
    assert!(states(&sandbox, "other").contains("./uploads/u/f 644 1005:1006"));
    sandbox
        .run(["restore", &place, "--target", "none", "--as", "mattermost"])
        .fails(1, &["the snapshot has no data of mattermost"]);
    let plain = sandbox.run(["restore", &place, "--target", "none", "--as", "plain"]);
    assert!(plain.ends_with(2).all_output().contains("known kinds are"));
}

/// Accounts must also enter the directory with all data, and those above the parts.
#[test]
fn closed_directories_above_parts_are_found_and_opened() {
    need_root();
    let sandbox = Sandbox::with_store();
    for name in ["git-data/repositories/a.git/HEAD", "gitlab-rails/uploads/b", "gitaly/config.toml"]
    {
        sandbox.write(&format!("copy/{name}"), "");
    }
    sandbox.tool("chmod").args(["-R", "u=rwX,go=", "copy"]).run().ok();
    sandbox.backup(["copy"]);
    sandbox.tool("chmod").args(["-R", "a+X", "copy/git-data", "copy/gitlab-rails"]).run().ok();
    let kind = "gitlab=998:998";
    let found = sandbox.run(["inspect", "--as", kind, "copy"]).ends_with(3).all_output();
    let top = format!("{} belongs to root:root with mode 0700: ", sandbox.text("copy"));
    assert!(found.contains(&top), "{found}");
    sandbox.run(["repair", "owners", "--as", kind, "copy"]).ok();
    sandbox.run(["inspect", "--as", kind, "copy"]).ok();

    let restore = ["restore", &sandbox.at("latest", "copy"), "--target", "restored", "--as", kind];
    sandbox.run(restore).ok();
    let mode = |name: &str| {
        let mode = sandbox.path(name).metadata().expect("is there").permissions().mode() & 0o7777;
        format!("{mode:04o}")
    };
    assert_eq!(mode("restored/git-data"), "0711");
    assert_eq!(mode("restored/gitlab-rails"), "0711");
    sandbox.tool("chmod").args(["a+x", "restored"]).run().ok();
    sandbox.run(["inspect", "--as", kind, "restored"]).ok();
}

#[test]
fn a_repair_follows_no_link_that_appears_meanwhile() {
    need_root();
    let sandbox = Sandbox::new();
    let script = "mkdir -p data/repositories outside && for i in $(seq 300); do \
         mkdir -p data/repositories/d$i/inner && touch data/repositories/d$i/inner/f; done && \
         mkdir -p outside/inner && touch outside/inner/f && chmod 0600 outside/inner/f";
    sandbox.tool("sh").args(["-c", script]).run().ok();
    let before = states(&sandbox, "outside");
    // As the owner of a repository may do at any time.
    let swap = "cd data/repositories && while :; do for i in 7 77 150 222 299; do \
         mv d$i x$i && ln -s ../../outside d$i && rm d$i && mv x$i d$i; done; done";
    let mut swapping = sandbox.tool("sh").args(["-c", swap]).start();
    for round in 0..20 {
        let numbers = format!("docker-gitlab={}:1000", 1000 + round);
        let map = format!("{round}.map");
        let repair = ["repair", "owners", "--as", &numbers, "data", "--write-owner-map", &map];
        sandbox.run(repair);
    }
    swapping.kill();
    assert_eq!(states(&sandbox, "outside"), before);
}

#[test]
fn a_linked_directory_of_a_storage_needs_no_mode_of_the_top() {
    let machine = Machine::new();
    machine.inspect().ok();
    // As Gitaly makes it: the top of a storage has another mode.
    machine.sh("chmod 2750 var/opt/gitlab/git-data/repositories/@groups; mkdir -p mnt/disk
         mv var/opt/gitlab/git-data/repositories/@groups mnt/disk/groups
         ln -s /mnt/disk/groups var/opt/gitlab/git-data/repositories/@groups
         chown -h git:git var/opt/gitlab/git-data/repositories/@groups");
    machine.inspect().ok();
}

#[test]
fn the_rules_of_a_repair_undo_it_exactly() {
    need_root();
    let sandbox = Sandbox::new();
    let script = "d=root/var/opt/gitlab; mkdir -p $d/git-data/repositories/a/x.git \
         $d/git-data/repositories/@pools/p $d/gitlab-rails/uploads/u $d/gitlab-rails/shared/s && \
         echo x > $d/gitlab-rails/uploads/u/f && touch $d/gitlab-rails/uploads/'line\nbreak' && \
         find root -type d -exec chmod 0750 {} + && chmod 0777 $d && \
         chown -R 33:44 $d/git-data/repositories/@pools";
    sandbox.tool("sh").args(["-c", script]).run().ok();
    let before = states(&sandbox, "root");
    let repair = ["repair", "owners", "--as", "gitlab=998:998", "root"];
    sandbox.forgekeep(repair).args(["--write-owner-map", "undo"]).run().ok();
    assert_ne!(states(&sandbox, "root"), before);
    let undo = ["--owner-map", "undo", "--write-owner-map", "redo"];
    sandbox.forgekeep(repair).args(undo).run().ok();
    assert_eq!(states(&sandbox, "root"), before);
}

#[test]
fn a_repair_changes_nothing_outside_of_its_directories() {
    need_root();
    let sandbox = Sandbox::new();
    let script = "mkdir -p d/repositories d/uploads others/shared && echo x > others/shared/tool && \
         echo x > secret && ln secret d/uploads/name && ln -s ../others/shared d/shared && \
         mkdir -p plain/tmp plain/.ssh && echo x > plain/.ssh/key";
    sandbox.tool("sh").args(["-c", script]).run().ok();
    let states = |dir: &str| states(&sandbox, dir);
    let (others, plain) = (states("others"), states("plain"));
    let repair = |dir: &str| sandbox.run(["repair", "owners", "--as", "docker-gitlab", dir]);
    let done = repair("d").ends_with(3).all_output();
    assert!(done.contains("another name outside"), "{done}");
    assert!(done.contains("d/shared is a link"), "{done}");
    assert_eq!(states("others"), others);
    let owner = sandbox.tool("stat").args(["-c", "%u", "secret"]).run().ok().stdout;
    assert_eq!(owner.trim(), "0");
    // A directory of something else is not taken for the product.
    repair("plain").fails(1, &["has no data of docker-gitlab"]);
    assert_eq!(states("plain"), plain);
}

#[test]
fn a_link_of_the_service_does_not_lead_a_repair_or_a_backup_elsewhere() {
    let machine = Machine::new();
    machine.sh("mkdir mnt/private; echo secret > mnt/private/key; chmod 0600 mnt/private/key
         ln -s /mnt/private/key var/opt/gitlab/gitlab-rails/uploads/link
         chown -h git:git var/opt/gitlab/gitlab-rails/uploads/link");
    let printed = machine.inspect().all_output();
    assert!(!printed.contains("chown"), "{printed}");
    let repair = ["repair", "owners", "--instance", "forge"];
    configured(&machine.sandbox, repair).run().ok();
    machine.sh("test $(stat -c %U mnt/private/key) = root");
    let saved = backup(&machine.sandbox).run().all_output();
    assert!(saved.contains("which is not copied because of its owner"), "{saved}");
}

#[test]
fn the_directories_of_gitaly_itself_belong_to_git() {
    let machine = Machine::new();
    let storage = format!("{DATA}/git-data/repositories");
    machine.inspect().ok();
    machine.sh(&format!("chown -R root:root {storage}"));
    let repair = || configured(&machine.sandbox, ["repair", "owners", "--instance", "forge"]);
    repair().run().ok();
    machine.inspect().ok();
    machine.sh(&format!(
        "setpriv --reuid git --regid git --clear-groups mkdir {storage}/+gitaly/tmp/x"
    ));
    machine.sh(&format!("chown root:root {storage}/+gitaly/tmp"));
    let printed = machine.inspect().ends_with(3).all_output();
    assert!(printed.contains("+gitaly/tmp belongs to root:root instead of git"), "{printed}");
}

#[test]
fn storages_and_settings_of_a_copy_are_looked_at() {
    need_root();
    let (gitlab, sandbox) = (Builder::new().build(), Sandbox::new());
    // Without owners.
    let root = gitlab.root().display().to_string();
    sandbox.tool("cp").args(["-R", &root, "copy"]).run().ok();
    let sh = |command: &str| sandbox.tool("sh").args(["-c", command]).run().ok().stdout;
    sh("chmod 0600 copy/var/opt/gitlab/gitlab-rails/etc/database.yml");
    let run = |what: &str| {
        let words: Vec<&str> = what.split(' ').collect();
        sandbox.forgekeep(words).args(["--as", "gitlab", "copy"]).run()
    };
    let printed = run("inspect").ends_with(3).all_output();
    assert!(printed.contains("chgrp git ") && printed.contains("/etc/database.yml"), "{printed}");
    run("repair owners").ok();
    let printed = run("inspect").all_output();
    assert!(printed.contains("paths are correct"), "{printed}");
    assert_eq!(sh("stat -c %U:%a copy/mnt/storage2/repositories").trim(), "git:2770");
    let settings = "copy/var/opt/gitlab/gitlab-rails/etc/database.yml";
    assert_eq!(sh(&format!("stat -c %U:%G:%a {settings}")).trim(), "root:git:640");
    assert_eq!(sh("stat -c %U copy/mnt/storage2/repositories/+gitaly/tmp").trim(), "git");
    // A restore with the same rules leaves nothing to repair.
    sandbox.run(["init"]).ok();
    sandbox.tool("chown").args(["-R", "root:root", "copy"]).run().ok();
    sandbox.backup(["copy"]);
    let place = sandbox.at("latest", "copy");
    sandbox.run(["restore", &place, "--target", "restored", "--as", "gitlab"]).ok();
    let printed = sandbox.run(["inspect", "--as", "gitlab", "restored"]).all_output();
    assert!(printed.contains("paths are correct"), "{printed}");
    sh("rm -r copy/mnt/storage2");
    let printed = run("inspect").ends_with(3).all_output();
    assert!(printed.contains("repositories-storage2 is missing at "), "{printed}");
}

#[test]
fn the_registry_of_the_image_has_its_own_number() {
    need_root();
    let sandbox = Sandbox::new();
    let script = "d=data/gitlab-rails/shared; mkdir -p $d/registry/docker data/git-data/repositories \
         data/gitlab-rails/uploads data/gitlab-rails/etc && \
         chown -R 998:998 data/git-data data/gitlab-rails && \
         chown -R 993:998 $d/registry && chmod 2770 data/git-data/repositories && \
         chmod 0700 data/gitlab-rails/uploads data/git-data";
    sandbox.tool("sh").args(["-c", script]).run().ok();
    let run =
        |words: &[&str], kind: &str| sandbox.forgekeep(words).args(["--as", kind, "data"]).run();
    let kind = "gitlab-container";
    run(&["inspect"], kind).ok();
    let right = states(&sandbox, "data");
    sandbox.tool("chown").args(["-R", "0:0", "data"]).run().ok();
    let printed = run(&["inspect"], kind).ends_with(3).all_output();
    assert!(printed.contains("git-data belongs to root:root with mode 0700"), "{printed}");
    run(&["repair", "owners"], kind).ok();
    run(&["inspect"], kind).ok();
    for line in right.lines().filter(|line| line.contains("registry")) {
        assert!(states(&sandbox, "data").contains(line), "{line}");
    }
    // Another account of GitLab says nothing about that of the registry.
    let printed = run(&["inspect"], "gitlab-container=1000:1000").ends_with(3).all_output();
    assert!(printed.contains("belongs to account registry of the container"), "{printed}");
}

#[test]
fn settings_that_mattermost_cannot_read_are_repaired() {
    need_root();
    let sandbox = Sandbox::new();
    let script = "mkdir -p m/data m/plugins m/client/plugins m/config && \
         echo '{}' >m/config/config.json && chmod 0600 m/config/config.json";
    sandbox.tool("sh").args(["-c", script]).run().ok();
    let run = |words: &[&str]| sandbox.forgekeep(words).args(["--as", "mattermost", "m"]).run();
    let printed = run(&["inspect"]).ends_with(3).all_output();
    assert!(printed.contains("mattermost cannot read it"), "{printed}");
    run(&["repair", "owners"]).ok();
    run(&["inspect"]).ok();
    let owner = sandbox.tool("stat").args(["-c", "%U:%a", "m/config/config.json"]).run().ok();
    assert_eq!(owner.stdout.trim(), "mattermost:600");
}

#[test]
fn a_directory_of_redis_that_is_closed_to_gitlab_is_reported_with_a_working_fix() {
    let machine = Machine::new();
    machine.sh(&format!("chgrp gitlab-redis {DATA}/redis"));
    let printed = machine.inspect().ends_with(3).all_output();
    assert!(printed.contains("git cannot reach the socket in it"), "{printed}");
    machine.sh(fix(&printed).expect("a command"));
    machine.inspect().ok();
    machine.sh(&format!("test $(stat -c %U:%G {DATA}/redis) = gitlab-redis:git"));
}

#[test]
fn a_home_that_sshd_refuses_is_reported_with_a_working_fix() {
    let machine = Machine::new();
    machine.sh(&format!("chown root:root {DATA}; chmod 755 {DATA}"));
    machine.inspect().ok();
    for (change, words) in [
        ("chmod 775", "that others can write to"),
        ("chown gitlab-redis", "unless that is root or git"),
    ] {
        machine.sh(&format!("{change} {DATA}"));
        let printed = machine.inspect().ends_with(3).all_output();
        assert!(printed.contains(words), "{printed}");
        machine.sh(fix(&printed).expect("a command"));
        machine.inspect().ok();
    }
}

#[test]
fn data_that_the_database_server_cannot_open_is_reported_and_repaired() {
    let mut machine = Machine::new();
    let data = format!("{DATA}/postgresql/data");
    machine.inspect().ok();
    machine.gitlab.postgres.stop();
    machine.sh(&format!("chown -R root:root {data}; chmod 755 {data}"));
    let started = std::time::Instant::now();
    let printed = machine.inspect().ends_with(3).all_output();
    assert!(started.elapsed() < std::time::Duration::from_secs(60), "{printed}");
    for words in ["data belongs to root:root instead of gitlab-psql", "PostgreSQL does not start"] {
        assert!(printed.contains(words), "{words}: {printed}");
    }
    let repair = ["repair", "owners", "--instance", "forge", "--write-owner-map", "undo.map"];
    configured(&machine.sandbox, repair).run().ok();
    machine.sh(&format!("test $(stat -c %U-%a {data}) = gitlab-psql-750"));
    machine.sh(&format!("test -z \"$(find {data} ! -user gitlab-psql)\""));
    // The same in a copy.
    machine.sh(&format!("chown -R root:root {data}"));
    let copy = machine.gitlab.root().join(DATA).display().to_string();
    let looked = machine.sandbox.run(["inspect", "--as", "gitlab", &copy]).ends_with(3);
    let printed = looked.all_output();
    assert!(printed.contains("data belongs to root:root instead of gitlab-psql"), "{printed}");
}

#[test]
fn a_store_inside_a_part_is_left_alone() {
    let machine = Machine::new();
    let (gitlab, sandbox) = (&machine.gitlab, &machine.sandbox);
    let store = gitlab.path("mnt/storage2/repositories/backups");
    let text = std::fs::read_to_string(sandbox.path("forgekeep.toml")).expect("reads");
    let text = text.replace(&sandbox.text("store"), &store.display().to_string());
    // So are the records of backups, and the configuration.
    let state = gitlab.path("var/opt/gitlab/gitlab-rails/uploads/state");
    let text = text.replace(&sandbox.text("state"), &state.display().to_string());
    let config = gitlab.path("var/opt/gitlab/gitlab-rails/uploads/forgekeep.toml");
    std::fs::write(&config, text).expect("writes");
    std::fs::create_dir_all(&state).expect("a directory");
    machine.sh(&format!("chown root {0}; chmod 600 {0}", config.display()));
    let run = |arguments: &[&str]| {
        let run = sandbox.forgekeep(["--config"]).args([&config]);
        run.args(arguments).without_env("FORGEKEEP_STORE").run()
    };
    run(&["backup", "--instance", "forge", "--init"]).ok();
    run(&["inspect", "--instance", "forge"]).ok();
    let repair = ["repair", "owners", "--instance", "forge", "--write-owner-map", "undo.map"];
    run(&repair).ok();
    let data = gitlab.path(DATA).display().to_string();
    run(&["repair", "owners", "--as", "gitlab", &data, "--write-owner-map", "other.map"]).ok();
    for own in [&store, &state, &config] {
        let owner = std::os::unix::fs::MetadataExt::uid(&own.metadata().expect("is there"));
        assert_eq!(owner, 0, "{}", own.display());
    }
}

#[test]
fn hooks_that_are_not_executable_are_named_and_stay_so() {
    let machine = Machine::new();
    let (gitlab, sandbox) = (&machine.gitlab, &machine.sandbox);
    let inspect = || machine.inspect().ok().all_output();
    assert!(!inspect().contains("do not run"));
    let mut all = gitlab.repositories.iter();
    let repository = &all.find(|known| known.project == Some(1)).expect("is known").dir;
    let server = gitlab.path("var/opt/gitlab/gitaly/custom_hooks");
    let rails = gitlab.path("opt/gitlab/embedded/service/gitlab-rails");
    let make = |path: &std::path::Path, mode: u32| {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
        std::fs::write(path, "#!/bin/sh\n").expect("writes");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("its mode");
    };
    let off = [
        repository.join("custom_hooks/update"),
        server.join("pre-receive.d/check"),
        rails.join("file_hooks/notify.rb"),
    ];
    off.iter().for_each(|path| make(path, 0o640));
    for path in
        [repository.join("custom_hooks/pre-receive.d/10-size"), server.join("update.d/names")]
    {
        make(&path, 0o750);
    }
    // These never run.
    for path in [
        repository.join("custom_hooks/README"),
        repository.join("custom_hooks/pre-receive.d/10-size~"),
        server.join("README"),
    ] {
        make(&path, 0o640);
    }
    let custom = repository.join("custom_hooks").display().to_string();
    machine.sh(&format!(
        "chown -R git:git '{custom}' && find '{custom}' -type d -exec chmod 2750 {{}} +"
    ));
    let printed = inspect();
    let (_, named) = printed.split_once("not executable do not run: ").expect(&printed);
    let named = named.lines().next().expect("a line");
    assert_eq!(named.split(", ").count(), 3, "{named}");
    for path in &off {
        assert!(named.contains(&path.display().to_string()), "{named}");
    }
    // A repair of other faults does not switch them on.
    machine.sh(&format!("chmod -R a-x,u-r '{custom}'"));
    machine.inspect().ends_with(3);
    configured(sandbox, ["repair", "owners", "--instance", "forge", "--write-owner-map"])
        .args([sandbox.text("undo")])
        .run()
        .ok();
    for path in &off {
        let mode = path.metadata().expect("is there").permissions().mode();
        assert!(mode & 0o111 == 0 && mode & 0o400 != 0, "{} {mode:o}", path.display());
    }
}

/// Makes data of GitLab's package below `d`, with the accounts of this machine.
fn package_data(sandbox: &Sandbox) {
    let script = "umask 022; mkdir -p d/etc/gitlab d/var/opt/gitlab && chmod 755 . d && cd d/var/opt/gitlab && \
         mkdir -p git-data/repositories gitlab-rails/uploads gitlab-rails/shared/artifacts \
         gitlab-rails/shared/registry/docker && cd ../../../etc/gitlab && \
         echo {} > gitlab-secrets.json && touch gitlab.rb && chmod 600 *";
    sandbox.tool("sh").args(["-c", script]).run().ok();
}

/// Runs a shell command in a directory.
fn sh(sandbox: &Sandbox, command: &str) -> String {
    sandbox.tool("sh").args(["-c", command]).run().ok().stdout
}

#[test]
fn repositories_and_keys_are_closed_to_others() {
    need_root();
    let sandbox = Sandbox::with_store();
    image_data(&sandbox);
    let right = states(&sandbox, "data");
    sh(&sandbox, "cp -a data open && chmod -R a+rX open/repositories open/.ssh");
    sh(&sandbox, "chmod 2775 open/repositories && chmod 2755 open/repositories/@hashed");
    sh(&sandbox, "chmod 6755 open/repositories/@hashed/aa/a.git/description");
    let inspect = || sandbox.run(["inspect", "--as", "docker-gitlab", "open"]);
    let found = inspect().ends_with(3).all_output();
    assert!(found.contains("repositories has mode 2775: GitLab requires 2770"), "{found}");
    sandbox.backup(["open"]);
    sandbox.run(["repair", "owners", "--as", "docker-gitlab", "open"]).ok();
    let place = sandbox.at("latest", "open");
    sandbox.run(["restore", &place, "--target", "restored", "--as", "docker-gitlab"]).ok();
    // The product's own repair keeps the right to execute.
    let right = right.replace("/description 660", "/description 770");
    assert_eq!(states(&sandbox, "open"), right);
    assert_eq!(states(&sandbox, "restored"), right);
    // The top keeps others out, so that modes below it are no faults.
    sh(&sandbox, "chmod -R o+rX open/repositories/@hashed");
    inspect().ok();
}

#[test]
fn a_repair_reports_owners_that_a_file_system_ignores() {
    need_root();
    let sandbox = Sandbox::new();
    package_data(&sandbox);
    sh(&sandbox, "touch d/var/opt/gitlab/gitlab-rails/uploads/tool");
    sh(&sandbox, "chmod 6755 d/var/opt/gitlab/gitlab-rails/uploads/tool");
    let strace =
        "strace -f -q -o /dev/null -e trace=fchownat -e inject=fchownat:retval=0".split(' ');
    let repair = [FORGEKEEP, "repair", "owners", "--as", "gitlab", "d"];
    let done = sandbox.tool("strace").args(strace.skip(1)).args(repair).run().ends_with(3);
    let printed = done.all_output();
    assert!(printed.contains("this file system ignores or changes its owner"), "{printed}");
    let found = sh(&sandbox, "stat -c %u:%a d/var/opt/gitlab/gitlab-rails/uploads/tool");
    assert_eq!(found.trim(), "0:644");
}

#[test]
fn a_restore_mends_directories_above_parts() {
    need_root();
    let sandbox = Sandbox::with_store();
    package_data(&sandbox);
    sh(&sandbox, "cd d/var/opt/gitlab && chmod 0700 gitlab-rails/shared && chmod 0777 git-data");
    sh(&sandbox, "mkdir d/var/opt/gitlab/.ssh && chown games:root d/var/opt/gitlab");
    sandbox.backup(["d"]);
    let place = sandbox.at("latest", "d");
    let restore = ["restore", &place, "--target", "r", "--as", "gitlab"];
    sandbox.run(restore).ok();
    sandbox.run(["inspect", "--as", "gitlab", "r"]).ok();
    sandbox.run(["repair", "owners", "--as", "gitlab", "d"]).ok();
    assert_eq!(states(&sandbox, "r"), states(&sandbox, "d"));
    let enter = "setpriv --reuid=registry --regid=registry --clear-groups \
                 ls r/var/opt/gitlab/gitlab-rails/shared/registry";
    sh(&sandbox, enter);
}

#[test]
fn foreign_groups_are_replaced_and_reported_if_they_have_access() {
    need_root();
    let sandbox = Sandbox::new();
    image_data(&sandbox);
    let right = states(&sandbox, "data");
    let inspect = || sandbox.run(["inspect", "--as", "docker-gitlab", "data"]);
    sh(&sandbox, "chgrp -Rh games data/uploads data/shared data/tmp");
    inspect().ok();
    sh(&sandbox, "chmod 0640 data/tmp/VERSION");
    let found = inspect().ends_with(3).all_output();
    assert!(found.contains("with mode 0640: group games has access"), "{found}");
    sandbox.run(["repair", "owners", "--as", "docker-gitlab", "data"]).ok();
    inspect().ok();
    assert_eq!(states(&sandbox, "data"), right.replace("VERSION 644", "VERSION 640"));
}

#[test]
fn one_repair_also_opens_directories_whose_owner_it_changes() {
    need_root();
    let sandbox = Sandbox::new();
    package_data(&sandbox);
    let shared = "d/var/opt/gitlab/gitlab-rails/shared";
    sh(&sandbox, &format!("chmod 0700 {shared}; chown -R registry:git {shared}"));
    let before = states(&sandbox, "d");
    let found = sandbox.run(["inspect", "--as", "gitlab", "d"]).ends_with(3).all_output();
    assert!(found.contains("registry cannot enter it once it belongs to git"), "{found}");
    let repair = ["repair", "owners", "--as", "gitlab", "d", "--write-owner-map"];
    sandbox.forgekeep(repair).args(["undo"]).run().ok();
    sandbox.run(["inspect", "--as", "gitlab", "d"]).ok();
    sandbox.forgekeep(repair).args(["redo", "--owner-map", "undo"]).run().ok();
    assert_eq!(states(&sandbox, "d"), before);
}

#[test]
fn a_file_with_names_in_parts_of_two_owners_is_named_and_left_alone() {
    need_root();
    let sandbox = Sandbox::new();
    package_data(&sandbox);
    let shared = "d/var/opt/gitlab/gitlab-rails/shared";
    let script = format!(
        "cd {shared} && echo x > artifacts/a && ln artifacts/a registry/docker/b && \
         echo y > artifacts/c && ln artifacts/c artifacts/d && chown 5000:5001 artifacts/a artifacts/c"
    );
    sh(&sandbox, &script);
    let before = states(&sandbox, "d");
    let repair = ["repair", "owners", "--as", "gitlab", "d", "--write-owner-map"];
    let done = sandbox.forgekeep(repair).args(["undo"]).run().ends_with(3).all_output();
    assert!(done.contains("in a part with another owner or mode"), "{done}");
    let owner = |name: &str| sh(&sandbox, &format!("stat -c %U:%G {shared}/{name}"));
    assert_eq!(owner("artifacts/d").trim(), "git:git");
    assert_eq!(sh(&sandbox, &format!("stat -c %u:%g {shared}/artifacts/a")).trim(), "5000:5001");
    sandbox.forgekeep(repair).args(["redo", "--owner-map", "undo"]).run().ok();
    assert_eq!(states(&sandbox, "d"), before);
}
