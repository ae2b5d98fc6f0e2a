//! Mattermost on its own. The kind of GitLab's package uses its modules for the Mattermost beside
//! GitLab.

pub mod config;
pub mod data_source;
pub mod in_database;
pub mod rows;
pub mod single_sign_on;

use super::{Kind, Rebuilding, Site, below};
use crate::catalogue::Catalogue;
use crate::check::Check;
use crate::earlier::Earlier;
use crate::error::{Error, Result};
use crate::plan::{Database, Part, Plan, Product};
use crate::service::LOOPBACK;
use crate::service::configured;
use crate::service::control::{Control, Speaks, Supervisor};
use crate::service::postgres::{Connection, Server};
use crate::view::{View, shown};
use config::{Config, Unit};
use data_source::DataSource;
use std::path::{Path, PathBuf};

/// Mattermost on its own.
pub struct Mattermost;

/// Installation directory.
const HOME: &str = "/opt/mattermost";

/// Directory and file with the settings.
const CONFIG: &str = "config";
const CONFIG_FILE: &str = "config.json";

/// Default name of the database.
const DATABASE: &str = "mattermost";

/// Role, password and database in the configuration that its package brings.
const DEFAULT_ROLE: &str = "mmuser";
const DEFAULT_PASSWORD: &str = "mostest";
const DEFAULT_DATABASE: &str = "mattermost_test";

/// Name of the service, and of the user who runs it.
pub const SERVICE: &str = "mattermost";

/// Parts with plugins: name, description, and the setting with their directory.
pub const PLUGINS: [(&str, &str, &str); 2] = [
    ("plugins", "plugins", "Directory"),
    ("client-plugins", "plugins for browsers", "ClientDirectory"),
];

/// Name of the part with uploaded files.
const DATA: &str = "data";

