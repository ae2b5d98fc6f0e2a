//! Servers on this machine that record their requests.

use super::accounts::Account;
use super::sandbox::Sandbox;
use super::server::{Server, Signal};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A server that runs until it is dropped.
pub struct Listener {
    /// Port on which it listens.
    pub port: u16,
    dir: PathBuf,
    _server: Server,
}

/// A certificate for this machine and its key, in one directory.
pub struct Certificate {
    /// Path of the certificate that clients must trust.
    pub path: String,
    key: String,
}

impl Certificate {
    /// Creates a self-signed certificate.
    pub fn make(sandbox: &Sandbox) -> Certificate {
        let (path, key) = (sandbox.text("certificate"), sandbox.text("key"));
        let words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext \
                     subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=critical,CA:false";
        let openssl = sandbox.tool("openssl").args(words.split_whitespace());
        openssl.args(["-keyout", &key, "-out", &path]).run().ok();
        Certificate { path, key }
    }
}

impl Listener {
    /// Starts a web server; `support/listeners/http.py` defines its answers.
    pub fn http(sandbox: &Sandbox) -> Listener {
        Listener::start(sandbox, "http", include_str!("listeners/http.py"), &[])
    }

    /// Like [`Listener::http`], with TLS.
    pub fn https(sandbox: &Sandbox, certificate: &Certificate) -> Listener {
        let arguments = [certificate.path.as_str(), &certificate.key];
        Listener::start(sandbox, "https", include_str!("listeners/http.py"), &arguments)
    }

    /// Starts a mail server that secures its connections as `security` in the configuration says.
    pub fn smtp(sandbox: &Sandbox, security: &str, certificate: &Certificate) -> Listener {
        let arguments = [security, &certificate.path, &certificate.key];
        Listener::start(sandbox, security, include_str!("listeners/smtp.py"), &arguments)
    }

    fn start(sandbox: &Sandbox, name: &str, script: &str, arguments: &[&str]) -> Listener {
        let name = format!("listener-{name}");
        sandbox.write(format!("{name}/script.py").as_str(), script);
        let dir = sandbox.path(&name);
        let text = sandbox.text(&name);
        let script = format!("{text}/script.py");
        let command: Vec<_> =
            ["python3", &script, &text].into_iter().chain(arguments.iter().copied()).collect();
        let log = dir.join("log");
        let mut server = Server::start(Account::root(), &command, &log, &[Signal::TERM]);
        server.wait_until(|| dir.join("port").exists());
        let port = std::fs::read_to_string(dir.join("port")).expect("a port");
        Listener { port: port.parse().expect("a number"), dir, _server: server }
    }

    /// Returns a URL on this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Returns the received requests.
    pub fn requests(&self) -> Vec<Value> {
        lines(&self.dir.join("requests"))
    }

    /// Returns the received mails.
    pub fn mails(&self) -> Vec<Value> {
        lines(&self.dir.join("mails"))
    }
}

/// Returns the whole lines of the file at `path`: the server may be writing the last one.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}
