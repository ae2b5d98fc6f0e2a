//! Results of the checks of a backup, for its report and for a later restore.

use crate::plan::Plan;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Maximum number of examples in a check; further cases are only counted.
pub const EXAMPLES: usize = 10;

/// Result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// Short name, such as `pools`.
    pub name: String,
    /// Verdict of the check.
    pub verdict: Verdict,
    /// One sentence that explains the verdict.
    pub text: String,
    /// Examples of the faulty objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
    /// Next step for the admin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// True if another copy would give the same result, so that a second pass is needless.
    #[serde(skip)]
    pub is_settled: bool,
}

/// Verdict of a check, from best to worst.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// No fault found.
    Ok,
    /// The check could not be made.
    Unknown,
    /// The instance itself has a fault; the copy matches the instance.
    Warning,
    /// The copy lacks something that the instance has. Or the instance itself lacks so much that
    /// the rest is probably somewhere else.
    Failed,
}

impl Check {
    /// Makes a check without fault.
    pub fn ok(name: &str, text: impl Into<String>) -> Check {
        Check::new(name, Verdict::Ok, text)
    }

    /// Makes a check with a verdict and its reason.
    pub fn new(name: &str, verdict: Verdict, text: impl Into<String>) -> Check {
        let (name, text) = (name.into(), text.into());
        Check { name, verdict, text, examples: Vec::new(), hint: None, is_settled: false }
    }

    /// Result of the catalogue if no database has the tables of the product.
    pub fn of_no_database(plan: &Plan, product: &str) -> Check {
        let is_expected = plan.databases.iter().any(|database| database.is_required);
        if plan.postgres.is_some() && is_expected {
            let text = format!("no database contains the tables of {product}");
            let hint = "check that `postgres` names the right server and its databases are loaded";
            return Check::new("catalogue", Verdict::Failed, text).with_hint(hint).settled();
        }
        let text =
            format!("no database of {product} was queried, so the copy was not compared with one");
        Check::new("catalogue", Verdict::Unknown, text)
    }

    /// Adds examples, at most [`EXAMPLES`].
    pub fn with_examples(mut self, cases: impl IntoIterator<Item = String>) -> Check {
        self.examples = cases.into_iter().take(EXAMPLES).collect();
        self
    }

    /// Marks the check as one that another copy would not change.
    pub fn settled(mut self) -> Check {
        self.is_settled = true;
        self
    }

    /// Adds a next step.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Check {
        self.hint = Some(hint.into());
        self
    }
}
