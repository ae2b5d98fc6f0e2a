//! Plans for instances, depending on the content of their machine.

use super::*;
use crate::overrides::plan;
use crate::settings::Settings;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use store::observe::Progress;

/// A machine with only the files that a test creates.
struct Machine(tempfile::TempDir);

impl Machine {
    /// Creates an empty machine.
    fn new() -> Machine {
        Machine(tempfile::tempdir().expect("a directory"))
    }

    /// Creates a machine with this `gitlab.yml`, and the other files of every GitLab.
    fn with(gitlab_yml: &str) -> Machine {
        let machine = Machine::new();
        machine.write("/etc/gitlab/gitlab-secrets.json", "{}");
        machine.write("/etc/gitlab/gitlab.rb", "external_url 'https://gitlab.example.com'\n");
        machine.write(GITLAB_YML, gitlab_yml);
        machine
    }

    fn at(&self, path: &str) -> PathBuf {
        below(self.0.path(), Path::new(path))
    }

    fn dir(&self, path: &str) -> PathBuf {
        let path = self.at(path);
        std::fs::create_dir_all(&path).expect("directories");
        path
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
        std::fs::write(path, text).expect("writes");
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
        symlink(target, path).expect("links");
    }

    fn plan(&self) -> Plan {
        self.plan_with("")
    }

    /// Plans with further settings.
    fn plan_with(&self, more: &str) -> Plan {
        let text = format!("kind = 'gitlab'\nroot = '{}'\n{more}", self.0.path().display());
        let settings: Settings = toml::from_str(&text).expect("settings");
        let progress = Progress::default();
        let site =
            Site { instance: "forge", settings: &settings, progress: &progress, is_offline: true };
        plan(&site).expect("a plan").0
    }

    /// Returns the paths of a part, as the instance sees them.
    fn places(&self, plan: &Plan, part: &str) -> Vec<String> {
        let root = self.0.path().canonicalize().expect("is there");
        let paths = &find(plan, part).paths;
        let own = |path: &PathBuf| path.strip_prefix(&root).map(Path::to_owned);
        let own = |path| own(path).unwrap_or_else(|_| panic!("{path:?} is not below the root"));
        paths.iter().map(|path| format!("/{}", own(path).display())).collect()
    }
}

const GITLAB_YML: &str = "/var/opt/gitlab/gitlab-rails/etc/gitlab.yml";

fn find<'a>(plan: &'a Plan, part: &str) -> &'a crate::plan::Part {
    let found = plan.parts.iter().find(|known| known.name == part);
    found.unwrap_or_else(|| panic!("there is no part {part}"))
}

fn looked_for<'a>(plan: &'a Plan, part: &str) -> &'a str {
    let found = plan.lacking.iter().find(|absent| absent.part == part);
    &found.unwrap_or_else(|| panic!("{part} is not lacking: {:?}", plan.lacking)).looked_for
}

fn has_note(plan: &Plan, words: &str) -> bool {
    plan.notes.iter().any(|note| note.contains(words))
}

#[test]
fn certificates_behind_links_are_copied() {
    let machine = Machine::with("production: {}\n");
    machine.write("/etc/letsencrypt/archive/x/privkey1.pem", "key");
    machine.link("/etc/letsencrypt/live/x/privkey.pem", "../../archive/x/privkey1.pem");
    machine.link("/etc/gitlab/ssl/x.key", "/etc/letsencrypt/live/x/privkey.pem");
    machine.write("/usr/local/share/corp.crt", "certificate");
    machine.link("/etc/gitlab/trusted-certs/corp.crt", "../../../usr/local/share/corp.crt");
    machine.link("/etc/gitlab/ssl/gone.key", "/nowhere");
    let plan = machine.plan();
    let places = machine.places(&plan, "config");
    for path in ["/etc/letsencrypt/archive/x/privkey1.pem", "/usr/local/share/corp.crt"] {
        assert!(places.iter().any(|known| known == path), "{places:?}");
    }
    assert!(has_note(&plan, "gone.key"), "{:?}", plan.notes);
}

#[test]
fn an_absolute_link_at_the_data_leads_below_the_root() {
    let machine = Machine::with(
        "production:\n  lfs:\n    storage_path: /mnt/lfs\n  artifacts: {}\n  uploads: {}\n  gitlab_ci: {}\n",
    );
    std::fs::rename(machine.at("/var/opt/gitlab"), machine.dir("/data").join("gitlab"))
        .expect("moves");
    machine.link("/var/opt/gitlab", "/data/gitlab");
    let plan = machine.plan();
    assert_eq!(machine.places(&plan, "lfs"), ["/mnt/lfs"]);
    assert_eq!(machine.places(&plan, "uploads"), ["/data/gitlab/gitlab-rails/uploads"]);
    let link = machine.0.path().canonicalize().expect("is there").join("var/opt/gitlab");
    assert!(find(&plan, "config").links.contains(&link), "{:?}", find(&plan, "config").links);
}

#[test]
fn a_server_elsewhere_gets_the_role_and_the_password_of_gitlab() {
    let machine = Machine::with("production: {}\n");
    machine.write(
        "/var/opt/gitlab/gitlab-rails/etc/database.yml",
        "production:\n  main:\n    database: gitlab\n    host: db.example.com\n    username: forge\n    \
         password: hush\n",
    );
    let plan = machine.plan();
    let server = plan.postgres.as_ref().expect("a server");
    assert_eq!(server.role.as_deref(), Some("forge"));
    assert_eq!(server.password.as_ref().map(|password| &*password.0), Some("hush"));
    assert!(!has_note(&plan, "need postgres.user"), "{:?}", plan.notes);
    assert!(!format!("{plan:?}").contains("hush"));
}

#[test]
fn hooks_and_keys_of_administrators_are_parts() {
    let gitaly = "/var/opt/gitlab/gitaly/config.toml";
    let storage = "[[storage]]\nname = 'default'\npath = '/var/opt/gitlab/git-data/repositories'\n";
    let hook = "pre-receive.d/policy";
    for (dir, more) in [
        ("/srv/hooks", "[hooks]\ncustom_hooks_dir = '/srv/hooks/'\n"),
        ("/var/opt/gitlab/gitaly/custom_hooks", ""),
    ] {
        let machine = Machine::with("production: {}\n");
        assert!(machine.plan().parts.iter().all(|part| part.name != "server-hooks"));
        machine.write(gitaly, &format!("{storage}{more}"));
        machine.write(&format!("{dir}/{hook}"), "#!/bin/sh\n");
        assert_eq!(machine.places(&machine.plan(), "server-hooks"), [dir]);
    }
    let machine = Machine::with("production: {}\n");
    machine.write("/var/opt/gitlab/gitlab-shell/config.yml", "custom_hooks_dir: /srv/older\n");
    machine.write(&format!("/srv/older/{hook}"), "#!/bin/sh\n");
    let rails = "/opt/gitlab/embedded/service/gitlab-rails";
    machine.write(&format!("{rails}/file_hooks/examples/one.rb"), "of the package");
    machine.write(&format!("{rails}/file_hooks/notify.rb"), "of the administrator");
    machine.write("/srv/key", "key");
    machine.write("/etc/gitlab/gitaly/older", "key");
    let keys =
        "[git]\nsigning_key = '/srv/key'\nrotated_signing_keys = ['/etc/gitlab/gitaly/older']\n";
    machine.write(gitaly, &format!("{storage}{keys}"));
    let plan = machine.plan();
    assert_eq!(machine.places(&plan, "server-hooks"), ["/srv/older"]);
    assert_eq!(machine.places(&plan, "file-hooks"), [format!("{rails}/file_hooks/notify.rb")]);
    // The configuration contains the other key.
    assert_eq!(machine.places(&plan, "signing-keys"), ["/srv/key"]);
}