impl Kind for Mattermost {
    fn name(&self) -> &'static str {
        "mattermost"
    }

    fn title(&self) -> &'static str {
        "Mattermost on its own"
    }

    fn detect(&self, root: &Path) -> Option<String> {
        let config = below(root, Path::new(HOME)).join(CONFIG).join(CONFIG_FILE);
        let unit = || Unit::read(root).ok().flatten()?.files.into_iter().next();
        let found = Some(config).filter(|config| config.exists()).or_else(unit);
        found.map(|path| path.display().to_string())
    }

    fn rebuilding(&self) -> Rebuilding {
        Rebuilding {
            first: &["config", "config.json", "service"],
            configure: Some(&["daemon-reload"]),
            is_version_in_database: true,
            ..Rebuilding::default()
        }
    }

    fn is_default(&self, plan: &Plan) -> bool {
        let is_named = |name: &str| plan.databases.iter().any(|database| database.name == name);
        plan.postgres.as_ref().is_some_and(|server| {
            server.host.as_deref().is_some_and(|host| LOOPBACK.contains(&host))
                && server.role.as_deref() == Some(DEFAULT_ROLE)
                && server.password.as_ref().is_some_and(|known| known.0 == DEFAULT_PASSWORD)
                && is_named(DEFAULT_DATABASE)
        })
    }

    fn fill(&self, site: &Site<'_>, plan: &mut Plan) -> Result<()> {
        plan.product = Product { name: "Mattermost".into(), ..Product::default() };
        let unit = Unit::read(&site.settings.root)?;
        let has_unit = unit.is_some();
        let unit = unit.unwrap_or_default();
        let kept_at = unit.config.clone().or_else(|| unit.variables.get("MM_CONFIG").cloned());
        let kept_at = kept_at.unwrap_or_default();
        let is_in_database = in_database::is_meant(&kept_at);
        let places = places(site, unit.directory.as_deref());
        let at = |path: &Path| found_in(site, &places, path);
        let is_default = is_in_database || kept_at.is_empty();
        let path = config_file(if is_default { CONFIG_FILE } else { &kept_at }, &at);
        // Without a unit, nothing shows which user runs it.
        let user = unit.user.clone();
        let config = at(Path::new(CONFIG));
        let part = plan.part("config", "its configuration, with secrets", config, !is_in_database);
        part.owner.clone_from(&user);
        if is_in_database {
            plan.notes.push(rows::IN_DATABASE.into());
        } else if !path.starts_with(at(Path::new(CONFIG))) {
            plan.needs("config.json", "its configuration, with secrets", path.clone());
        } else if !path.exists() {
            plan.lacks("config.json", shown(&path));
        }
        if !unit.files.is_empty() {
            let part =
                plan.takes("service", "its unit and variables, with secrets", PathBuf::new());
            part.paths = unit.files;
        }
        let config = if is_in_database {
            let source = data_source(&kept_at, "MM_CONFIG", site)?;
            let name = source.database.clone().unwrap_or_else(|| DATABASE.into());
            let server = configured::postgres(site.settings, Some(server(source, site)));
            let settings = asked(site, &server.unwrap_or_default(), &name, plan)?;
            Config::of(settings.unwrap_or_default(), unit.variables)
        } else {
            Config::read(&path, unit.variables).map_err(|error| match error {
                Error::Malformed { path, reason } => {
                    let unknown = "Mattermost's files and database are unknown";
                    Error::Malformed { path, reason: format!("{reason}; {unknown}") }
                }
                other => other,
            })?
        };
        plan.notes.extend(config.overridden(if is_in_database {
            "the database"
        } else {
            "config.json"
        }));
        files(&config, DATA, "data", &at, plan).owner.clone_from(&user);
        for ((name, about, key), usual) in PLUGINS.into_iter().zip(["plugins", "client/plugins"]) {
            let path = config.directory("PluginSettings", key, &at);
            let path = path.unwrap_or_else(|| at(Path::new(usual)));
            plan.takes(name, about, path).owner.clone_from(&user);
        }
        compliance(&config, "", &at, plan);
        named_files(&config, "", &at, plan);
        plan.leaves(at(Path::new("logs")), "logs");
        if let Some(dir) = config.directory("BleveSettings", "IndexDir", &at) {
            plan.leaves(dir, "a search index, which Mattermost rebuilds");
        }
        let in_database = is_in_database.then_some(kept_at.as_str());
        database(&config, in_database, site, plan)?;
        let runs_by_runit = ["/etc/sv", "/etc/service"].map(|dir| site.at(dir).join(SERVICE));
        let is_runits = !has_unit && runs_by_runit.iter().any(|dir| dir.exists());
        let (speaks, program) =
            if is_runits { (Speaks::Runit, "sv") } else { (Speaks::Systemd, "systemctl") };
        plan.control = Control::Supervised(Supervisor::new(speaks, [program], [SERVICE]));
        if config.text("GitLabSettings", "Id").is_some() {
            plan.notes.push(
                "single sign-on needs an application in another GitLab, which is not checked"
                    .into(),
            );
        }
        Ok(())
    }

    fn ask(&self, plan: &Plan, databases: &mut [Connection<'_>]) -> Result<Catalogue> {
        let mut catalogue = Catalogue::default();
        for database in databases {
            rows::product(plan, database, &mut catalogue)?;
            rows::files(plan, DATA, database, &mut catalogue)?;
        }
        Ok(catalogue)
    }

    fn check(
        &self,
        plan: &Plan,
        catalogue: &mut Catalogue,
        view: &View<'_>,
        _earlier: Option<&Earlier<'_>>,
    ) -> Result<Vec<Check>> {
        rows::check(plan, catalogue, view)
    }
}

/// Directories in which Mattermost looks for relative paths: where it works, the directory above,
/// and its home.
fn places(site: &Site<'_>, works_in: Option<&str>) -> Vec<PathBuf> {
    let works_in = works_in.map(|dir| site.at(dir)).filter(|dir| dir.is_dir());
    let above = works_in.as_deref().and_then(Path::parent).map(Path::to_owned);
    works_in.into_iter().chain(above).chain([site.at(HOME)]).collect()
}

/// Returns a relative path in the first of the places that has it, or else in the first of all.
/// Maps an absolute path to this machine.
fn found_in(site: &Site<'_>, places: &[PathBuf], path: &Path) -> PathBuf {
    if path.is_absolute() {
        return site.at(path);
    }
    let found = places.iter().map(|place| place.join(path)).find(|path| path.exists());
    found.unwrap_or_else(|| places.first().map_or_else(|| site.at(HOME), PathBuf::clone).join(path))
}

/// Returns the file with the settings. Mattermost looks for a relative path in `config` first.
fn config_file(kept_at: &str, at: &dyn Fn(&Path) -> PathBuf) -> PathBuf {
    let path = Path::new(kept_at);
    if path.is_absolute() {
        return at(path);
    }
    let inner = at(&Path::new(CONFIG).join(path));
    let outer = at(path);
    let is_outer = !inner.exists() && (outer.exists() || path.starts_with(CONFIG));
    if is_outer { outer } else { inner }
}

