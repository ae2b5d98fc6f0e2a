//! Directories and databases of no known product. The settings name all of them.

use super::{Kind, Site};
use crate::error::Result;
use crate::plan::{Plan, Product};
use std::path::Path;

/// An instance defined by its settings alone.
pub struct Plain;

impl Kind for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn title(&self) -> &'static str {
        "directories and databases of your own"
    }

    fn detect(&self, _: &Path) -> Option<String> {
        None
    }

    fn is_product(&self) -> bool {
        false
    }

    fn fill(&self, site: &Site<'_>, plan: &mut Plan) -> Result<()> {
        let settings = site.settings;
        let has_database =
            settings.postgres.host.is_some() || settings.postgres.container.is_some();
        if settings.parts.is_empty() && !has_database {
            return Err(site.wrong(
                "it has no parts; add one, such as [instances.NAME.parts.data] with a path",
            ));
        }
        plan.product = Product { name: "plain".into(), ..Product::default() };
        Ok(())
    }
}