#[test]
fn files_that_gitlab_rb_names_are_copied() {
    let machine = Machine::with("production: {}\n");
    let rb = "external_url 'https://gitlab.example.com'\nfrom_file '/srv/rb/more.rb'\n\
              nginx['ssl_certificate'] = '/etc/pki/forge.crt'\n\
              registry_nginx['ssl_certificate'] = '/etc/gitlab/ssl/inner.crt'\n\
              nginx['custom_nginx_config'] = 'include /etc/nginx/conf.d/*.conf;'\n\
              from_file '/srv/rb/gone.rb'\ngitlab_rails['backup_path'] = '/srv/dir'\n";
    machine.write("/etc/gitlab/gitlab.rb", rb);
    machine
        .write("/srv/rb/more.rb", "pages_nginx['ssl_certificate_key'] = \"/srv/keys/pages.key\"\n");
    for path in [
        "/etc/pki/live.crt",
        "/etc/gitlab/ssl/inner.crt",
        "/etc/nginx/conf.d/forge.conf",
        "/etc/nginx/conf.d/README",
        "/srv/keys/pages.key",
        "/srv/dir/file",
    ] {
        machine.write(path, "x");
    }
    machine.link("/etc/pki/forge.crt", "live.crt");
    let plan = machine.plan();
    let mut places = machine.places(&plan, "named-files");
    places.sort();
    let wanted = [
        "/etc/nginx/conf.d/forge.conf",
        "/etc/pki/live.crt",
        "/srv/keys/pages.key",
        "/srv/rb/more.rb",
    ];
    assert_eq!(places, wanted);
    assert!(has_note(&plan, "reads /srv/rb/gone.rb"), "{:?}", plan.notes);
}

#[test]
fn each_configuration_key_moves_its_directory() {
    // Part, section, keys.
    let rows: [(&str, &str, &[&str]); 12] = [
        ("uploads", "uploads", &["storage_path", "path"]),
        ("artifacts", "artifacts", &["path", "storage_path"]),
        ("external-diffs", "external_diffs", &["storage_path", "path"]),
        ("lfs", "lfs", &["storage_path", "path"]),
        ("packages", "packages", &["storage_path", "path"]),
        ("dependency-proxy", "dependency_proxy", &["storage_path", "path"]),
        ("terraform-state", "terraform_state", &["storage_path", "path"]),
        ("ci-secure-files", "ci_secure_files", &["storage_path", "path"]),
        ("pages", "pages", &["path", "storage_path"]),
        ("registry", "registry", &["path", "storage_path"]),
        ("encrypted-settings", "encrypted_settings", &["path", "storage_path"]),
        ("builds", "gitlab_ci", &["builds_path"]),
    ];
    for (part, section, keys) in rows {
        for key in keys {
            let yml = format!("production:\n  {section}:\n    {key}: /mnt/{part}\n");
            let machine = Machine::with(&yml);
            let moved =
                if part == "uploads" { "/mnt/uploads".into() } else { format!("/mnt/{part}") };
            assert_eq!(machine.places(&machine.plan(), part), [moved], "{section}.{key}");
        }
        if part != "builds" && part != "uploads" {
            let machine = Machine::with("production:\n  shared:\n    path: /mnt/shared\n");
            let places = machine.places(&machine.plan(), part);
            assert!(places[0].starts_with("/mnt/shared/"), "{part}: {places:?}");
        }
    }
    // Relative paths start at the directory of Rails, as in GitLab.
    let machine = Machine::with("production:\n  lfs:\n    storage_path: shared/lfs\n");
    let rails = "/opt/gitlab/embedded/service/gitlab-rails/shared/lfs";
    assert_eq!(machine.places(&machine.plan(), "lfs"), [rails]);
}

#[test]
fn pages_and_registry_paths_are_read_from_their_settings() {
    let yml = "production:\n  pages:\n    path: /old\n    local_store:\n      path: /new\n";
    let machine = Machine::with(yml);
    assert_eq!(machine.places(&machine.plan(), "pages"), ["/new"]);
    machine.dir("/old");
    assert_eq!(machine.places(&machine.plan(), "pages"), ["/new", "/old"]);
    let config = "storage:\n  filesystem:\n    rootdirectory: /mnt/images\n";
    machine.write("/var/opt/gitlab/registry/config.yml", config);
    assert_eq!(machine.places(&machine.plan(), "registry"), ["/mnt/images"]);
    machine.write("/var/opt/gitlab/registry/config.yml", "storage:\n  s3:\n    bucket: b\n");
    let plan = machine.plan();
    assert!(has_note(&plan, "registry: in an object store"), "{:?}", plan.notes);
    assert!(!find(&plan, "registry").is_required);
}

#[test]
fn a_registry_on_another_machine_is_named_and_not_missing() {
    let yml = |registry: &str| {
        format!(
            "production:\n  gitlab:\n    host: git.example.com\n  registry:\n    enabled: true\n\
             {registry}"
        )
    };
    let own = "/var/opt/gitlab/registry/config.yml";
    let rb = "/etc/gitlab/gitlab.rb";
    for (registry, address) in [
        ("    api_url: https://user:word@images.example.org:5000/\n", "images.example.org:5000"),
        // The registry has a public name, and the package does not run one.
        ("    host: images.example.org\n", "images.example.org"),
        (
            "    host: images.example.org\n    api_url: http://127.0.0.1:5000\n",
            "images.example.org",
        ),
    ] {
        let machine = Machine::with(&yml(registry));
        let plan = machine.plan();
        let note = format!("registry: {address} has the images; not copied");
        assert!(has_note(&plan, &note), "{registry}: {:?}", plan.notes);
        assert!(!find(&plan, "registry").is_required, "{registry}");
        assert!(!has_note(&plan, "files still in"), "{:?}", plan.notes);
        // The settings say where they are.
        machine.dir("/mnt/images");
        let images = machine.at("/mnt/images");
        let plan = machine.plan_with(&format!("parts.registry.path = {images:?}\n"));
        assert!(!has_note(&plan, "has the images"), "{:?}", plan.notes);
    }
    // Images of its own registry stay.
    let api = "    api_url: https://images.example.org:5000\n";
    let machine = Machine::with(&yml(api));
    machine.write("/var/opt/gitlab/gitlab-rails/shared/registry/docker/image", "");
    assert!(has_note(&machine.plan(), "files still in"), "{:?}", machine.plan().notes);
    // Behind a proxy, the package's own registry has the public name of itself or of GitLab.
    for registry in [
        "    host: images.example.org\n    api_url: https://images.example.org\n",
        "    host: images.example.org\n    api_url: http://127.0.0.1:5000\n",
        "    host: git.example.com\n    api_url: https://user:pass@git.example.com:5050/\n",
    ] {
        let machine = Machine::with(&yml(registry));
        machine.write(own, "storage:\n  filesystem:\n    rootdirectory: /mnt/images\n");
        let plan = machine.plan();
        assert!(!has_note(&plan, "has the images"), "{registry}: {:?}", plan.notes);
        assert!(find(&plan, "registry").is_required, "{registry}");
    }
    // An old file of its own registry, which is off.
    let machine = Machine::with(&yml("    host: images.example.org\n"));
    machine.write(own, "storage:\n  filesystem:\n    rootdirectory: /mnt/images\n");
    assert!(find(&machine.plan(), "registry").is_required);
    machine.write(rb, "external_url 'https://git.example.com'\nregistry['enable'] = false\n");
    assert!(!find(&machine.plan(), "registry").is_required);
    assert!(has_note(&machine.plan(), "images.example.org has the images"));
}

#[test]
fn enabled_features_make_their_parts_required() {
    let requires_part = |section: &str, text: &str| {
        let yml = format!("production:\n  {section}:\n    {text}\n");
        find(&Machine::with(&yml).plan(), &section.replace('_', "-")).is_required
    };
    for section in ["pages", "registry", "dependency_proxy"] {
        assert!(requires_part(section, "enabled: true"), "{section}");
        assert!(!requires_part(section, "enabled: false"), "{section}");
        assert!(!requires_part(section, "host: example.com"), "{section}");
    }
    assert!(!requires_part(
        "encrypted_settings",
        "path: /var/opt/gitlab/gitlab-rails/shared/encrypted"
    ));
    assert!(requires_part("packages", "storage_path: /mnt/packages"));
    assert!(!requires_part("packages", "enabled: false"));
}

