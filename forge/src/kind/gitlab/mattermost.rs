//! The Mattermost that GitLab's package brings along.

use super::paths::Package;
use crate::catalogue::Catalogue;
use crate::error::{Error, Result};
use crate::file;
use crate::kind::Site;
use crate::kind::mattermost::config::{self, Config};
use crate::kind::mattermost::data_source::DataSource;
use crate::kind::mattermost::{
    PLUGINS, SERVICE, asked, compliance, files, in_database, named_files, rows, server,
};
use crate::plan::{Database, Plan};
use crate::process::{Command, QUESTION};
use crate::service::LOOPBACK;
use crate::service::configured;
use crate::service::postgres::{Connection, Server};
use std::collections::BTreeMap;
use std::path::Path;

/// Directory of the package with one file per variable of Mattermost.
const ENVIRONMENT: &str = "/opt/gitlab/etc/mattermost/env";

/// Default name of the database.
const DATABASE: &str = "mattermost_production";

/// Name of the part with uploaded files.
const DATA: &str = "mattermost-data";

/// Adds the Mattermost that GitLab's package brought along.
pub fn fill(package: &Package<'_>, plan: &mut Plan) -> Result<()> {
    let home = package.at("/var/opt/gitlab/mattermost");
    if !home.exists() {
        return Ok(());
    }
    let environment = package.place(Path::new(ENVIRONMENT)).ok();
    let variables = match (&environment, &package.container) {
        (Some(dir), _) => config::variables_in(dir).map(Some),
        (None, Some(container)) => in_container(container.name, package.site, plan).map(Some),
        (None, None) => Ok(None),
    };
    let user = user_of_package(package);
    let unusable = |error: Error, plan: &mut Plan| {
        let text = format!(
            "a usable file ({error}); Mattermost's directories and database are unknown; assuming \
             the defaults"
        );
        plan.lacks("mattermost-config", text);
    };
    // Invalid Mattermost settings must not prevent the backup of GitLab.
    let variables = variables.unwrap_or_else(|error| {
        unusable(error, plan);
        None
    });
    let variables = variables.unwrap_or_default();
    let kept_at = variables.get("MM_CONFIG").cloned().unwrap_or_default();
    let about = "configuration of Mattermost, with secrets";
    let in_database = in_database::is_meant(&kept_at).then_some(kept_at.as_str());
    let config = if let Some(source) = in_database {
        plan.notes.push(rows::IN_DATABASE.into());
        plan.takes("mattermost-config", about, home.join("config.json"));
        Config::of(of_gitlabs_server(source, package, plan)?.unwrap_or_default(), variables)
    } else {
        let path = Path::new(&kept_at);
        let path = match path.is_absolute().then(|| package.place(path)) {
            Some(Ok(path)) => path,
            _ => home.join("config.json"),
        };
        plan.needs("mattermost-config", about, path.clone()).owner = Some(user.clone());
        Config::read(&path, variables.clone()).unwrap_or_else(|error| {
            unusable(error, plan);
            Config::of(serde_json::Value::Null, variables)
        })
    };
    plan.notes.extend(config.overridden(if in_database.is_some() {
        "the database"
    } else {
        "config.json"
    }));
    let part = plan.needs("mattermost", "Mattermost's files and plugins", home.clone());
    part.owner = Some(user.clone());
    let at = |path: &Path| {
        if path.is_absolute() { package.at(path) } else { home.join(path) }
    };
    files(&config, DATA, "data", &at, plan).owner = Some(user.clone());
    for (name, about, key) in PLUGINS {
        // Plugins below the home directory are already in its part.
        let elsewhere = config.directory("PluginSettings", key, &at);
        if let Some(path) = elsewhere.filter(|path| !path.starts_with(&home)) {
            plan.takes(&format!("mattermost-{name}"), about, path).owner = Some(user.clone());
        }
    }
    let about = "settings that override its configuration";
    compliance(&config, "mattermost-", &at, plan);
    named_files(&config, "mattermost-", &at, plan);
    // In a container, `gitlab-ctl reconfigure` makes it again at each start.
    if let Some(environment) = environment {
        plan.takes("mattermost-environment", about, environment);
    }
    database(&config, in_database, package, plan);
    Ok(())
}