/// Adds the part with uploaded files.
pub fn files<'a>(
    config: &Config,
    name: &str,
    usual: &str,
    at: &dyn Fn(&Path) -> PathBuf,
    plan: &'a mut Plan,
) -> &'a mut Part {
    let dir = config.directory("FileSettings", "Directory", at);
    let dir = dir.unwrap_or_else(|| at(Path::new(usual)));
    if config.text("FileSettings", "DriverName").is_some_and(|driver| driver != "local") {
        let note = "uploaded files are in an object store, which is not copied";
        plan.notes.push(note.into());
        // Files from before the object store remain in the directory. Rows do not identify them.
        return plan.takes(&rows::before(name), "files uploaded before the object store", dir);
    }
    plan.needs(name, "uploaded files", dir)
}

/// Adds the directory of compliance reports, which by default is that of uploaded files.
pub fn compliance(config: &Config, prefix: &str, at: &dyn Fn(&Path) -> PathBuf, plan: &mut Plan) {
    let Some(dir) = config.directory("ComplianceSettings", "Directory", at) else { return };
    let is_known = plan.parts.iter().flat_map(|part| &part.paths).any(|path| dir.starts_with(path));
    if !is_known {
        plan.takes(&format!("{prefix}compliance"), "compliance reports", dir);
    }
}

/// Files that settings name, which may be outside all parts.
const FILES: [(&str, &str); 8] = [
    ("ServiceSettings", "TLSCertFile"),
    ("ServiceSettings", "TLSKeyFile"),
    ("ServiceSettings", "LicenseFileLocation"),
    ("SamlSettings", "IdpCertificateFile"),
    ("SamlSettings", "PublicCertificateFile"),
    ("SamlSettings", "PrivateKeyFile"),
    ("LdapSettings", "PublicCertificateFile"),
    ("LdapSettings", "PrivateKeyFile"),
];

/// Adds certificates and a license outside all parts.
pub fn named_files(config: &Config, prefix: &str, at: &dyn Fn(&Path) -> PathBuf, plan: &mut Plan) {
    let files = FILES.iter().filter_map(|(section, key)| config.directory(section, key, at));
    let sources = [("SqlSettings", "DataSource")].into_iter();
    let sources = sources.filter_map(|(section, key)| config.text(section, key));
    let of_sources = sources.flat_map(certificates_of).map(|path| at(&path));
    let files = files.chain(of_sources);
    let is_known = |path: &PathBuf| {
        plan.parts.iter().flat_map(|part| &part.paths).any(|known| path.starts_with(known))
    };
    let files: Vec<PathBuf> = files.filter(|path| path.is_file() && !is_known(path)).collect();
    if !files.is_empty() {
        let part = plan.takes(
            &format!("{prefix}named-files"),
            "certificates and license that the settings name",
            PathBuf::new(),
        );
        part.paths = files;
    }
}

/// Returns the files with certificates and keys that the address of a database names.
fn certificates_of(source: &str) -> Vec<PathBuf> {
    let is_end = |c: char| c == '?' || c == '&' || c.is_whitespace();
    let named = source.split(is_end).filter_map(|setting| {
        let (name, value) = setting.split_once('=')?;
        let is_file = ["sslrootcert", "sslcert", "sslkey", "sslcrl"].contains(&name);
        let value = value.trim_matches('\'').replace("%2F", "/").replace("%2f", "/");
        (is_file && value.starts_with('/')).then(|| value.into())
    });
    named.collect()
}