#[test]
fn the_link_of_the_uploads_is_followed() {
    let machine = Machine::with("production:\n  uploads:\n    base_dir: uploads/-/system\n");
    let uploads = |machine: &Machine| machine.places(&machine.plan(), "uploads");
    assert_eq!(uploads(&machine), ["/var/opt/gitlab/gitlab-rails/uploads"]);
    let public = "/opt/gitlab/embedded/service/gitlab-rails/public";
    machine.link(&format!("{public}/uploads"), "/mnt/uploads");
    // The target is not mounted. It is missing, and no other directory replaces it.
    assert_eq!(uploads(&machine), ["/mnt/uploads"]);
    assert!(find(&machine.plan(), "uploads").is_required);
    assert!(!find(&machine.plan(), "uploads").is_there());
    machine.dir("/mnt/data");
    machine.link("/mnt/uploads", "data");
    assert_eq!(uploads(&machine), ["/mnt/data"]);

    let yml = "production:\n  uploads:\n    storage_path: /mnt/public\n";
    machine.write(GITLAB_YML, yml);
    assert_eq!(uploads(&machine), ["/var/opt/gitlab/gitlab-rails/uploads"]);
    machine.dir("/mnt/public/uploads");
    assert_eq!(uploads(&machine), ["/mnt/public/uploads"]);
}

#[test]
fn missing_generated_files_are_reported() {
    let machine = Machine::new();
    machine.dir("/var/opt/gitlab/gitlab-rails/etc");
    machine.dir("/var/opt/gitlab/gitaly");
    let plan = machine.plan();
    assert!(looked_for(&plan, "generated").ends_with("etc/gitlab.yml"));
    assert!(plan.lacking[0].is_required);
    for words in [
        "gitlab.yml does not exist; assuming the package's default directories",
        "database.yml does not exist; assuming database",
    ] {
        assert!(has_note(&plan, words), "{words}: {:?}", plan.notes);
    }
    assert!(
        has_note(&plan, "gitaly/config.toml does not exist; assuming the storages"),
        "{:?}",
        plan.notes
    );
    let plan = machine.plan_with("[parts.generated]\nmissing = 'ok'\n");
    assert!(!plan.lacking[0].is_required);

    machine.write(GITLAB_YML, "production: {}\n");
    let databases = "production:\n  main:\n    database: gitlab\n";
    machine.write("/var/opt/gitlab/gitlab-rails/etc/database.yml", databases);
    std::fs::remove_dir(machine.at("/var/opt/gitlab/gitaly")).expect("removes");
    let plan = machine.plan();
    assert!(plan.lacking.is_empty(), "{:?}", plan.lacking);
    assert!(!has_note(&plan, "does not exist"), "{:?}", plan.notes);
}

#[test]
fn the_keys_of_users_may_be_in_another_home() {
    let place = |path: &str| {
        let yml = format!("production:\n  gitlab_shell:\n    authorized_keys_file: {path}\n");
        let machine = Machine::with(&yml);
        machine.places(&machine.plan(), "ssh")
    };
    let usual = "/var/opt/gitlab/.ssh";
    assert_eq!(place("/var/opt/gitlab/.ssh/authorized_keys"), [usual]);
    assert_eq!(place("relative"), [usual]);
    assert_eq!(place("/srv/h/.ssh/authorized_keys"), ["/srv/h/.ssh"]);
    // A directory of another purpose has other files.
    assert_eq!(place("/srv/h/keys"), ["/srv/h/keys"]);
}

#[test]
fn a_storage_on_another_machine_is_missing() {
    let storages = "default: {gitaly_address: 'unix:/var/opt/gitlab/gitaly/gitaly.socket'}, \
                    far: {gitaly_address: 'tcp://gitaly.example.com:8075'}";
    let machine =
        Machine::with(&format!("production:\n  repositories:\n    storages: {{{storages}}}\n"));
    let plan = machine.plan();
    let usual = "/var/opt/gitlab/git-data/repositories";
    assert_eq!(machine.places(&plan, "repositories"), [usual]);
    let text = looked_for(&plan, "repositories-far");
    assert!(text.contains("storage far") && text.contains("tcp://gitaly.example.com:8075"));
    assert!(!text.contains("Praefect"), "{text}");
    let cluster = storages.replace("gitaly.example.com:8075", "praefect.internal:2305");
    let yml = format!("production:\n  repositories:\n    storages: {{{cluster}}}\n");
    let plan = Machine::with(&yml).plan();
    let text = looked_for(&plan, "repositories-far");
    assert!(text.contains("Gitaly Cluster (Praefect) is not covered"), "{text}");
    // The package writes its default path for a client of a cluster, too. A mount has content.
    let path = "/var/opt/gitlab/git-data/repositories";
    for (address, is_there) in [
        ("tcp://praefect.internal:2305", false),
        ("tls://gitaly.example.com:9999", false),
        ("unix:/var/opt/gitlab/praefect/praefect.socket", false),
        ("unix:/var/opt/gitlab/gitaly/gitaly.socket", true),
        ("tcp://127.0.0.1:8075", true),
        ("tcp://[::1]:8075", true),
    ] {
        let storages = format!("default: {{path: '{path}', gitaly_address: '{address}'}}");
        let yml = format!("production:\n  repositories:\n    storages: {{{storages}}}\n");
        let client = Machine::with(&yml);
        client.dir(path);
        let is_lacking = |plan: &Plan| plan.lacking.iter().any(|of| of.part == "repositories");
        assert_eq!(is_lacking(&client.plan()), !is_there, "{address}");
        client.dir(&format!("{path}/@hashed"));
        assert!(!is_lacking(&client.plan()), "{address}: it is mounted");
    }
    // Without a mount, it may be what was here before a move.
    let old = |address: &str, more: &str| {
        let storages = format!("default: {{path: '{path}', gitaly_address: '{address}'}}");
        let yml = format!("production:\n  repositories:\n    storages: {{{storages}}}\n");
        let client = Machine::with(&yml);
        client.dir(&format!("{path}/@hashed"));
        client.write("/var/opt/gitlab/gitaly/config.toml", more);
        client
    };
    let own = format!("[[storage]]\nname = 'default'\npath = '{path}'\n");
    let listening = format!("listen_addr = '0.0.0.0:8075'\n{own}");
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    for (address, more, is_old) in [
        ("tcp://192.0.2.5:8075", own.clone(), true),
        ("tls://gitaly.invalid:8075", own.clone(), true),
        ("tls://gitaly.invalid:8075", listening, false),
        ("tcp://127.0.0.1:8075", own.clone(), false),
        (&format!("tcp://{name}:8075"), own, false),
    ] {
        let plan = old(address, &more).plan();
        let text = plan.lacking.iter().find(|of| of.part == "gitaly-default");
        assert_eq!(text.is_some(), is_old, "{address}: {:?}", plan.lacking);
        assert!(text.is_none_or(|of| of.is_required && of.looked_for.contains(address)));
        // They are copied all the same.
        assert!(plan.place("repositories").is_some());
    }
    let set = format!("[parts.repositories]\npath = '{path}'\n");
    let plan = old("tcp://192.0.2.5:8075", "").plan_with(&set);
    assert!(!plan.lacking.iter().any(|of| of.part == "gitaly-default"), "{:?}", plan.lacking);
    // Old versions set a path for it as well, at which this machine has nothing.
    let old = cluster.replace("{gitaly_address: 'tcp:", "{path: /mnt/none, gitaly_address: 'tcp:");
    let yml = format!("production:\n  repositories:\n    storages: {{{old}}}\n");
    let plan = Machine::with(&yml).plan();
    let text = looked_for(&plan, "repositories-far");
    assert!(text.contains("Gitaly Cluster (Praefect) is not covered"), "{text}");
    // Settings can name the directory where it is mounted.
    let plan = machine.plan_with("[parts.repositories-far]\npath = '/mnt/far'\n");
    assert!(plan.lacking.is_empty(), "{:?}", plan.lacking);
    machine.write(
        "/var/opt/gitlab/gitaly/config.toml",
        "[[storage]]\nname = 'far'\npath = '/mnt/far'\n",
    );
    assert_eq!(machine.places(&machine.plan(), "repositories-far"), ["/mnt/far"]);
}

