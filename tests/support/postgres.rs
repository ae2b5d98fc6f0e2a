//! A real PostgreSQL cluster in a directory.

use super::accounts::Account;
use super::sandbox::{Outcome, Run};
use super::server::{Server, Signal};
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Returns the program directory of the newest installed PostgreSQL, which is not on the path.
pub fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let newest = versions
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&version| programs_of(version).join("postgres").exists())
        .max();
    programs_of(newest.expect("the server of PostgreSQL is installed"))
}

fn programs_of(version: u32) -> PathBuf {
    format!("/usr/lib/postgresql/{version}/bin").into()
}

/// Options for a new cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the data; the account must be able to pass the directories above.
    pub data: PathBuf,
    /// Directory of the socket, `.s.PGSQL.5432`. The full path may have 107 bytes.
    pub sockets: PathBuf,
    /// Log file of the server.
    pub log: PathBuf,
    /// The database's superuser.
    pub superuser: String,
    /// The system account that runs it.
    pub account: String,
}

impl Options {
    /// Everything in one directory, with the names that Omnibus GitLab uses.
    pub fn within(dir: &Path) -> Options {
        Options {
            data: dir.join("data"),
            sockets: dir.to_owned(),
            log: dir.join("log"),
            superuser: "gitlab-psql".into(),
            account: "gitlab-psql".into(),
        }
    }
}

/// A cluster whose server runs until it is stopped or dropped. It accepts any user name without a
/// password.
pub struct Postgres {
    options: Options,
    account: Account,
    programs: PathBuf,
    server: Option<Server>,
}

impl Postgres {
    /// Creates a cluster and starts its server.
    pub fn start(options: Options) -> Postgres {
        let mut postgres = Postgres::make(options);
        postgres.start_again();
        postgres
    }

    /// Creates a cluster without starting a server.
    pub fn make(options: Options) -> Postgres {
        let account = Account::named(&options.account);
        for (dir, mode) in [(&options.sockets, 0o755), (&options.data, 0o700)] {
            if !dir.exists() {
                DirBuilder::new().recursive(true).mode(0o755).create(dir).expect("a directory");
            }
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(dir, mode).expect("its mode");
            account.own(dir);
        }
        let programs = programs();
        let initdb = account.run(programs.join("initdb")).args(["-D"]).args([&options.data]);
        initdb
            .args(["-A", "trust", "-U", &options.superuser, "-E", "UTF8", "--locale=C.UTF-8"])
            .args(["--no-sync", "--no-instructions"])
            .within(Path::new("/"))
            .run()
            .ok();
        let configuration = options.data.join("postgresql.conf");
        let mut configuration = File::options().append(true).open(configuration).expect("is there");
        write!(
            configuration,
            "listen_addresses = ''\n\
             unix_socket_directories = '{}'\n\
             unix_socket_permissions = 0777\n\
             fsync = off\n\
             full_page_writes = off\n\
             shared_buffers = 32MB\n\
             max_wal_senders = 0\n\
             wal_level = minimal\n",
            options.sockets.display()
        )
        .expect("writes");
        Postgres { options, account, programs, server: None }
    }

    /// Starts the server and waits until it answers.
    pub fn start_again(&mut self) {
        let mut server = self.spawn(Duration::ZERO);
        server.wait_until(|| self.is_ready());
        self.server = Some(server);
    }

    /// Starts the server after a while, without waiting for it. There is no socket until then.
    pub fn start_after(&mut self, delay: Duration) {
        self.server = Some(self.spawn(delay));
    }

    fn spawn(&self, delay: Duration) -> Server {
        let delay = delay.as_secs_f64().to_string();
        let postgres = self.programs.join("postgres");
        let [postgres, data] = [&postgres, &self.options.data].map(|path| path.to_str());
        let (postgres, data) = (postgres.expect("readable"), data.expect("readable"));
        // The sleeping process itself becomes the server, so that its id stays the same.
        let script = "select(undef, undef, undef, shift); exec @ARGV";
        let arguments = ["perl", "-e", script, &delay, postgres, "-D", data];
        Server::start(self.account, &arguments, &self.options.log, &[Signal::INT, Signal::QUIT])
    }

    /// Returns true if the server answers.
    pub fn is_ready(&self) -> bool {
        let ready = self.tool("pg_isready").args(["-q", "-t", "5"]).run();
        ready.code() == Some(0)
    }

    /// Shuts the server down cleanly.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Sends the server a signal. QUIT ends it and its sessions at once; STOP makes it silent until
    /// CONT.
    pub fn signal(&self, signal: Signal) {
        self.server.as_ref().expect("runs").signal(signal);
    }

    /// Waits until the server has ended, after [`signal`](Self::signal).
    pub fn wait_for_end(&mut self) {
        let mut server = self.server.take().expect("runs");
        super::server::wait_until("the server ends", || server.has_ended());
    }

    /// Returns the directory of its socket, which clients use as host name.
    pub fn socket_dir(&self) -> &Path {
        &self.options.sockets
    }

    /// Returns the name of the superuser.
    pub fn superuser(&self) -> &str {
        &self.options.superuser
    }

    /// Prepares a program of PostgreSQL, connected as the superuser.
    pub fn tool(&self, name: &str) -> Run {
        let program = self.programs.join(name);
        Run::limited(program)
            .env("PGHOST", &self.options.sockets)
            .env("PGUSER", &self.options.superuser)
            .env("PGCONNECT_TIMEOUT", "10")
            .args(["-U", &self.options.superuser])
    }

    /// Runs SQL in a database. Panics at the first error.
    #[track_caller]
    pub fn sql(&self, database: &str, text: impl AsRef<str>) {
        self.psql(database, text.as_ref()).ok();
    }

    /// Returns the result of a query: one row per line, columns separated by `|`.
    #[track_caller]
    pub fn query(&self, database: &str, text: impl AsRef<str>) -> String {
        let answer = self.psql(database, text.as_ref()).ok().stdout;
        answer.trim_end_matches('\n').to_owned()
    }

    /// Runs SQL in a database and returns any outcome.
    pub fn psql(&self, database: &str, text: &str) -> Outcome {
        let psql = self.tool("psql").args(["-qXAt", "-v", "ON_ERROR_STOP=1", "-d", database]);
        psql.input(text).run()
    }
}
