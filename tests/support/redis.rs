//! A real Redis server in a directory.

use super::accounts::Account;
use super::sandbox::{Outcome, Run};
use super::server::{Server, Signal};
use std::path::{Path, PathBuf};

/// A server that runs until it is dropped.
pub struct Redis {
    dir: PathBuf,
    server: Server,
}

impl Redis {
    /// Starts a server whose data and socket, `redis.socket`, are in `dir`, which exists and
    /// belongs to its account. The server saves to `dump.rdb` on request. With `append_only` it
    /// also keeps a log in `appendonlydir`.
    pub fn start(dir: &Path, log: &Path, account: &str, append_only: bool) -> Redis {
        let socket = dir.join("redis.socket");
        let arguments = [
            "redis-server",
            // Reads its configuration from standard input: a real file may be readable by everyone
            // and name other paths.
            "-",
            "--port",
            "0",
            "--unixsocket",
            socket.to_str().expect("a readable path"),
            "--unixsocketperm",
            "777",
            "--dir",
            dir.to_str().expect("a readable path"),
            "--save",
            "",
            "--appendonly",
            if append_only { "yes" } else { "no" },
            "--appendfsync",
            "no",
            "--enable-debug-command",
            "yes",
            "--enable-protected-configs",
            "yes",
        ];
        let account = Account::named(account);
        let server = Server::start(account, &arguments, log, &[Signal::TERM]);
        let mut redis = Redis { dir: dir.to_owned(), server };
        let is_ready = || ask(dir, &["PING"]).stdout == "PONG\n";
        redis.server.wait_until(is_ready);
        redis
    }

    /// Sends a command and returns the answer.
    #[track_caller]
    pub fn ask(&self, command: &[&str]) -> String {
        ask(&self.dir, command).ok().stdout.trim_end().to_owned()
    }

    /// Asks for a rewrite of the append-only log. Returns false if the server refused, because another
    /// rewrite is running: it may have begun since any question about it.
    pub fn starts_rewrite(&self) -> bool {
        let outcome = ask(&self.dir, &["BGREWRITEAOF"]);
        let is_refused = outcome.stderr.contains("already in progress");
        assert!(outcome.code() == Some(0) || is_refused, "{}", outcome.all_output());
        !is_refused
    }

    /// Adds `count` keys of 100 bytes.
    pub fn fill(&self, count: usize) {
        self.ask(&["DEBUG", "POPULATE", &count.to_string(), "key", "100"]);
    }

    /// Returns a value of `INFO persistence`.
    pub fn persistence(&self, name: &str) -> String {
        let information = self.ask(&["INFO", "persistence"]);
        let mut lines = information.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.expect("a known name").trim_end().to_owned()
    }

    /// Makes every save fail until [`repair_saving`](Self::repair_saving): a directory is at the path
    /// of the file.
    pub fn break_saving(&self) {
        let dump = self.dir.join("dump.rdb");
        if dump.is_file() {
            std::fs::remove_file(&dump).expect("removes");
        }
        std::fs::create_dir(dump).expect("a directory");
    }

    /// Lets saves succeed again.
    pub fn repair_saving(&self) {
        std::fs::remove_dir(self.dir.join("dump.rdb")).expect("is there and empty");
    }

    /// Makes saving take this long for each key, in microseconds; 0 is normal.
    pub fn slow_saving(&self, microseconds: u32) {
        self.ask(&["CONFIG", "SET", "rdb-key-save-delay", &microseconds.to_string()]);
    }

    /// Sends the server a signal: STOP makes it silent until CONT.
    pub fn signal(&self, signal: Signal) {
        self.server.signal(signal);
    }

    /// Returns the path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("redis.socket")
    }
}

fn ask(dir: &Path, command: &[&str]) -> Outcome {
    let client = Run::limited("redis-cli").args(["-e", "-s"]).args([dir.join("redis.socket")]);
    client.args(command).run()
}