#[test]
fn object_stores_are_noted() {
    let yml = "production:\n  object_store:\n    enabled: true\n    objects:\n      \
               artifacts: {bucket: a}\n      lfs: {bucket: l, enabled: false}\n  \
               artifacts: {enabled: true}\n  lfs: {enabled: true}\n  \
               uploads:\n    object_store: {enabled: true}\n";
    let machine = Machine::with(yml);
    machine.dir("/var/opt/gitlab/gitlab-rails/uploads");
    let plan = machine.plan();
    for part in ["artifacts", "uploads"] {
        assert!(has_note(&plan, &format!("{part}: in an object store")), "{:?}", plan.notes);
    }
    assert!(!has_note(&plan, "lfs: it is"), "{:?}", plan.notes);
    // Files that are still on the machine are copied.
    assert!(!find(&plan, "uploads").is_required && !find(&plan, "artifacts").is_required);
    assert!(find(&plan, "lfs").is_required);
}

const DATABASE_YML: &str = "/var/opt/gitlab/gitlab-rails/etc/database.yml";

/// Settings of the main database and a second one.
fn two_databases(main: &str, ci: &str) -> String {
    format!("production:\n  main:\n    database: one\n{main}  ci:\n    database: two\n{ci}")
}

#[test]
fn the_database_server_is_read_from_the_configuration() {
    let machine = Machine::with("");
    let own = machine.dir("/var/opt/gitlab/postgresql");
    let server = |host: &str| {
        let host = format!("    host: {host}\n");
        machine.write(DATABASE_YML, &two_databases(&host, &host));
        let server = machine.plan().postgres.expect("a server");
        (server.host.expect("a host"), server.role, server.reach.user)
    };
    let psql = || Some("gitlab-psql".to_owned());
    let own = (own.display().to_string(), psql(), psql());
    assert_eq!(server("''"), own);
    assert_eq!(server("/var/opt/gitlab/postgresql"), own);
    // The package's own server may still run, or its directory may be left over.
    assert_eq!(server("db.example.com"), ("db.example.com".into(), None, None));
    assert!(has_note(&machine.plan(), "the database server is db.example.com"));
    let sockets = machine.dir("/run/postgresql");
    assert_eq!(server("/run/postgresql"), (sockets.display().to_string(), psql(), psql()));
    assert_eq!(server("127.0.0.1"), ("127.0.0.1".into(), None, None));
    // A crash leaves the socket of a server that no longer runs.
    let socket = machine.at("/var/opt/gitlab/postgresql/.s.PGSQL.5432");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("listens"));
    assert_eq!(server("127.0.0.1"), ("127.0.0.1".into(), None, None));
    std::fs::remove_file(&socket).expect("removes");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("listens");
    assert_eq!(server("127.0.0.1"), own);

    // Only its own server has no databases of others.
    let is_shared = |host: &str| {
        machine.write(DATABASE_YML, &two_databases(&format!("    host: {host}\n"), ""));
        machine.plan().postgres.expect("a server").is_shared
    };
    assert!(!is_shared("/var/opt/gitlab/postgresql/"));
    assert!(!is_shared("127.0.0.1"));
    assert!(is_shared("/run/postgresql"));
    assert!(is_shared("db.example.com"));
    let rc = "/opt/gitlab/etc/gitlab-psql-rc";
    machine.write(rc, "psql_user='gitlab-psql'\npsql_host='/run/postgresql'\n");
    assert!(!is_shared("/run/postgresql"), "the package's server was moved there");
    std::fs::remove_file(&socket).expect("removes");
    assert!(is_shared("127.0.0.1"), "no server of the package runs");
    machine.dir("/run/postgresql");
    let moved = machine.at("/run/postgresql/.s.PGSQL.5432");
    let _moved = std::os::unix::net::UnixListener::bind(moved).expect("listens");
    assert!(!is_shared("127.0.0.1"), "the moved server is the one with the port");
    machine.write(DATABASE_YML, &two_databases("", ""));
    for (more, expected) in [
        ("", false),
        ("postgres = { role = 'backup' }", false),
        ("postgres = { host = '/run/other' }", true),
        ("postgres = { port = 5433 }", true),
    ] {
        let server = machine.plan_with(more).postgres.expect("a server");
        assert_eq!(server.is_shared, expected, "{more}");
    }

    machine.write(DATABASE_YML, &two_databases("", "    host: ci.example.com\n"));
    let plan = machine.plan();
    assert_eq!(plan.databases.len(), 1, "{:?}", plan.databases);
    assert!(looked_for(&plan, "database-ci").starts_with("database two on ci.example.com:5432"));
}

#[test]
fn mattermost_settings_locate_its_database_and_files() {
    let machine = Machine::with("");
    machine.dir("/var/opt/gitlab/postgresql");
    let variables = "/opt/gitlab/etc/mattermost/env";
    let source = |text: &str| {
        machine.write(&format!("{variables}/MM_SQLSETTINGS_DATASOURCE"), text);
        machine.plan()
    };
    machine.dir("/var/opt/gitlab/mattermost");
    let name = |plan: &Plan| {
        let database = plan.databases.iter().find(|database| database.purpose == "mattermost");
        database.map(|database| database.name.clone())
    };
    assert_eq!(name(&machine.plan()).as_deref(), Some("mattermost_production"));
    let plan = source("user=u host=/var/opt/gitlab/postgresql port=5432 dbname=chat");
    assert_eq!(name(&plan).as_deref(), Some("chat"));
    assert_eq!(name(&source("postgres://u:secret@127.0.0.1/talk")).as_deref(), Some("talk"));
    for text in [
        "postgres://u:secret@db.example.com/chat",
        "user=u host=/run/postgresql dbname=chat",
        "host=localhost port=5433 dbname=chat",
    ] {
        let plan = source(text);
        assert_eq!(name(&plan), None, "{text}");
        let looked_for = looked_for(&plan, "database-mattermost");
        assert!(looked_for.starts_with("database chat on "), "{looked_for}");
        assert!(has_note(&plan, "not on GitLab's server"));
        assert!(!format!("{plan:?}").contains("secret@"));
    }

    let write = |name: &str, text: &str| machine.write(&format!("{variables}/{name}"), text);
    write("MM_PLUGINSETTINGS_DIRECTORY", "/mnt/plugins");
    write("MM_PLUGINSETTINGS_CLIENTDIRECTORY", "/var/opt/gitlab/mattermost/client-plugins");
    let plan = machine.plan();
    assert_eq!(machine.places(&plan, "mattermost-plugins"), ["/mnt/plugins"]);
    assert!(plan.parts.iter().all(|part| part.name != "mattermost-client-plugins"));
    // Rows do not record which files are in the object store.
    write("MM_FILESETTINGS_DRIVERNAME", "amazons3");
    assert_eq!(machine.plan().place("mattermost-data"), None);
}

#[test]
fn unknown_directories_beside_nested_parts_are_reported() {
    let machine = Machine::with("");
    let data = "/var/opt/gitlab";
    for known in ["gitlab-rails/tmp", "gitlab-rails/shared/cache", "gitlab-rails/shared/pages"] {
        machine.write(&format!("{data}/{known}/file"), "");
    }
    machine.link("/var/opt/gitlab/gitlab-rails/shared/lfs-objects", "/mnt/lfs");
    machine.dir("/mnt/lfs");
    assert!(!has_note(&machine.plan(), "is unknown"), "{:?}", machine.plan().notes);
    let unknown = ["own", "gitlab-rails/own", "gitlab-rails/shared/own", "git-data/own"];
    for unknown in unknown {
        machine.write(&format!("{data}/{unknown}/file"), "");
    }
    // An empty directory may be a missing mount.
    machine.dir("/var/opt/gitlab/gitlab-rails/shared/empty");
    let plan = machine.plan();
    assert!(has_note(&plan, "shared/empty is unknown"), "{:?}", plan.notes);
    for unknown in unknown {
        assert!(has_note(&plan, &format!("{data}/{unknown} is unknown")), "{:?}", plan.notes);
    }
    assert_eq!(plan.notes.iter().filter(|note| note.contains("is unknown")).count(), 5);
}

