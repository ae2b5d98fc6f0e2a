//! A message in Mattermost, Slack or a compatible service.

use super::http::{self, Post};
use super::{Notification, Notify, NotifyError, When};
use forge::secret::{Address, Secret};
use forge::settings::Limit;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// Maximum bytes of a message. Mattermost accepts 16,383 characters, Slack 40,000; people read
/// fewer.
const MAX_TEXT: usize = 8_000;

/// `kind = "webhook"`: posts `{"text": …}` when a run ends and `when` selects its result.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Webhook {
    /// Target address. Anyone who has it can post.
    url: Address,
    /// Displayed sender, if not the webhook's default.
    username: Option<String>,
    /// Target channel, if not the webhook's default.
    channel: Option<String>,
    #[serde(default)]
    when: When,
    #[serde(default = "super::ten_seconds")]
    timeout: Limit,
}

impl Notify for Webhook {
    fn name(&self) -> String {
        format!("webhook {}", http::shown(&self.url))
    }

    fn secrets(&self) -> Vec<&Secret> {
        super::secret_of(&self.url).into_iter().collect()
    }

    fn addresses(&self) -> Vec<&Address> {
        vec![&self.url]
    }

    fn open_address(&self) -> bool {
        matches!(self.url, Address::Plain(_))
    }

    fn limit(&self) -> Duration {
        super::overall(self.timeout, 1, super::secret_of(&self.url))
    }

    fn sends(&self, notification: &Notification) -> bool {
        self.when.wants(notification)
    }

    fn notify(&self, notification: &Notification) -> Result<(), NotifyError> {
        if !self.sends(notification) {
            return Ok(());
        }
        let failed = "cannot send a message by webhook";
        let address = self.url.read().map_err(NotifyError::of_attempt(failed))?;
        let message = self.message(notification).to_string();
        let post = Post {
            address: address.reveal(),
            content_type: "application/json",
            bearer: None,
            body: message.as_bytes(),
            timeout: self.timeout,
        };
        post.send().map(drop).map_err(NotifyError::of_attempt::<NotifyError>(failed))
    }
}

impl Webhook {
    fn message(&self, notification: &Notification) -> Value {
        // In a code block, text cannot become a heading, a link or a mention that alerts somebody.
        // Slack's `<!channel>` works even there, and Mattermost would show its escape sequence.
        let text = notification.text(MAX_TEXT).replace("```", "'''").replace('<', "‹");
        let mut message = json!({"text": format!("```\n{text}```")});
        for (key, value) in [("username", &self.username), ("channel", &self.channel)] {
            if let Some(value) = value {
                message[key] = value.as_str().into();
            }
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::super::notification::tests::{failed, notification};
    use super::super::{What, When};
    use super::*;

    #[test]
    fn messages_cannot_leave_the_code_block() {
        let mut record = failed();
        record.message = Some("``` @channel <!channel> ```".into());
        let hook = Webhook {
            url: Address::Plain(String::new()),
            username: Some("forgekeep".into()),
            channel: None,
            when: When::Always,
            timeout: super::super::ten_seconds(),
        };
        let message = hook.message(&notification(What::Ended(&record)));
        let text = message["text"].as_str().expect("a text");
        assert!(text.starts_with("```\nbackup of gitlab on git01 failed\n"), "{text}");
        assert_eq!(text.matches("```").count(), 2, "{text}");
        assert!(!text.contains('<'), "{text}");
        assert_eq!(message["username"], "forgekeep");
        assert!(message.get("channel").is_none());
    }
}
