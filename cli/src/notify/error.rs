//! Errors of notifiers. A message names the attempt, the fault and the next step, and no secret.

use forge::error::SecretError;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use store::entry::Displayed;
use ureq::http::StatusCode;

/// Reason why a notification did not arrive, or monitoring was not silenced.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// An attempt failed for another of these reasons.
    #[error("{attempt}: {fault}")]
    Attempt {
        /// The attempt, such as `cannot send the ping`.
        attempt: String,
        /// Fault of the attempt and the next step.
        fault: Box<NotifyError>,
    },
    /// The attempts for several recipients failed.
    #[error("{}", joined(.0))]
    Several(Vec<NotifyError>),
    /// A notifier exceeded its time limit, and nobody waits for it any longer.
    #[error("{name} did not finish within {} s; check that it runs and answers", limit.as_secs())]
    TooSlow {
        /// Name of the notifier.
        name: String,
        /// The exceeded limit.
        limit: Duration,
    },
    /// The system starts no further thread.
    #[error("{name}: cannot start a thread: {source}")]
    NoThread {
        /// Name of the notifier.
        name: String,
        /// System error.
        source: io::Error,
    },
    /// A test would send nothing but a success.
    #[error("{name} was not tested: {sent} would count as a success; use --as failed")]
    OnlySuccess {
        /// Name of the notifier.
        name: String,
        /// The notification that a test would send.
        sent: &'static str,
    },
    /// The notifier that must end a silence was removed from the configuration.
    #[error("{0} is no longer in the configuration; end its silence by hand")]
    Removed(String),
    /// The kept list of silences cannot be read.
    #[error("silence record unreadable: {0}; end the silence in the monitoring system")]
    SilencesUnknown(serde_json::Error),
    /// A secret could not be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// An address is not one of HTTP.
    #[error("the address of a notifier is invalid; it must begin with https:// and a host")]
    BadAddress,
    /// A mail or Zabbix server has an impossible name.
    #[error(
        "server = {0:?} is not the name or address of a host; write it without scheme and port"
    )]
    BadServer(String),
    /// No server listens on port 0.
    #[error("port 0 of {0} cannot be reached; set `port` to that of the server")]
    NoPort(String),
    /// A notifier of values has none to send.
    #[error("it never sends anything; set [notify.keys] or maintenance-keys below its [[notify]]")]
    NoKeys,
    /// A name or key in the configuration is empty.
    #[error("`{0}` has an empty name; correct or remove it")]
    EmptyName(&'static str),
    /// No answer came from a web server.
    #[error("cannot reach {server}: {reason}; check the network and the address")]
    Unreachable {
        /// Host and port.
        server: String,
        /// Error of the library, without secrets.
        reason: String,
    },
    /// A web server answered with a status that is not a success.
    #[error("{server} answered {status}{}; {}", in_brackets(answer), remedy(*status))]
    Status {
        /// Host and port.
        server: String,
        /// The status.
        status: StatusCode,
        /// Start of the answer, without secrets.
        answer: String,
    },
    /// A name cannot be that of a mail server with TLS.
    #[error("cannot use TLS with {server}: {source}; check the name of the server")]
    Tls {
        /// Name of the mail server.
        server: String,
        /// Error of the library.
        source: lettre::transport::smtp::Error,
    },
    /// The password for a mail server would cross the network in the clear.
    #[error(
        "the password for {0} would be sent unencrypted; set security = \"starttls\" or \"tls\""
    )]
    Unencrypted(String),
    /// A user without a password, or a password without a user.
    #[error("only one of user and password is set; set both or neither")]
    HalfLogin,
    /// A mail to this recipient cannot be written.
    #[error("{0}; check its address")]
    Unwritable(lettre::error::Error),
    /// A mail server refused a mail, or did not answer.
    #[error("{}; {}", causes(.0), remedy_of_mail(.0))]
    Smtp(lettre::transport::smtp::Error),
    /// The directory for metrics is missing.
    #[error(
        "{} is not a directory; create it, or correct `directory`", .0.displayed()
    )]
    NoDirectory(PathBuf),
    /// The file with metrics could not be written.
    #[error("{0}; check that the directory exists and is writable")]
    MetricsUnwritten(forge::Error),
    /// A Zabbix server did not answer, or not in its protocol.
    #[error(
        "{name} did not answer: {source}; check server and port, and that it accepts unencrypted \
         connections"
    )]
    NoZabbix {
        /// Name of the notifier.
        name: String,
        /// Error of the connection.
        source: io::Error,
    },
    /// A Zabbix server did not take all values.
    #[error(
        "{name} {rejection}; check that host {host} has these items, of type \"Zabbix trapper\", \
         and accepts values from this machine: {}",
        keys.join(", ")
    )]
    ItemsRefused {
        /// Name of the notifier.
        name: String,
        /// Answer of the server.
        rejection: Rejection,
        /// Zabbix name of the host.
        host: String,
        /// Keys of the sent values.
        keys: Vec<String>,
    },
    /// The API of a Zabbix server is too old.
    #[error(
        "the API version {0:?} is too old or unknown; use Zabbix 6.0 or newer, or kind = \"zabbix\" \
         with maintenance-keys"
    )]
    OldApi(String),
    /// Something other than the API of Zabbix answered.
    #[error("{server} gave no API answer; check that the URL ends with /api_jsonrpc.php")]
    NoApi {
        /// Host and port.
        server: String,
    },
    /// The API of Zabbix refused a call.
    #[error("{server} refused: {message}; check the token, its expiry and the rights of its user")]
    ApiRefused {
        /// Host and port.
        server: String,
        /// Error message of the server, without secrets.
        message: String,
    },
    /// The token's user sees no host or group of this name.
    #[error(
        "no {what} {name:?} is visible to the token; check the name and the rights of the token's \
         user"
    )]
    Invisible {
        /// `host` or `host group`.
        what: &'static str,
        /// Name in the configuration.
        name: String,
    },
}