#[test]
fn links_in_parts_are_followed_below_the_root() {
    let machine = Machine::with("");
    let shared = "/var/opt/gitlab/gitlab-rails/shared";
    machine.link(&format!("{shared}/registry/docker"), "/mnt/reg/docker");
    machine.dir("/mnt/reg/docker");
    machine.link("/var/opt/gitlab/git-data", "/mnt/git-data");
    machine.dir("/mnt/git-data/repositories");
    machine.link("/mnt/git-data/repositories/@hashed", "/mnt/hashed");
    // A link below the target of another link, and a link to a file.
    machine.link("/mnt/hashed/6b", "/mnt/more/6b");
    machine.dir("/mnt/more/6b");
    machine.link("/etc/gitlab/forge.key", "/mnt/keys/forge.key");
    machine.write("/mnt/keys/forge.key", "");
    let plan = machine.plan();
    let registry = format!("{shared}/registry");
    assert_eq!(machine.places(&plan, "registry"), [&registry, "/mnt/reg/docker"]);
    let repositories = ["/mnt/git-data/repositories", "/mnt/hashed", "/mnt/more/6b"];
    assert_eq!(machine.places(&plan, "repositories"), repositories);
    let link = &find(&plan, "repositories").links[0];
    assert!(link.ends_with("var/opt/gitlab/git-data"), "{link:?}");
    let place = plan.place("repositories").expect("a place");
    let copy = View::machine(&plan.mounts);
    assert!(copy.place(&place.join("@hashed/a.git")).ends_with("mnt/hashed/a.git"));
    assert!(copy.place(&place.join("@hashed/6b/86.git")).ends_with("mnt/more/6b/86.git"));
    assert_eq!(machine.places(&plan, "config"), ["/etc/gitlab", "/mnt/keys/forge.key"]);

    // Links at any depth, and below the target of another.
    machine.link("/mnt/reg/docker/registry/v2/blobs", "/mnt/blobs");
    machine.link("/mnt/blobs/sha256/2c", "/mnt/2c");
    machine.dir("/mnt/2c");
    machine.link("/var/opt/gitlab/gitlab-ci/builds/2024_05/1", "/mnt/builds/1");
    machine.dir("/mnt/builds/1");
    machine.dir("/var/opt/gitlab/gitlab-rails/shared/pages/group");
    machine.link("/var/opt/gitlab/gitlab-rails/shared/pages/group/one", "/mnt/builds/1");
    let plan = machine.plan();
    let blobs = [&registry, "/mnt/reg/docker", "/mnt/blobs", "/mnt/2c"];
    assert_eq!(machine.places(&plan, "registry"), blobs);
    let copy = View::machine(&plan.mounts);
    let blob = machine.at(&format!("{registry}/docker/registry/v2/blobs/sha256/2c/data"));
    assert!(copy.place(&blob).ends_with("mnt/2c/data"), "{:?}", plan.mounts);
    let builds = "/var/opt/gitlab/gitlab-ci/builds";
    assert_eq!(machine.places(&plan, "builds"), [builds, "/mnt/builds/1"]);
    assert_eq!(machine.places(&plan, "pages").len(), 1);
    std::fs::remove_file(machine.at("/mnt/reg/docker/registry/v2/blobs")).expect("removes");

    // Data of the test's machine at the same path does not belong to the instance.
    let host = tempfile::tempdir().expect("a directory");
    let target = host.path().to_str().expect("text");
    machine.link(&format!("{shared}/packages"), target);
    machine.link(&format!("{shared}/registry/other"), target);
    // A link to `/` must not add the whole machine.
    machine.link(&format!("{shared}/registry/up"), "/");
    let plan = machine.plan();
    assert!(!find(&plan, "packages").is_there());
    assert_eq!(machine.places(&plan, "packages"), [target]);
    for words in
        ["shared/packages points to ", "registry/other points to ", "registry/up points to "]
    {
        assert!(has_note(&plan, words), "{words}: {:?}", plan.notes);
    }
    assert_eq!(machine.places(&plan, "registry").len(), 2);
    // A path from the settings is used as given.
    let own = machine.at(&registry);
    let plan = machine.plan_with(&format!("parts.registry.path = '{}'", own.display()));
    assert_eq!(machine.places(&plan, "registry"), [registry]);
    assert!(has_note(&plan, "registry/docker points to "), "{:?}", plan.notes);
}

#[test]
fn the_version_is_read_from_the_line_of_the_product() {
    let machine = Machine::with("");
    let product = |text: &str| {
        machine.write(MANIFEST, text);
        machine.plan().product
    };
    let found = product("gitlab-ee 17.8.2\n\nComponent Installed Version\ngitlab-shell v14.39.0\n");
    assert_eq!((found.edition.as_deref(), found.version.as_deref()), (Some("ee"), Some("17.8.2")));
    let found = product("Component Version\ngitlab-exporter 15.0\ngitlab-jh 16.1.0\n");
    assert_eq!((found.edition.as_deref(), found.version.as_deref()), (Some("jh"), Some("16.1.0")));
    assert_eq!(product("gitlab-exporter 15.0\n").version, None);
}

#[test]
fn broken_secrets_fail() {
    let machine = Machine::with("");
    let path = machine.at("/etc/gitlab/gitlab-secrets.json");
    let check =
        || check_secrets(&machine.plan(), &Catalogue::default(), &View::Live).expect("looks");
    let keys = r#""db_key_base": "a", "secret_key_base": "b""#;
    for (text, words) in [
        (String::new(), "is empty"),
        ("{\n\"gitlab_rails\": {".into(), "is invalid JSON at line 2, column"),
        ("[]".into(), "lacks db_key_base, secret_key_base, otp_key_base"),
        (format!("{{\"gitlab_rails\": {{{keys}}}}}"), "lacks otp_key_base"),
    ] {
        std::fs::write(&path, &text).expect("writes");
        let check = check();
        assert_eq!(check.verdict, Verdict::Failed, "{text}");
        assert!(check.text.contains(words), "{}", check.text);
    }
    let whole = format!("{{\"gitlab_rails\": {{{keys}, \"otp_key_base\": \"c\"}}}}");
    std::fs::write(&path, whole).expect("writes");
    assert_eq!(check().verdict, Verdict::Ok);
    // A directory replaces a file that cannot be read.
    std::fs::remove_file(&path).expect("removes");
    std::fs::create_dir(&path).expect("a directory");
    assert_eq!(check().verdict, Verdict::Failed);
    std::fs::remove_dir(&path).expect("removes");
    symlink("/nowhere", &path).expect("links");
    assert_eq!(check().verdict, Verdict::Failed);
    assert!(!find(&machine.plan(), "secrets").is_there());
}

#[test]
fn an_enabled_registry_database_is_backed_up() {
    let machine = Machine::with("production: {}\n");
    let registry = |text: &str| {
        machine.write("/var/opt/gitlab/registry/config.yml", text);
        machine.plan()
    };
    let names = |plan: &Plan| {
        plan.databases.iter().map(|of| (of.part(), of.is_required)).collect::<Vec<_>>()
    };
    let main = ("database-main".to_owned(), true);
    let plan = registry("database:\n  enabled: false\n");
    assert_eq!(names(&plan), std::slice::from_ref(&main));
    let own = "database:\n  enabled: true\n  host: /var/opt/gitlab/postgresql\n  dbname: images\n";
    let plan = registry(own);
    assert_eq!(names(&plan), [main.clone(), ("database-registry".into(), true)]);
    assert_eq!(plan.databases[1].name, "images");
    let maybe = "database:\n  enabled: prefer\n  host: localhost\n";
    assert_eq!(names(&registry(maybe)), [main.clone(), ("database-registry".into(), false)]);
    let plan = registry("database:\n  enabled: true\n  host: db.example.org\n");
    assert_eq!(names(&plan), [main]);
    assert!(looked_for(&plan, "database-registry").contains("db.example.org:5432"));
    let skipped = machine.plan_with("parts.database-registry.missing = 'ok'");
    assert!(!skipped.lacking[0].is_required);
}

