//! A real PostgreSQL cluster in a directory.

use super::accounts::Account;
use super::sandbox::{Outcome, Run};
use super::server::{Server, Signal};
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the newest installed PostgreSQL has its programs, which are not on the path.
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

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the data go; everything above has to let the account through.
    pub data: PathBuf,
    /// Where the socket goes, `.s.PGSQL.5432`; 107 bytes with its name.
    pub sockets: PathBuf,
    /// Where the server's messages go.
    pub log: PathBuf,
    /// The database's superuser.
    pub superuser: String,
    /// The system account that runs it.
    pub account: String,
}

impl Options {
    /// Everything in one directory, with the names that Omnibus GitLab gives.
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

/// A cluster whose server runs until it is stopped or dropped. Whoever connects
/// is whom he says.
pub struct Postgres {
    options: Options,
    account: Account,
    programs: PathBuf,
    server: Option<Server>,
}

impl Postgres {
    /// Makes a cluster and starts its server.
    pub fn start(options: Options) -> Postgres {
        let mut postgres = Postgres::make(options);
        postgres.start_again();
        postgres
    }

    /// Makes a cluster without starting a server.
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

    /// Starts the server after a while, and does not wait: until then there is
    /// no socket.
    pub fn start_after(&mut self, delay: Duration) {
        self.server = Some(self.spawn(delay));
    }

    fn spawn(&self, delay: Duration) -> Server {
        let delay = delay.as_secs_f64().to_string();
        let postgres = self.programs.join("postgres");
        let [postgres, data] = [&postgres, &self.options.data].map(|path| path.to_str());
        let (postgres, data) = (postgres.expect("readable"), data.expect("readable"));
        // One process first sleeps and then is the server: nothing to lose sight of.
        let script = "select(undef, undef, undef, shift); exec @ARGV";
        let arguments = ["perl", "-e", script, &delay, postgres, "-D", data];
        Server::start(self.account, &arguments, &self.options.log, &[Signal::INT, Signal::QUIT])
    }

    /// Whether the server answers.
    pub fn is_ready(&self) -> bool {
        let ready = self.tool("pg_isready").args(["-q", "-t", "5"]).run();
        ready.code() == Some(0)
    }

    /// Stops the server in good order.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Sends the server a signal: QUIT ends it at once and its sessions with
    /// it, STOP makes it silent until CONT.
    pub fn signal(&self, signal: Signal) {
        self.server.as_ref().expect("runs").signal(signal);
    }

    /// Waits until the server has ended, after [`signal`](Self::signal).
    pub fn wait_for_end(&mut self) {
        let mut server = self.server.take().expect("runs");
        super::server::wait_until("the server ends", || server.has_ended());
    }

    /// What the server said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.options.log).expect("a log")).into_owned()
    }

    /// The directory of its socket, which is its host name for clients.
    pub fn socket_dir(&self) -> &Path {
        &self.options.sockets
    }

    /// The superuser of the database.
    pub fn superuser(&self) -> &str {
        &self.options.superuser
    }

    /// A program of PostgreSQL, connected as the superuser.
    pub fn tool(&self, name: &str) -> Run {
        let program = self.programs.join(name);
        Run::limited(program)
            .env("PGHOST", &self.options.sockets)
            .env("PGUSER", &self.options.superuser)
            .env("PGCONNECT_TIMEOUT", "10")
            .args(["-U", &self.options.superuser])
    }

    /// Runs SQL in a database, up to the first error, which is a panic.
    #[track_caller]
    pub fn sql(&self, database: &str, text: impl AsRef<str>) {
        self.psql(database, text.as_ref()).ok();
    }

    /// What a query answers: a line a row, columns parted by `|`.
    #[track_caller]
    pub fn query(&self, database: &str, text: impl AsRef<str>) -> String {
        let answer = self.psql(database, text.as_ref()).ok().stdout;
        answer.trim_end_matches('\n').to_owned()
    }

    /// Runs SQL in a database, whatever comes of it.
    pub fn psql(&self, database: &str, text: &str) -> Outcome {
        let psql = self.tool("psql").args(["-qXAt", "-v", "ON_ERROR_STOP=1", "-d", database]);
        psql.input(text).run()
    }
}
