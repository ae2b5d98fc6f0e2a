//! Sends mail by SMTP.

use super::{Notification, Notify, NotifyError, When, persist};
use forge::secret::Secret;
use forge::settings::Limit;
use lettre::address::Envelope;
use lettre::message::Mailbox;
use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{Message, SmtpTransport, Transport};
use serde::{Deserialize, Deserializer};
use std::error::Error;
use std::time::Duration;

/// Maximum bytes of text in one mail.
const MAX_TEXT: usize = 200_000;

/// `kind = "mail"`: sends a mail when a run ends and `when` selects its result.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mail {
    /// Host name or address of the mail server.
    server: String,
    /// Port; by default 587 for `starttls`, 465 for `tls`, 25 for `none`.
    port: Option<u16>,
    #[serde(default)]
    security: Security,
    /// User name for the mail server.
    user: Option<String>,
    /// The password of `user`.
    password: Option<Secret>,
    #[serde(deserialize_with = "mailbox")]
    from: Mailbox,
    #[serde(deserialize_with = "mailboxes")]
    to: Vec<Mailbox>,
    #[serde(default)]
    when: When,
    #[serde(default = "super::ten_seconds")]
    timeout: Limit,
}

/// Protection of the connection to the mail server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Security {
    /// TLS after a plain greeting. A server without TLS gets no mail.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Tls,
    /// No protection, for a server on this machine.
    None,
}

impl Notify for Mail {
    fn name(&self) -> String {
        format!("mail {}:{}", self.server, self.port())
    }

    fn fault(&self) -> Option<NotifyError> {
        super::fault_of_server(&self.server, self.port()).or_else(|| self.fault_of_login())
    }

    fn secrets(&self) -> Vec<&Secret> {
        self.password.iter().collect()
    }

    fn limit(&self) -> Duration {
        // The library limits the time of each answer, but an answer may have any number of pieces.
        super::overall(self.timeout, self.to.len(), self.password.as_ref())
    }

    fn sends(&self, notification: &Notification) -> bool {
        self.when.wants(notification)
    }

    fn notify(&self, notification: &Notification) -> Result<(), NotifyError> {
        if !self.sends(notification) {
            return Ok(());
        }
        let transport = self.transport().map_err(NotifyError::of_attempt("cannot send mail"))?;
        let mut failed = Vec::new();
        for to in &self.to {
            // Sent separately: a server that refuses one recipient would refuse the mail to all.
            if let Err(error) = self.send(&transport, to, notification) {
                let attempt = format!("cannot send mail to {} through {}", to.email, self.name());
                failed.push(NotifyError::of_attempt(attempt)(error));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(NotifyError::Several(failed)) }
    }
}

impl Mail {
    fn port(&self) -> u16 {
        self.port.unwrap_or(match self.security {
            Security::Starttls => 587,
            Security::Tls => 465,
            Security::None => 25,
        })
    }

    fn transport(&self) -> Result<SmtpTransport, NotifyError> {
        let server = || self.server.clone();
        let parameters = || {
            TlsParameters::new(server())
                .map_err(|source| NotifyError::Tls { server: server(), source })
        };
        let tls = match self.security {
            Security::Starttls => Tls::Required(parameters()?),
            Security::Tls => Tls::Wrapper(parameters()?),
            Security::None => Tls::None,
        };
        let transport = SmtpTransport::builder_dangerous(&self.server)
            .port(self.port())
            .tls(tls)
            .timeout(Some(self.timeout.0));
        if let Some(fault) = self.fault_of_login() {
            return Err(fault);
        }
        let (Some(user), Some(password)) = (&self.user, &self.password) else {
            return Ok(transport.build());
        };
        let password = password.read()?.reveal().to_owned();
        Ok(transport.credentials(Credentials::new(user.clone(), password)).build())
    }

    fn fault_of_login(&self) -> Option<NotifyError> {
        match (&self.user, &self.password) {
            (None, None) => None,
            (Some(_), Some(_)) if self.security == Security::None && !self.is_here() => {
                Some(NotifyError::Unencrypted(self.server.clone()))
            }
            (Some(_), Some(_)) => None,
            _ => Some(NotifyError::HalfLogin),
        }
    }

    fn is_here(&self) -> bool {
        self.server == "localhost"
            || self.server.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }

    fn send(
        &self,
        transport: &SmtpTransport,
        to: &Mailbox,
        notification: &Notification,
    ) -> Result<(), NotifyError> {
        let message = Message::builder()
            .from(self.from.clone())
            .to(to.clone())
            .subject(notification.title())
            .message_id(None)
            // Keeps mail systems from answering with out-of-office notes.
            .header(AutoSubmitted)
            .header(ContentType::TEXT_PLAIN)
            .body(notification.text(MAX_TEXT))
            .map_err(NotifyError::Unwritable)?;
        let envelope = Envelope::new(Some(self.from.email.clone()), vec![to.email.clone()])
            .map_err(NotifyError::Unwritable)?;
        let message = message.formatted();
        persist(|| transport.send_raw(&envelope, &message).map(drop).map_err(NotifyError::Smtp))
    }
}

/// Marks a mail as written by a program (RFC 3834).
#[derive(Debug, Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".into())
    }
}

fn mailbox<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mailbox, D::Error> {
    parse(&String::deserialize(deserializer)?)
}

fn mailboxes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Mailbox>, D::Error> {
    let all = Vec::<String>::deserialize(deserializer)?;
    if all.is_empty() {
        return Err(serde::de::Error::custom("no recipient of mail; give an address"));
    }
    all.iter().map(|one| parse(one)).collect()
}

fn parse<E: serde::de::Error>(text: &str) -> Result<Mailbox, E> {
    let wrong = |error| {
        E::custom(format!("{text:?} is not a mail address ({error}); write name@example.org"))
    };
    text.parse().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mail(more: &str) -> Result<Mail, toml::de::Error> {
        toml::from_str(&format!("from = 'Backup <a@x.org>'\nto = ['b@x.org']\n{more}"))
    }

    #[test]
    fn the_port_follows_the_security() {
        for (security, port) in [("starttls", 587), ("tls", 465), ("none", 25)] {
            let mail = mail(&format!("server = 'mx'\nsecurity = '{security}'")).expect("parses");
            assert_eq!(mail.port(), port);
        }
        assert_eq!(mail("server = 'mx'\nport = 2525").expect("parses").port(), 2525);
    }

    #[test]
    fn passwords_are_not_sent_over_remote_plain_connections() {
        let more = "security = 'none'\nuser = 'u'\npassword = { command = ['printf', 'x'] }";
        let far = mail(&format!("server = 'mx.example.org'\n{more}")).expect("parses");
        let error = far.transport().expect_err("refused").to_string();
        assert!(error.contains("starttls"), "{error}");
        for here in ["localhost", "127.0.0.1", "::1"] {
            mail(&format!("server = '{here}'\n{more}")).expect("parses").transport().expect("ok");
        }
        let half = mail("server = 'mx'\nuser = 'u'").expect("parses").transport();
        assert!(half.expect_err("refused").to_string().contains("both or neither"));
    }

    #[test]
    fn mail_addresses_are_validated_during_parsing() {
        for wrong in ["to = []", "to = ['nobody']"] {
            let text = format!("server = 'mx'\nfrom = 'a@x.org'\n{wrong}");
            let error = toml::from_str::<Mail>(&text).expect_err("refused").to_string();
            assert!(error.contains("; "), "{error}");
        }
    }
}