#[test]
fn unknown_shared_directories_are_copied_and_reported() {
    let machine = Machine::with("production:\n  shared:\n    path: /mnt/shared\n");
    for dir in ["agent_plan_content", "ci_catalog_bundles", "of_tomorrow", "cache", "lost+found"] {
        machine.dir(&format!("/mnt/shared/{dir}"));
    }
    machine.dir("/var/opt/gitlab/gitlab-rails/shared/artifacts");
    machine.dir("/var/opt/gitlab/git-data/old-repositories");
    let plan = machine.plan();
    for (part, place) in [
        ("agent-plan-content", "/mnt/shared/agent_plan_content"),
        ("ci-catalog-bundles", "/mnt/shared/ci_catalog_bundles"),
        ("shared-of_tomorrow", "/mnt/shared/of_tomorrow"),
        ("git-data-old-repositories", "/var/opt/gitlab/git-data/old-repositories"),
    ] {
        assert_eq!(machine.places(&plan, part), [place]);
        let is_new = part.starts_with("shared-") || part.starts_with("git-data-");
        let words = format!("copied as part `{part}`");
        assert_eq!(has_note(&plan, &words), is_new, "{:?}", plan.notes);
    }
    assert!(!plan.parts.iter().any(|part| part.name.contains("cache")));
    assert!(!plan.parts.iter().any(|part| part.name.contains("lost")));
    // A directory that the settings name or skip is not unknown.
    let place = machine.at("/mnt/shared/of_tomorrow");
    let plan = machine.plan_with(&format!("parts.own.path = '{}'", place.display()));
    assert!(!has_note(&plan, "shared/of_tomorrow is unknown"), "{:?}", plan.notes);
    let plan = machine.plan_with("parts.shared-of_tomorrow.skip = true");
    assert!(!plan.parts.iter().any(|part| part.name.contains("of_tomorrow")));
}

#[test]
fn unknown_directories_are_found_behind_links_and_beside_nested_parts() {
    let data = "/var/opt/gitlab";
    for moved in ["git-data", "gitlab-rails/shared", "gitlab-rails"] {
        let machine = Machine::with("");
        machine.dir(&format!("{data}/gitlab-rails/shared/artifacts"));
        machine.dir(&format!("{data}/git-data/repositories"));
        for dir in ["git-data/new", "gitlab-rails/shared/new"] {
            machine.dir(&format!("{data}/{dir}"));
        }
        let from = machine.at(&format!("{data}/{moved}"));
        machine.dir("/mnt");
        std::fs::rename(&from, machine.at("/mnt/moved")).expect("renames");
        machine.link(&format!("{data}/{moved}"), "/mnt/moved");
        let plan = machine.plan();
        for part in ["git-data-new", "shared-new"] {
            assert_eq!(machine.places(&plan, part).len(), 1, "{moved}: {:?}", plan.notes);
        }
    }

    // A part that is deeper than usual, and storages elsewhere.
    let machine = Machine::with("");
    let shared = format!("{data}/gitlab-rails/shared");
    machine
        .write(GITLAB_YML, &format!("production:\n  lfs:\n    storage_path: {shared}/big/lfs\n"));
    let gitaly = "[[storage]]\nname = 'a'\npath = '/mnt/git-data/repositories'\n\
                  [[storage]]\nname = 'b'\npath = '/var/opt/gitlab/git-data/ssd/repositories'\n\
                  [[storage]]\nname = 'c'\npath = '/disk/repositories'\n";
    machine.write("/var/opt/gitlab/gitaly/config.toml", gitaly);
    for dir in [
        &format!("{shared}/big/lfs")[..],
        &format!("{shared}/big/new"),
        "/mnt/git-data/repositories",
        "/mnt/git-data/new",
        "/var/opt/gitlab/git-data/ssd/repositories",
        "/var/opt/gitlab/git-data/ssd/new",
        "/disk/repositories",
        "/disk/foreign",
    ] {
        machine.dir(dir);
    }
    let plan = machine.plan();
    for (part, place) in [
        ("shared-big-new", &format!("{shared}/big/new")[..]),
        ("git-data-new", "/mnt/git-data/new"),
        ("git-data-ssd-new", "/var/opt/gitlab/git-data/ssd/new"),
    ] {
        assert_eq!(machine.places(&plan, part), [place], "{:?}", plan.notes);
    }
    assert!(!has_note(&plan, "foreign"), "{:?}", plan.notes);
}

#[test]
fn paths_that_are_not_utf_8_are_in_the_facts() {
    use std::os::unix::ffi::OsStrExt;
    let machine = Machine::with("");
    let shared = machine.dir("/var/opt/gitlab/gitlab-rails/shared");
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    std::fs::create_dir(shared.join(name)).expect("a directory");
    let plan = machine.plan();
    let parts = serde_json::to_string(&plan.parts).expect("becomes JSON");
    assert!(parts.contains("caf\\\\xe9"), "{parts}");
}

#[test]
fn malformed_settings_are_not_replaced_by_defaults() {
    let rails = "/var/opt/gitlab/gitlab-rails/etc";
    let whole = "production: &base\n  artifacts: {}\n  lfs: {}\n  uploads: {}\n  gitlab_ci: {}\n\
                 test:\n  <<: *base\n";
    let databases = "production:\n  main:\n    database: gitlab\n";
    let gitaly = "[[storage]]\nname = 'default'\npath = '/var/opt/gitlab/git-data/repositories'\n";
    let good = || {
        let machine = Machine::with(whole);
        machine.write(&format!("{rails}/database.yml"), databases);
        machine.write("/var/opt/gitlab/gitaly/config.toml", gitaly);
        machine.write("/var/opt/gitlab/registry/config.yml", "version: 0.1\n");
        machine
    };
    assert_eq!(good().plan().lacking, []);
    let files = [
        (format!("{rails}/gitlab.yml"), whole, "the data directories are unknown"),
        (format!("{rails}/database.yml"), databases, "databases and their server are unknown"),
        ("/var/opt/gitlab/gitaly/config.toml".into(), gitaly, "storages are unknown"),
        (
            "/var/opt/gitlab/registry/config.yml".into(),
            "version: 0.1\n",
            "database of the container registry are unknown",
        ),
    ];
    for (path, text, unknown) in &files {
        let cut = &text[..text.len() - 3];
        for bytes in [b"".as_slice(), b"\n", cut.as_bytes(), b"[\n", b"key: \xff\n", b"{\n"] {
            let machine = good();
            std::fs::write(machine.at(path), bytes).expect("writes");
            let plan = machine.plan();
            let missing = looked_for(&plan, "generated");
            assert!(missing.contains(path.as_str()) && missing.contains(unknown), "{missing}");
            assert!(plan.lacking[0].is_required);
        }
        // A directory replaces a file that cannot be read.
        let machine = good();
        std::fs::remove_file(machine.at(path)).expect("removes");
        machine.dir(path);
        assert!(looked_for(&machine.plan(), "generated").contains(unknown));
    }
    // Files cut between two lines.
    let lines = |text: &str, count: usize| {
        let machine = good();
        let cut: String = text.lines().take(count).map(|line| format!("{line}\n")).collect();
        machine.write(&files[0].0, &cut);
        machine.plan()
    };
    assert!(looked_for(&lines(whole, 3), "generated").contains("its end is missing"));
    let plan = lines(&whole.replace(" &base", ""), 3);
    assert!(has_note(&plan, "gitlab.yml lacks uploads, gitlab_ci"), "{:?}", plan.notes);
    let plan = good().plan();
    for words in ["database.yml lacks a host", "config.yml lacks its storage"] {
        assert!(has_note(&plan, words), "{words}: {:?}", plan.notes);
    }
    let machine = good();
    machine.write(&format!("{rails}/database.yml"), &format!("{databases}    host:\n"));
    assert!(!has_note(&machine.plan(), "nothing of a host"));
    let machine = good();
    machine.write(&format!("{rails}/resque.yml"), "production: [\n");
    machine.dir("/var/opt/gitlab/redis");
    let plan = machine.plan();
    assert!(has_note(&plan, "cannot tell whether Redis needs a password"), "{:?}", plan.notes);
}