/// Reads the environment in a running container. If it does not answer, a note reports this.
fn in_container(
    container: &str,
    site: &Site<'_>,
    plan: &mut Plan,
) -> Result<BTreeMap<String, String>> {
    let not_read = |reason: String, plan: &mut Plan| {
        plan.notes.push(format!(
            "Mattermost's environment is inside the container and is not read{reason}; using the \
             directories of its configuration"
        ));
        Ok(BTreeMap::new())
    };
    if site.is_offline {
        return not_read(" offline".into(), plan);
    }
    let script = format!(
        "cd {ENVIRONMENT} || exit 0; for name in MM_*; do [ -f \"$name\" ] || continue; \
         printf '%s\\0' \"$name\"; cat \"$name\"; printf '\\0'; done"
    );
    let words = site.settings.docker.iter().map(String::as_str);
    let words = words.chain(["exec", container, "sh", "-c", &script]);
    match Command::new(words).within(QUESTION).secret(site.progress) {
        Ok(answer) => Ok(config::variables_of(&String::from_utf8_lossy(&answer))),
        Err(error) if error.is_interrupted() => Err(error),
        Err(error) => not_read(format!(" ({error})"), plan),
    }
}

/// Returns the user who runs the Mattermost of the package. `mattermost['username']` may change it.
fn user_of_package(package: &Package<'_>) -> String {
    let run = package.place(Path::new("/opt/gitlab/sv/mattermost/run")).ok();
    let text = run.and_then(|path| file::text(&path).ok().flatten()).unwrap_or_default();
    let mut words = text.split_whitespace().skip_while(|word| *word != "-u").skip(1);
    let user = words.next().map(|word| word.trim_start_matches(':'));
    let user = user.and_then(|word| word.split(':').next()).filter(|name| !name.is_empty());
    user.unwrap_or(SERVICE).to_owned()
}

/// Reads the settings from a database on GitLab's server or on another one.
fn of_gitlabs_server(
    text: &str,
    package: &Package<'_>,
    plan: &mut Plan,
) -> Result<Option<serde_json::Value>> {
    let site = package.site;
    let source = match DataSource::parse(text) {
        Ok(source) => source,
        Err(reason) => {
            plan.lacks("mattermost-settings", format!("MM_CONFIG is unusable: {reason}"));
            return Ok(None);
        }
    };
    let name = source.database.clone().unwrap_or_else(|| DATABASE.into());
    let server = if is_of_gitlab(&source, package, plan) {
        configured::postgres(site.settings, plan.postgres.clone())
    } else {
        Some(server(source, site))
    };
    asked(site, &server.unwrap_or_default(), &name, plan)
}

/// Adds the database from Mattermost's settings if it is on GitLab's server. Otherwise the plan
/// records it as missing.
fn database(config: &Config, in_database: Option<&str>, package: &Package<'_>, plan: &mut Plan) {
    let purpose = "mattermost".into();
    let mut database = Database { name: DATABASE.into(), purpose, is_required: true };
    let source = config.text("SqlSettings", "DataSource").or(in_database);
    let source = source.map(DataSource::parse).transpose();
    let source = source.unwrap_or_else(|reason| {
        plan.notes.push(format!(
            "SqlSettings.DataSource of Mattermost is unusable: {reason}; assuming database \
             {DATABASE}"
        ));
        None
    });
    if let Some(source) = source {
        database.name = source.database.clone().unwrap_or(database.name);
        if !is_of_gitlab(&source, package, plan) {
            let usual = Server::default().port;
            let looked_for = format!(
                "database {} on {}:{}, not on GitLab's server; dump it there",
                database.name,
                source.host.as_deref().unwrap_or("localhost"),
                source.port.unwrap_or(usual),
            );
            plan.notes.push(format!("Mattermost uses {looked_for}"));
            plan.lacks(&database.part(), looked_for);
            return;
        }
    }
    plan.databases.push(database);
}

/// Returns true if an address refers to GitLab's database server.
fn is_of_gitlab(source: &DataSource, package: &Package<'_>, plan: &Plan) -> bool {
    let Some(server) = &plan.postgres else { return false };
    let host = server.host.as_deref().unwrap_or_default();
    let is_local = host.starts_with('/');
    let is_same = match source.host.as_deref() {
        Some(dir) if dir.starts_with('/') => package.inside(dir) == Path::new(host),
        // Without a host the address means this machine, where only one server can have the port.
        None => is_local || LOOPBACK.contains(&host),
        Some(name) if LOOPBACK.contains(&name) => is_local || LOOPBACK.contains(&host),
        Some(name) => name == host,
    };
    is_same && source.port.unwrap_or(Server::default().port) == server.port
}

/// Queries the rows of uploaded files for a Mattermost with GitLab.
pub fn ask(plan: &Plan, databases: &mut [Connection<'_>], catalogue: &mut Catalogue) -> Result<()> {
    let own = plan.databases.iter().find(|database| database.purpose == "mattermost");
    let Some(own) = own else { return Ok(()) };
    let is_it = |database: &&mut Connection<'_>| database.database == own.name;
    for database in databases.iter_mut().filter(is_it) {
        rows::files(plan, DATA, database, catalogue)?;
    }
    Ok(())
}
