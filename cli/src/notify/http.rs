//! Posts to other people's servers, whose addresses may be secrets.

use super::{NotifyError, persist};
use forge::secret::{Address, Secret};
use forge::settings::Limit;
use store::entry::Displayed;
use ureq::http::Uri;
use ureq::http::uri::Authority;
use ureq::tls::{RootCerts, TlsConfig};

/// Maximum bytes read of an answer. Expected answers are shorter.
const MAX_ANSWER: u64 = 1 << 20;
/// Maximum bytes of an answer that a message shows.
const MAX_SHOWN: usize = 200;

/// A request to post.
pub struct Post<'a> {
    /// Target address. Its path may be a secret.
    pub address: &'a str,
    /// Media type of `body`.
    pub content_type: &'a str,
    /// Secret token for authorization.
    pub bearer: Option<&'a str>,
    pub body: &'a [u8],
    /// Time limit of one try, from name resolution to the end of the answer.
    pub timeout: Limit,
}

impl Post<'_> {
    /// Posts the request, up to three times while the server is unreachable or reports a passing
    /// fault. Returns the body of the answer.
    ///
    /// Every answer but a success is an error. This includes redirects, which would carry secrets
    /// to unintended servers. An error names the server and never the path.
    pub fn send(&self) -> Result<Vec<u8>, NotifyError> {
        let server = server(self.address)?;
        persist(|| self.once(&server))
    }

    fn once(&self, server: &str) -> Result<Vec<u8>, NotifyError> {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(self.timeout.0))
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("forgekeep/", env!("CARGO_PKG_VERSION")))
            // Trusts this machine's certificates, so that a company's own authority is enough.
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .build()
            .new_agent();
        let mut request = agent.post(self.address).content_type(self.content_type);
        if let Some(token) = self.bearer {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let unreachable = |error: ureq::Error| {
            let reason = self.without_secrets(&error.to_string());
            NotifyError::Unreachable { server: server.to_owned(), reason }
        };
        let mut answer = request.send(self.body).map_err(unreachable)?;
        let status = answer.status();
        let body = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        if status.is_success() {
            return body.map_err(unreachable);
        }
        let text =
            String::from_utf8_lossy(&body.unwrap_or_default()).replace(char::is_control, " ");
        let text = super::notification::cut(self.without_secrets(text.trim()), MAX_SHOWN);
        let (server, answer) = (server.to_owned(), text.trim_end().to_owned());
        Err(NotifyError::Status { server, status, answer })
    }

    /// Removes secrets from a foreign text, which may repeat parts of the request.
    fn without_secrets(&self, text: &str) -> String {
        let mut text = text.replace(self.address, "…");
        let path = self.address.parse().ok().and_then(|uri: Uri| uri.into_parts().path_and_query);
        let path = path.as_ref().map(|path| path.as_str());
        for secret in [path, user_of(self.address), self.bearer].into_iter().flatten() {
            // Anything this short is not a secret.
            if secret.len() > 4 {
                text = text.replace(secret, "…");
            }
        }
        text
    }
}

/// Returns the part of an address that can be shown, without reading a secret.
pub fn shown(address: &Address) -> String {
    match address {
        Address::Plain(address) => server(address).unwrap_or_default(),
        Address::Secret(Secret::File(path)) => format!("in {}", path.displayed()),
        Address::Secret(Secret::Command(_)) => "by a command".into(),
    }
}

/// Returns server and path of an address, without user and password. Only for addresses whose path
/// is not a secret.
pub fn place(address: &str) -> String {
    let path = address.parse().ok().map(|uri: Uri| uri.path().to_owned());
    server(address).unwrap_or_default() + &path.unwrap_or_default()
}

/// Returns user and password of an address.
pub fn user_of(address: &str) -> Option<&str> {
    let (_, rest) = address.split_once("://")?;
    rest.split(['/', '?']).next()?.rsplit_once('@').map(|(user, _)| user)
}

/// Returns host and port of an address, which can be shown. Fails if no request can ever be sent
/// there.
pub fn server(address: &str) -> Result<String, NotifyError> {
    let uri: Option<Uri> = address.parse().ok();
    let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    let is_complete = |authority: &Authority| {
        let port = authority.as_str().rsplit('@').next().unwrap_or_default();
        let port = port.strip_prefix(authority.host()).unwrap_or(port);
        let is_port =
            |port: &str| port.is_empty() || port.parse::<u16>().is_ok_and(|port| port > 0);
        !authority.host().is_empty() && port.strip_prefix(':').is_none_or(is_port)
    };
    let authority = uri.as_ref().and_then(Uri::authority).filter(|it| is_complete(it));
    match authority.map(|authority| (authority.host(), authority.port_u16())) {
        Some((host, Some(port))) => Ok(format!("{host}:{port}")),
        Some((host, None)) => Ok(host.to_owned()),
        None => Err(NotifyError::BadAddress),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_addresses_contain_only_the_server() {
        let shown = |address| server(address).expect("an address");
        assert_eq!(shown("https://a:b@chat.example/hooks/secret?x"), "chat.example");
        assert_eq!(shown("http://127.0.0.1:80/x"), "127.0.0.1:80");
        assert_eq!(place("https://a:secret@z.example:8443/api.php?x"), "z.example:8443/api.php");
        for none in [
            "",
            "chat.example/hooks/secret",
            "ftp://x/secret",
            "https://",
            "https:///secret",
            "https://:443/secret",
            "https://a:secret@/",
            "https://x:0/secret",
            "https://x:99999/secret",
            "https://x y/secret",
            "https:x/secret",
            "/secret",
        ] {
            let error = server(none).expect_err("no address").to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn secrets_in_server_replies_are_hidden() {
        let post = Post {
            address: "https://a:passw0rd@x/hooks/s3cret",
            content_type: "",
            bearer: Some("t0ken"),
            body: b"",
            timeout: super::super::ten_seconds(),
        };
        let cleaned = post.without_secrets(
            "no /hooks/s3cret here (https://a:passw0rd@x/hooks/s3cret), t0ken, a:passw0rd",
        );
        assert_eq!(cleaned, "no … here (…), …, …");
    }
}