#[test]
fn data_in_memory_is_noted() {
    let settings: Settings = toml::from_str("kind = 'gitlab'").expect("settings");
    let mut plan = Plan::new("forge", "gitlab", &settings);
    plan.takes("lost", "in memory", "/dev/shm".into());
    plan.takes("kept", "on a disk", "/".into());
    plan.note_memory();
    assert_eq!(plan.notes.len(), 1, "{:?}", plan.notes);
    assert!(has_note(&plan, "/dev/shm of part `lost` is in memory"), "{:?}", plan.notes);
}

#[test]
fn an_empty_database_of_gitlab_is_a_failure() {
    let settings: Settings = toml::from_str("kind = 'gitlab'").expect("settings");
    let mut plan = Plan::new("forge", "gitlab", &settings);
    for (name, purpose) in [("one", "main"), ("two", "ci"), ("three", "registry")] {
        let (name, purpose) = (name.into(), purpose.into());
        plan.databases.push(crate::plan::Database { name, purpose, is_required: true });
    }
    let schema = |names: &[&str]| names.iter().map(|name| ((*name).into(), "1".into())).collect();
    let databases = ["one", "two", "three"].map(String::from).into();
    let mut catalogue = Catalogue { databases, schema: schema(&["one"]), ..Catalogue::default() };
    let check = check_schema(&plan, &catalogue).expect("a check");
    assert_eq!(check.verdict, Verdict::Failed);
    assert!(check.text.starts_with("database two has no tables"), "{check:?}");
    catalogue.schema = schema(&["one", "two"]);
    assert_eq!(check_schema(&plan, &catalogue), None);
    // A failed query is another fault.
    catalogue.schema = schema(&["one"]);
    catalogue.databases.remove("two");
    assert_eq!(check_schema(&plan, &catalogue), None);
}

#[test]
fn a_section_without_the_name_of_its_database_makes_a_backup_incomplete() {
    let path = "/var/opt/gitlab/gitlab-rails/etc/database.yml";
    let main = "production:\n  main:\n    database: gitlabhq_production\n    host: /pg\n";
    for cut in ["  ci:\n", "  ci:\n    adapter: postgresql\n", "  ci:\n    database:\n"] {
        let machine = Machine::with("production:\n  gitlab:\n    user: git\n");
        machine.write(path, &format!("{main}{cut}"));
        let plan = machine.plan();
        let words = looked_for(&plan, "generated");
        assert!(words.contains("it does not name the database of ci"), "{cut}: {words}");
        let names: Vec<&str> = plan.databases.iter().map(|known| known.name.as_str()).collect();
        assert_eq!(names, ["gitlabhq_production"], "the other is still known");
    }
    let machine = Machine::with("production:\n  gitlab:\n    user: git\n");
    machine.write(path, &format!("{main}  ci:\n    database: other\n    host: /pg\n"));
    assert!(machine.plan().lacking.is_empty(), "{:?}", machine.plan().lacking);
}

#[test]
fn a_gitlab_rb_without_settings_makes_a_backup_incomplete() {
    for (text, reason) in [
        ("", "it is empty"),
        (" \n\t\n", "it is empty"),
        ("\0\0\0\n", "it is empty"),
        ("# external_url 'x'\n\n  ## more\n", "it has no settings"),
    ] {
        let machine = Machine::with("production:\n  gitlab:\n    user: git\n");
        machine.write("/etc/gitlab/gitlab.rb", text);
        let plan = machine.plan();
        let words = looked_for(&plan, "gitlab.rb");
        assert!(words.contains(reason), "{text:?}: {words}");
        let excused = machine.plan_with("[parts.'gitlab.rb']\nmissing = 'ok'\n");
        assert!(excused.lacking.iter().all(|absent| !absent.is_required), "{text:?}");
    }
    let machine = Machine::with("production:\n  gitlab:\n    user: git\n");
    let latin = b"# gr\xfcn\nexternal_url 'https://gitlab.example.com'\n";
    std::fs::write(machine.at("/etc/gitlab/gitlab.rb"), latin).expect("writes");
    assert!(machine.plan().lacking.is_empty(), "{:?}", machine.plan().lacking);
}

/// A usable `gitlab.yml`.
const YML: &str = "production:\n  gitlab:\n    host: gitlab.example.com\n";

#[test]
fn each_section_of_tables_has_a_database() {
    let machine = Machine::with(YML);
    let sections = |more: &str| {
        let main =
            "production:\n  main:\n    database: one\n    host: /var/opt/gitlab/postgresql\n";
        machine.write(DATABASE_YML, &format!("{main}{more}"));
        let plan = machine.plan();
        let shown = |(section, database): (&String, &Option<String>)| {
            format!("{section}={}", database.as_deref().unwrap_or("elsewhere"))
        };
        let all: Vec<String> = plan.sections.iter().map(shown).collect();
        let databases: Vec<&str> = plan.databases.iter().map(|of| of.name.as_str()).collect();
        assert!(
            plan.lacking.iter().all(|absent| absent.part == "database-ci"),
            "{:?}",
            plan.lacking
        );
        (all.join(" "), databases.join(" "))
    };
    let ci = |more: &str| {
        format!("  ci:\n    database: two\n    host: /var/opt/gitlab/postgresql\n{more}")
    };
    let found = |sections: &str, databases: &str| (sections.to_owned(), databases.to_owned());
    assert_eq!(sections(""), found("main=one", "one"));
    assert_eq!(sections(&ci("")), found("ci=two main=one", "one two"));
    assert_eq!(sections(&ci("").replace("two", "one")), found("main=one", "one"));
    assert_eq!(sections(&ci("    database_tasks: false\n")), found("main=one", "one two"));
    assert_eq!(
        sections("  ci:\n    database: two\n    host: ci.example.com\n"),
        found("ci=elsewhere main=one", "one")
    );
    // A pooler in front of the same database, and a replica.
    for alias in ["database_tasks: false", "replica: true"] {
        let pooler =
            format!("  ci:\n    database: one\n    host: 127.0.0.1\n    port: 6432\n    {alias}\n");
        assert_eq!(sections(&pooler), found("main=one", "one"), "{alias}");
        assert!(machine.plan().lacking.is_empty(), "{alias}");
    }
    machine.write(DATABASE_YML, "production:\n  database: one\n");
    assert_eq!(machine.plan().sections, [("main".into(), Some("one".into()))].into());
}

#[test]
fn the_tracking_database_of_geo_is_named() {
    let main = "production:\n  main:\n    database: one\n    host: /var/opt/gitlab/postgresql\n";
    let geo = "database: tracking\n    host: /var/opt/gitlab/geo-postgresql\n    port: 5431\n";
    let named = "(its tracking database: tracking on /var/opt/gitlab/geo-postgresql:5431)";
    for (database_yml, geo_yml) in [
        (format!("{main}  geo:\n    {geo}"), None),
        (main.to_owned(), Some(format!("production:\n    {geo}"))),
        (main.to_owned(), Some(format!("production:\n  geo:\n    {geo}"))),
    ] {
        let machine = Machine::with(YML);
        machine.write(DATABASE_YML, &database_yml);
        if let Some(text) = geo_yml {
            machine.write("/var/opt/gitlab/gitlab-rails/etc/database_geo.yml", &text);
        }
        let plan = machine.plan();
        assert!(has_note(&plan, named), "{:?}", plan.notes);
        assert!(plan.lacking.is_empty(), "{:?}", plan.lacking);
        assert_eq!(plan.databases.len(), 1, "{:?}", plan.databases);
    }
    let machine = Machine::with(YML);
    machine.write(DATABASE_YML, main);
    assert!(!has_note(&machine.plan(), "Geo"), "{:?}", machine.plan().notes);
}

