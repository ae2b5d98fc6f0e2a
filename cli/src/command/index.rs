use super::Global;
use crate::exit::{Failure, with_hint};
use crate::json::IndexSummary;
use crate::report::{count, size};
use crate::ui::Ui;
use clap::{Args, Subcommand};
use std::sync::atomic::Ordering::Relaxed;
use store::Error;
use store::observe::Observer;
use store::store::Purpose;

/// Manage the index
#[derive(Debug, Args)]
pub struct Index {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Rebuild the index from the tables of the segments
    ///
    /// The index is a cache. Commands rebuild a missing index by themselves; run this command if
    /// they report a damaged one.
    #[command(after_long_help = "\
Example:
  forgekeep index rebuild")]
    Rebuild,
}

impl Index {
    pub fn run(&self, global: &Global, ui: &Ui) -> Result<(), Failure> {
        let Action::Rebuild = self.action;
        let opened = global.open(ui, Purpose::Rebuild, "index rebuild");
        let (store, watch) = opened.map_err(|failure| match failure {
            // The usual next step is this command.
            Failure::Store(error @ Error::Index(_)) => with_hint(
                error.to_string(),
                "check the disk and the permissions of the store; index.sqlite and the files \
                 whose names begin with it may be deleted",
            ),
            failure => failure,
        })?;
        watch.end();
        let segments = watch.progress().entries_done.load(Relaxed);
        let bytes = watch.progress().bytes_done.load(Relaxed);
        let chunks = store.index().chunk_count()?;
        let seconds = watch.elapsed().as_secs_f64();
        ui.json(&IndexSummary {
            store: store.place(),
            segments,
            segment_bytes: bytes,
            chunks,
            seconds_elapsed: seconds,
        })?;
        ui.line(format!(
            "rebuilt the index of {}: {} of {} ({}) in {seconds:.1} s",
            store.place(),
            count(chunks, "chunk"),
            count(segments, "segment"),
            size(bytes)
        ))
    }
}