/// Answer of a Zabbix server that did not take all values.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// The server took some of the values.
    #[error("rejected some values ({0})")]
    Some(String),
    /// Start of an answer that reports no success.
    #[error("answered {0}")]
    Odd(String),
}

impl NotifyError {
    /// Converts the fault of an attempt.
    pub fn of_attempt<E: Into<NotifyError>>(
        attempt: impl Into<String>,
    ) -> impl FnOnce(E) -> NotifyError {
        let attempt = attempt.into();
        |fault| NotifyError::Attempt { attempt, fault: Box::new(fault.into()) }
    }

    /// Returns true if the next try may succeed.
    pub fn may_pass(&self) -> bool {
        match self {
            NotifyError::Unreachable { .. } => true,
            NotifyError::Status { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            NotifyError::Smtp(error) => !error.is_permanent() && !error.is_client(),
            NotifyError::NoZabbix { source, .. } => source.kind() != io::ErrorKind::InvalidData,
            _ => false,
        }
    }
}

fn joined(errors: &[NotifyError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn in_brackets(answer: &str) -> String {
    if answer.is_empty() { String::new() } else { format!(" ({answer})") }
}

fn remedy(status: StatusCode) -> &'static str {
    match status.as_u16() {
        300..=399 => "set the address that it redirects to; redirects are not followed",
        401 | 403 => "check the secret and its rights",
        404 | 410 => "check the address",
        429 => "send fewer messages",
        500.. => "check its log",
        _ => "check the address and the settings",
    }
}

/// Returns the message of an error and those of its causes, each once.
fn causes(error: &lettre::transport::smtp::Error) -> String {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !reason.contains(&inner_text) {
            reason = format!("{reason}: {inner_text}");
        }
        source = inner.source();
    }
    reason.replace(char::is_control, " ")
}

fn remedy_of_mail(error: &lettre::transport::smtp::Error) -> &'static str {
    if error.is_permanent() {
        "check addresses, user and password"
    } else if error.is_client() {
        "check security and user"
    } else {
        "check that the server runs, and its port and certificate"
    }
}
