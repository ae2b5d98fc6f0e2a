//! What was looked at when a backup was made, for its report and for whoever restores it.

use crate::plan::Plan;
use serde::{Deserialize, Serialize};

/// Cases that are named; more are only counted.
pub const EXAMPLES: usize = 10;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// A word for it, such as `pools`.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
    /// In a sentence.
    pub text: String,
    /// Some of the cases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether another copy would find the same, so that a second walk is needless.
    #[serde(skip)]
    pub is_settled: bool,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Unknown,
    /// The instance itself is not as it should be; the copy is as the instance is.
    Warning,
    /// The copy lacks something that the instance has, or what it lacks with the instance is so
    /// much that it must be somewhere else.
    Failed,
}

impl Check {
    /// All is well.
    pub fn ok(name: &str, text: impl Into<String>) -> Check {
        Check::new(name, Verdict::Ok, text)
    }

    /// A verdict with its reason.
    pub fn new(name: &str, verdict: Verdict, text: impl Into<String>) -> Check {
        let (name, text) = (name.into(), text.into());
        Check { name, verdict, text, examples: Vec::new(), hint: None, is_settled: false }
    }

    /// None of the databases has the tables of the product.
    pub fn of_no_database(plan: &Plan, product: &str) -> Check {
        let is_expected = plan.databases.iter().any(|database| database.is_required);
        if plan.postgres.is_some() && is_expected {
            let text = format!("none of the databases has the tables of {product}");
            let hint = "see whether it is the right server, and whether they are loaded";
            return Check::new("catalogue", Verdict::Failed, text).with_hint(hint).settled();
        }
        let text =
            format!("no database of {product} was asked, so nothing could be compared with it");
        Check::new("catalogue", Verdict::Unknown, text)
    }

    /// With some of the cases.
    pub fn with_examples(mut self, cases: impl IntoIterator<Item = String>) -> Check {
        self.examples = cases.into_iter().take(EXAMPLES).collect();
        self
    }

    /// One that another copy would not change.
    pub fn settled(mut self) -> Check {
        self.is_settled = true;
        self
    }

    /// With what to do.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Check {
        self.hint = Some(hint.into());
        self
    }
}