/// Adds the server and the database from the settings. If the settings are in a database
/// (`in_database`), adds that one as well. If it is on another server, the plan records it as
/// missing.
fn database(
    config: &Config,
    in_database: Option<&str>,
    site: &Site<'_>,
    plan: &mut Plan,
) -> Result<()> {
    let mysql = config.text("SqlSettings", "DriverName") == Some("mysql");
    let is_mysql = |source: &str| source.starts_with("mysql:") || source.contains("@tcp(");
    if mysql || in_database.is_some_and(is_mysql) {
        return Err(site.wrong(
            "its database is MySQL, but only PostgreSQL is supported; migrate it to PostgreSQL, as \
             Mattermost recommends; or make its directories an instance of kind `plain` and pipe \
             the output of mysqldump to `forgekeep backup --stdin-name`",
        ));
    }
    let setting = config.text("SqlSettings", "DataSource");
    let Some(text) = setting.or(in_database) else {
        // Without a list of databases in the settings, nothing shows that the assumption is right.
        if !plan.has_listed_databases && plan.lacking.is_empty() {
            let text = "SqlSettings.DataSource, which every Mattermost has in its settings or in \
                        MM_SQLSETTINGS_DATASOURCE; assuming the default database";
            plan.lacks("config.json", text);
        }
        let server = Server { databases: Some(vec![DATABASE.into()]), ..Server::default() };
        plan.postgres = Some(server);
        let purpose = "mattermost".into();
        plan.databases.push(Database { name: DATABASE.into(), purpose, is_required: true });
        return Ok(());
    };
    let source = data_source(text, "SqlSettings.DataSource", site)?;
    let name = source.database.clone().unwrap_or_else(|| DATABASE.into());
    let mut server = server(source, site);
    // The server may also have databases that do not belong to Mattermost.
    let mut names = vec![name.clone()];
    plan.databases.push(Database { name, purpose: "mattermost".into(), is_required: true });
    if let Some(text) = in_database {
        let source = data_source(text, "MM_CONFIG", site)?;
        let name = source.database.clone().unwrap_or_else(|| DATABASE.into());
        let of_settings = self::server(source, site);
        let purpose = "mattermost-settings".to_owned();
        let own = Database { name: name.clone(), purpose, is_required: true };
        if (&of_settings.host, of_settings.port) != (&server.host, server.port) {
            let host = of_settings.host.as_deref().unwrap_or("the default socket");
            let looked_for = format!(
                "database {name} on {host} port {}, which contains the settings, is not on the \
                 server of Mattermost's own database; dump it there",
                of_settings.port
            );
            plan.lacks(&own.part(), looked_for);
        } else if !names.contains(&name) {
            names.push(name);
            plan.databases.push(own);
        }
    }
    server.databases = Some(names);
    plan.postgres = Some(server);
    Ok(())
}

/// Parses the address of a database. Errors contain no part of the address.
fn data_source(text: &str, named: &str, site: &Site<'_>) -> Result<DataSource> {
    DataSource::parse(text)
        .map_err(|reason| site.wrong(format!("{named} of Mattermost is unusable: {reason}")))
}

/// Returns the server of an address.
pub fn server(source: DataSource, site: &Site<'_>) -> Server {
    let mut server = Server::default();
    // Over a socket, the server accepts the user that runs Mattermost without a password.
    let is_socket = source.host.as_ref().is_none_or(|host| host.starts_with('/'));
    if is_socket && source.password.is_none() {
        server.reach.user = Some(SERVICE.into());
    }
    // Paths from the settings are relative to the root.
    server.host = source.host.map(|host| match host.strip_prefix('/') {
        Some(_) => site.at(&host).display().to_string(),
        None => host,
    });
    server.port = source.port.unwrap_or(server.port);
    server.role = source.role;
    server.password = source.password;
    server.encryption = source.encryption;
    server
}