#[test]
fn keys_may_be_in_the_configuration() {
    let generated = "/var/opt/gitlab/gitlab-rails/etc/secrets.yml";
    let kept = "/etc/gitlab/gitlab-secrets.json";
    let machine = Machine::with("");
    let off = "package['generate_secrets_json_file'] = false";
    machine.write("/etc/gitlab/gitlab.rb", &format!("{off}\n"));
    // An existing file still counts.
    assert_eq!(machine.places(&machine.plan(), "secrets"), [kept]);
    std::fs::remove_file(machine.at(kept)).expect("removes");
    for (text, place) in [
        (off.to_owned(), generated),
        (format!("  {} # here\n", off.replace('\'', "\"").replace(' ', "")), generated),
        (format!("external_url 'a'; {off}"), generated),
        (format!("# {off}"), kept),
        (off.replace("false", "true"), kept),
        (format!("{off}\n{}", off.replace("false", "true")), kept),
    ] {
        machine.write("/etc/gitlab/gitlab.rb", &format!("{text}\n"));
        let plan = machine.plan();
        assert_eq!(machine.places(&plan, "secrets"), [place], "{text}");
        assert!(find(&plan, "secrets").is_required);
    }
}

#[test]
fn archives_of_gitlab_and_snapshots_of_the_file_system_are_skipped() {
    let data = "/var/opt/gitlab";
    let is_left = |plan: &Plan, path: &Path| plan.skipped.iter().any(|left| left.path == path);
    for dir in ["git-data/backups", "gitlab-rails/shared/backups", "gitlab-rails/uploads/own"] {
        let dir = format!("{data}/{dir}");
        let machine = Machine::with(&format!("production:\n  backup:\n    path: {dir}\n"));
        machine.write(&format!("{dir}/1700000000_gitlab_backup.tar"), "archive");
        let plan = machine.plan();
        assert!(is_left(&plan, &machine.at(&dir)), "{dir}: {:?}", plan.skipped);
        assert!(!has_note(&plan, "unknown"), "{:?}", plan.notes);
    }
    // The directory also has data, at its own path or through a link.
    for dir in ["/mnt", "/mnt/shared", "/mnt/nas"] {
        let machine = Machine::with(&format!(
            "production:\n  shared:\n    path: /mnt/shared\n  backup:\n    path: {dir}\n"
        ));
        machine.dir("/mnt/nas/lfs");
        machine.dir("/mnt/shared/artifacts");
        machine.dir("/mnt/nas/hashed");
        machine.link("/mnt/shared/lfs-objects", "/mnt/nas/lfs");
        machine.link(&format!("{data}/git-data/repositories/@hashed"), "/mnt/nas/hashed");
        let archive = format!("{dir}/1700000000_gitlab_backup.tar");
        machine.write(&archive, "archive");
        let plan = machine.plan();
        assert!(!is_left(&plan, &machine.at(dir)), "{dir}: {:?}", plan.skipped);
        assert!(is_left(&plan, &machine.at(&archive)), "{dir}: {:?}", plan.skipped);
        assert!(!has_note(&plan, "unknown"), "{:?}", plan.notes);
        let places = machine.places(&plan, "repositories");
        assert!(places.contains(&"/mnt/nas/hashed".to_owned()), "{dir}: {places:?}");
    }
    // A link to data beside archives alone.
    let machine = Machine::with("production:\n  backup:\n    path: /mnt/nas\n");
    machine.dir("/mnt/nas/hashed");
    machine.link(&format!("{data}/git-data/repositories/@hashed"), "/mnt/nas/hashed");
    let places = machine.places(&machine.plan(), "repositories");
    assert!(places.contains(&"/mnt/nas/hashed".to_owned()), "{places:?}");

    let machine = Machine::with("production: {}\n");
    for dir in ["git-data/.snapshots", "gitlab-rails/uploads/.snapshot", ".zfs"] {
        machine.dir(&format!("{data}/{dir}/1/snapshot/repositories"));
    }
    machine.dir(&format!("{data}/git-data/repositories/.snap/project.git"));
    let plan = machine.plan();
    for dir in ["git-data/.snapshots", "gitlab-rails/uploads/.snapshot", ".zfs"] {
        let dir = machine.at(&format!("{data}/{dir}"));
        assert!(is_left(&plan, &dir), "{dir:?}: {:?}", plan.skipped);
    }
    assert!(!plan.skipped.iter().any(|left| left.path.ends_with(".snap")), "{:?}", plan.skipped);
    assert!(!has_note(&plan, "unknown"), "{:?}", plan.notes);
}

#[test]
fn the_place_of_the_registrys_images_is_named() {
    let machine = Machine::with("production: {}\n");
    let config = "/var/opt/gitlab/registry/config.yml";
    let reason = |storage: &str| {
        machine.write(config, &format!("version: 0.1\nstorage:\n  {storage}\n"));
        let plan = machine.plan();
        let left = plan.skipped.iter().find(|left| left.path.ends_with("gitlab/registry"));
        left.expect("is skipped").reason.clone()
    };
    assert_eq!(reason("s3: {bucket: images}"), "generated by the package");
    assert!(reason("filesystem: {rootdirectory: /mnt/images}").ends_with("/mnt/images"));
}

#[test]
fn host_keys_outside_of_the_usual_directory_are_copied() {
    let machine = Machine::with("production: {}\n");
    machine.write("/etc/ssh/ssh_host_rsa_key", "key");
    machine.write("/etc/ssh/sshd_config", "#HostKey /srv/no\nhostkey /srv/keys/host\n");
    machine.write("/srv/keys/host", "key");
    machine.write("/srv/keys/host.pub", "key");
    machine.write("/srv/sshd/ed25519", "key");
    let keys = "sshd:\n  host_key_files: [/srv/sshd/ed25519, /etc/ssh/ssh_host_rsa_key]\n";
    machine.write("/var/opt/gitlab/gitlab-sshd/config.yml", keys);
    let plan = machine.plan();
    let places = ["/etc/ssh", "/srv/keys/host", "/srv/keys/host.pub"];
    assert_eq!(machine.places(&plan, "ssh-host-keys"), places);
    assert_eq!(machine.places(&plan, "gitlab-sshd-keys"), ["/srv/sshd/ed25519"]);
    assert!(find(&plan, "gitlab-sshd-keys").is_required);
    assert!(!has_note(&plan, "gitlab-sshd"), "{:?}", plan.notes);
}

#[test]
fn other_redis_servers_are_noted() {
    let machine = Machine::with("production: {}\n");
    let etc = "/var/opt/gitlab/gitlab-rails/etc";
    let socket = "/var/opt/gitlab/redis/redis.socket";
    machine.write("/var/opt/gitlab/redis/redis.conf", "bind 127.0.0.1\nport 6379\n");
    machine.write(&format!("{etc}/resque.yml"), &format!("production: {{url: 'unix:{socket}'}}\n"));
    for (name, text) in [
        ("queues", "{url: 'redis://10.9.9.9:7000'}"),
        ("shared_state", "{url: 'unix:///srv/r2/s'}"),
        ("trace_chunks", "{cluster: [{host: a}]}"),
        ("sessions", "{url: 'redis://127.0.0.1:6380'}"),
        ("actioncable", "{url: 'redis://127.0.0.1:6379'}"),
        ("repository_cache", "{url: 'redis://10.9.9.8'}"),
    ] {
        machine.write(&format!("{etc}/redis.{name}.yml"), &format!("production: {text}\n"));
    }
    let plan = machine.plan();
    for note in [
        "Redis for queues is 10.9.9.9 port 7000",
        "Redis for shared_state is /srv/r2/s",
        "Redis for trace_chunks is a cluster",
        "Redis for sessions is 127.0.0.1 port 6380",
    ] {
        assert!(has_note(&plan, note), "{note}: {:?}", plan.notes);
    }
    assert!(!has_note(&plan, "actioncable") && !has_note(&plan, "cache"), "{:?}", plan.notes);
}
