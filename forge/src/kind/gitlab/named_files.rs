//! Files that `gitlab.rb` names: certificates, included settings, secrets. `gitlab.rb` is Ruby and is
//! not evaluated; every path in it that is a file counts.

use std::collections::BTreeSet;

/// Places of programs and of state that no administrator keeps files in.
const OF_SYSTEM: [&str; 13] = [
    "/bin",
    "/boot",
    "/dev",
    "/lib",
    "/lib64",
    "/opt/gitlab",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/tmp",
    "/usr",
    "/var/run",
];

/// Files of the system itself. A restore must not bring back old ones.
const SYSTEM_FILES: [&str; 6] = [
    "/etc/group",
    "/etc/hosts",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/etc/shadow",
    "/etc/ssl/certs/ca-certificates.crt",
];

/// Functions whose argument is a file that settings are read from.
const READERS: [&str; 6] =
    ["from_file", "File.read", "IO.read", "File.open", "JSON.load_file", "YAML.load_file"];

/// Maximum number of paths in a text.
const PATHS_MAX: usize = 500;

/// Paths in a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Absolute paths; the last name may be a pattern with one `*`.
    pub all: BTreeSet<String>,
    /// Those of them that a function reads.
    pub read: BTreeSet<String>,
}

/// Finds absolute paths in settings, outside comments.
pub fn paths(text: &str) -> Paths {
    let mut found = Paths::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let line = line.split_once(" #").map_or(line, |(code, comment)| {
            // `#{…}` is a part of a text.
            if comment.starts_with('{') { line } else { code }
        });
        let of_words = line.split(|c: char| c.is_whitespace() || "\"'`;,()[]<>=|".contains(c));
        let of_words = of_words.map(|word| word.trim_end_matches('}'));
        let of_quotes = ['"', '\''].into_iter().flat_map(|quote| line.split(quote));
        for path in of_words.chain(of_quotes).filter(|path| is_wanted(path)) {
            if found.all.len() >= PATHS_MAX {
                return found;
            }
            found.all.insert(path.to_owned());
            let is_read = |name: &str| {
                let argument = line.split(name).nth(1).unwrap_or_default();
                argument.trim_start_matches([' ', '(', '"', '\'']).starts_with(path)
            };
            if READERS.iter().any(|name| is_read(name)) {
                found.read.insert(path.to_owned());
            }
        }
    }
    found
}

fn is_wanted(path: &str) -> bool {
    let is_in = |dir: &str| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
    path.starts_with('/')
        && path.len() > 1
        && !path.contains(['\0', '#', '$'])
        && !path.contains("//")
        && !OF_SYSTEM.iter().any(|dir| is_in(dir))
        && !SYSTEM_FILES.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_settings_are_found() {
        let text = "external_url 'https://forge.example.org/gitlab'\n\
                    # nginx['ssl_certificate'] = '/etc/old.crt'\n\
                    nginx['ssl_certificate'] = \"/etc/pki/tls/forge.crt\" # or /etc/other.crt\n\
                    registry_nginx['ssl_certificate_key']='/srv/keys/my forge.key'\n\
                    nginx['custom_nginx_config'] = \"include /etc/nginx/conf.d/*.conf;\"\n\
                    from_file '/srv/rb/mail.rb'\nfrom_file(\"/srv/rb/ldap.rb\")\n\
                    gitlab_rails['x'] = File.read('/srv/secret').strip\n\
                    gitlab_rails['ldap_servers'] = YAML.load <<-EOS\n  ca_file: /etc/ldap/ca.pem\nEOS\n\
                    a = \"/srv/#{node}/x\"; b = '/opt/gitlab/embedded/x'; c = '/etc/passwd'\n";
        let found = paths(text);
        let all: Vec<&str> = found.all.iter().map(String::as_str).collect();
        let wanted = [
            "/etc/ldap/ca.pem",
            "/etc/nginx/conf.d/*.conf",
            "/etc/pki/tls/forge.crt",
            "/srv/keys/my",
            "/srv/keys/my forge.key",
            "/srv/rb/ldap.rb",
            "/srv/rb/mail.rb",
            "/srv/secret",
        ];
        assert_eq!(all, wanted);
        let read: Vec<&str> = found.read.iter().map(String::as_str).collect();
        assert_eq!(read, ["/srv/rb/ldap.rb", "/srv/rb/mail.rb", "/srv/secret"]);
    }
}