/// Reads the settings from a database. If they cannot be read, the plan records them as missing.
pub fn asked(
    site: &Site<'_>,
    server: &Server,
    database: &str,
    plan: &mut Plan,
) -> Result<Option<serde_json::Value>> {
    if site.is_offline {
        plan.is_assumed = true;
        plan.notes.push(format!(
            "Mattermost's settings in database {database} are not read offline; assuming the \
             default directories"
        ));
        return Ok(None);
    }
    match in_database::read(server, database, site.progress) {
        Ok(settings) => Ok(Some(settings)),
        Err(error) if error.is_interrupted() => Err(error),
        Err(error) => {
            let looked_for = format!(
                "settings in database {database} ({error}); Mattermost's directories are unknown; \
                 assuming the defaults"
            );
            plan.lacks("mattermost-settings", looked_for);
            plan.is_assumed = true;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use store::observe::Progress;

    #[test]
    fn files_that_settings_name_elsewhere_are_a_part() {
        let root = tempfile::tempdir().expect("a directory");
        let files =
            ["idp.crt", "sp.crt", "sp.key", "ldap.key", "root.crt", "client.key", "unused.crt"];
        for name in files {
            let path = root.path().join("srv/keys").join(name);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
            std::fs::write(path, "").expect("writes");
        }
        let source = "postgres://mm@localhost/mm?sslmode=verify-full&sslrootcert=/srv/keys/root.crt\
                      &sslkey=%2Fsrv%2Fkeys%2Fclient.key&sslcert=relative.crt";
        let settings = serde_json::json!({
            "SqlSettings": { "DataSource": source },
            "SamlSettings": {
                "IdpCertificateFile": "/srv/keys/idp.crt",
                "PublicCertificateFile": "/srv/keys/sp.crt",
                "PrivateKeyFile": "/srv/keys/sp.key",
            },
            "LdapSettings": { "PrivateKeyFile": "/srv/keys/ldap.key" },
        });
        let text = format!("kind = 'mattermost'\nroot = '{}'", root.path().display());
        let own: Settings = toml::from_str(&text).expect("settings");
        let mut plan = Plan::new("chat", "mattermost", &own);
        let at = |path: &Path| crate::kind::below(root.path(), path);
        named_files(&Config::of(settings, Default::default()), "", &at, &mut plan);
        let names = plan.parts[0].paths.iter().filter_map(|path| path.file_name()?.to_str());
        let mut names: Vec<&str> = names.collect();
        names.sort_unstable();
        let mut wanted = files[..6].to_vec();
        wanted.sort_unstable();
        assert_eq!(names, wanted);
    }

    #[test]
    fn a_missing_configuration_makes_the_plan_incomplete() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("directories");
            std::fs::write(path, text).expect("writes");
        };
        let lacking = || {
            let text = format!("kind = 'mattermost'\nroot = '{}'", root.path().display());
            let settings: Settings = toml::from_str(&text).expect("settings");
            let progress = Progress::default();
            let site = Site {
                instance: "chat",
                settings: &settings,
                progress: &progress,
                is_offline: true,
            };
            let (plan, _) = crate::overrides::plan(&site).expect("a plan");
            plan.lacking.into_iter().map(|absent| absent.part).collect::<Vec<_>>()
        };
        write("opt/mattermost/config/README", "");
        assert_eq!(lacking(), ["config.json"]);
        for text in ["{}", "null", "[]", "{\"SqlSettings\": {\"DataSource\": \"\"}}"] {
            write("opt/mattermost/config/config.json", text);
            assert_eq!(lacking(), ["config.json"], "{text}");
        }
        let whole = r#"{"SqlSettings": {"DataSource": "postgres://mm@localhost/chat"}}"#;
        write("opt/mattermost/config/config.json", whole);
        assert!(lacking().is_empty());
        for text in ["", "{\"FileSettings\": {", "{} {}"] {
            write("opt/mattermost/config/config.json", text);
            let settings = format!("kind = 'mattermost'\nroot = '{}'", root.path().display());
            let settings: Settings = toml::from_str(&settings).expect("settings");
            let progress = Progress::default();
            let (instance, settings) = ("chat", &settings);
            let site = Site { instance, settings, progress: &progress, is_offline: true };
            let error = crate::overrides::plan(&site).err().expect("no JSON").to_string();
            assert!(
                error.contains("config.json") && error.contains("database are unknown"),
                "{error}"
            );
        }
        std::fs::remove_file(root.path().join("opt/mattermost/config/config.json"))
            .expect("removes");
        let unit = "etc/systemd/system/mattermost.service";
        write(unit, "[Service]\nEnvironment=MM_CONFIG=postgres://mm@localhost/chat\n");
        assert!(lacking().is_empty());

        // A relative path, from the directory in which Mattermost works or from its `config`.
        write("srv/chat/bin/mattermost", "");
        write("srv/chat/own/mm.json", whole);
        write("srv/chat/config/config.json", whole);
        for (directory, path) in [
            ("/srv/chat", "config.json"),
            ("/srv/chat", "config/config.json"),
            ("/srv/chat", "own/mm.json"),
            ("/srv/chat/bin", "config.json"),
        ] {
            write(
                unit,
                &format!(
                    "WorkingDirectory={directory}\nExecStart=/bin/sh -c 'bin/mattermost --config \
                     \"{path}\"'\n"
                ),
            );
            assert!(lacking().is_empty(), "{directory} {path}: {:?}", lacking());
        }
        write(unit, "WorkingDirectory=/srv/chat\nEnvironment=MM_CONFIG=other.json\n");
        assert_eq!(lacking(), ["config.json"]);
    }

    #[test]
    fn no_form_of_a_database_address_is_printed() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("etc/systemd/system");
        std::fs::create_dir_all(&dir).expect("directories");
        for address in [
            "postgres://mm:hush@db/chat",
            "host=db dbname=chat password=hush",
            "password='hush' host=db user",
            "mm:hush@tcp(db:3306)/chat",
            "mysql://mm:hush@tcp(db:3306)/chat",
            "odd://mm:hush@db",
        ] {
            let text = format!("[Service]\nEnvironment=\"MM_CONFIG={address}\"\n");
            std::fs::write(dir.join("mattermost.service"), text).expect("writes");
            let text = format!("kind = 'mattermost'\nroot = '{}'", root.path().display());
            let settings: Settings = toml::from_str(&text).expect("settings");
            let progress = Progress::default();
            let (instance, settings) = ("chat", &settings);
            let site = Site { instance, settings, progress: &progress, is_offline: true };
            let printed = match crate::overrides::plan(&site) {
                Ok((plan, _)) => format!("{plan:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!printed.contains("hush"), "{address}: {printed}");
        }
    }
}
