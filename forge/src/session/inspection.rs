//! Inspection of an instance without a copy of it.

use super::dumps::{ConsistencyPoint, Undumped};
use super::emptied;
use super::keys::changed_keys;
use super::vanished;
use crate::catalogue::Catalogue;
use crate::check::{Check, Verdict};
use crate::earlier::Earlier;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::owners;
use crate::plan::{Absent, Plan, Product};
use crate::view::View;
use store::id::SnapshotId;
use store::observe::{Event, Progress};
use store::snapshot::Snapshot;
use store::store::Store;

/// Result of an inspection.
#[derive(Debug)]
pub struct Inspection {
    /// Missing parts and databases.
    pub missing: Vec<Absent>,
    /// Checks of the instance.
    pub checks: Vec<Check>,
    /// The installed product.
    pub product: Product,
    /// Version of the database server.
    pub postgres: Option<String>,
    /// Number of projects in the databases.
    pub project_count: usize,
}

impl Inspection {
    /// Returns true if nothing required is missing and no check found a fault. A check that could
    /// not be made is not a fault.
    pub fn is_right(&self) -> bool {
        self.missing.iter().all(|absent| !absent.is_required)
            && self.checks.iter().all(|check| check.verdict < Verdict::Warning)
    }
}

/// Queries the catalogue from the running databases.
pub fn catalogue(plan: &Plan, kind: &dyn Kind, progress: &Progress) -> Result<Catalogue> {
    let (mut point, _) = ConsistencyPoint::open(plan, progress)?;
    point.take()?;
    kind.ask(plan, point.connections())
}

/// Answers of a server about the databases of a plan, without a copy of them.
#[derive(Debug)]
pub struct Asked {
    /// Names of the databases that a backup dumps.
    pub dumped: Vec<String>,
    /// Databases that it does not have.
    pub missing: Vec<Absent>,
    /// Reasons why databases of the server are not dumped.
    pub notes: Vec<String>,
    /// Result of trying this machine's keys on the databases.
    pub keys: Option<Check>,
    /// Other checks of this machine and its databases.
    pub checks: Vec<Check>,
}

/// Fails if the plan has a Redis that does not answer or refuses all known passwords.
pub fn redis(plan: &Plan, progress: &Progress) -> Result<()> {
    plan.redis.as_ref().map_or(Ok(()), |redis| redis.expect_access(progress))
}

/// Checks the keys of this machine as far as that is possible without a database.
pub fn keys(plan: &Plan, kind: &dyn Kind) -> Result<Option<Check>> {
    kind.try_keys(plan, &mut [], &View::machine(&plan.mounts))
}

/// Connects to all databases of the plan, and checks this machine as a backup checks its copy.
pub fn databases(
    plan: &Plan,
    kind: &dyn Kind,
    snapshots: Option<Snapshots<'_>>,
    progress: &Progress,
) -> Result<Asked> {
    let (mut point, missing) = ConsistencyPoint::open(plan, progress)?;
    // It only reads.
    point.take()?;
    let mut catalogue = kind.ask(plan, point.connections())?;
    let complete = complete(plan, snapshots.as_ref())?;
    let earlier = newest(snapshots.as_ref(), &complete)?;
    let checks = checks(plan, kind, &mut point, &mut catalogue, earlier.as_ref())?;
    let (keys, checks): (Vec<_>, Vec<_>) =
        checks.into_iter().partition(|check| check.name == SECRETS);
    let undumped = point.undumped().iter().map(Undumped::text);
    let notes = point.notes().iter().cloned().chain(undumped).collect();
    let dumped = point.connections().iter().map(|connection| connection.database.clone());
    let (dumped, keys) = (dumped.collect(), keys.into_iter().next());
    Ok(Asked { dumped, missing, notes, keys, checks })
}

/// Name of the check of the keys.
const SECRETS: &str = "secrets";

/// Compares the parts on this machine with those of the last complete snapshot, if there is one.
pub fn parts(plan: &Plan, snapshots: Option<Snapshots<'_>>) -> Result<Vec<Check>> {
    let complete = complete(plan, snapshots.as_ref())?;
    let earlier = newest(snapshots.as_ref(), &complete)?;
    lost_parts(plan, earlier.as_ref())
}

/// Complete snapshots of the instance, oldest first.
fn complete(plan: &Plan, snapshots: Option<&Snapshots<'_>>) -> Result<Vec<(SnapshotId, Snapshot)>> {
    snapshots.map_or_else(|| Ok(Vec::new()), |snapshots| snapshots.complete(plan))
}

/// Reads the newest of some snapshots.
fn newest<'a>(
    snapshots: Option<&Snapshots<'a>>,
    complete: &[(SnapshotId, Snapshot)],
) -> Result<Option<Earlier<'a>>> {
    match (snapshots, complete.last()) {
        (Some(Snapshots { store, .. }), Some((id, snapshot))) => {
            Earlier::usable(store, *id, snapshot)
        }
        _ => Ok(None),
    }
}

fn lost_parts(plan: &Plan, earlier: Option<&Earlier<'_>>) -> Result<Vec<Check>> {
    let vanished = vanished::parts(plan, earlier)?;
    let emptied = emptied::check(plan, earlier, true, false)?;
    Ok(vanished.into_iter().chain(emptied.map(|emptied| emptied.check)).collect())
}

/// Checks this machine and its databases, and compares them with an earlier snapshot.
fn checks(
    plan: &Plan,
    kind: &dyn Kind,
    point: &mut ConsistencyPoint<'_>,
    catalogue: &mut Catalogue,
    earlier: Option<&Earlier<'_>>,
) -> Result<Vec<Check>> {
    let copy = View::machine(&plan.mounts);
    let mut checks = kind.check(plan, catalogue, &copy, earlier)?;
    let connected: Vec<String> =
        point.connections().iter().map(|connection| connection.database.clone()).collect();
    let dumped = connected.iter().map(String::as_str);
    let undumped = point.undumped();
    let dumped = dumped.chain(undumped.iter().map(|undumped| undumped.name.as_str()));
    let text = |undumped: &Undumped| Check::new("databases", Verdict::Warning, undumped.text());
    checks.extend(undumped.iter().map(text));
    checks.extend(vanished::check(plan, earlier, dumped));
    checks.extend(lost_parts(plan, earlier)?);
    Ok(checks)
}

/// A store with snapshots of the instance, to compare the machine with.
#[derive(Clone, Copy)]
pub struct Snapshots<'a> {
    /// The store.
    pub store: &'a Store,
    /// Name of the host whose snapshots count.
    pub host: &'a str,
}

impl Snapshots<'_> {
    /// Complete snapshots of the instance, oldest first. Warns if they cannot be listed.
    fn complete(&self, plan: &Plan) -> Result<Vec<(SnapshotId, Snapshot)>> {
        let mut all = match self.store.snapshots().map_err(Error::from) {
            Ok((all, _)) => all,
            Err(error) if error.is_interrupted() => return Err(error),
            Err(error) => {
                let text = format!("cannot compare the instance with its snapshots: {error}");
                self.store.observer().event(Event::Warning(text));
                Vec::new()
            }
        };
        all.retain(|(_, snapshot)| {
            let of = snapshot.instance.as_ref();
            snapshot.host == self.host
                && of.is_some_and(|of| of.name == plan.instance && of.is_complete)
                && !snapshot.is_emptied()
        });
        Ok(all)
    }
}

/// Inspects an instance whose databases do not answer. Wrong owners and modes may be the reason;
/// without them, the error is the result.
fn without_databases(plan: &Plan, error: Error, progress: &Progress) -> Result<Inspection> {
    let Some(owners) = owners::check(plan, progress)?.filter(|check| check.verdict > Verdict::Ok)
    else {
        return Err(error);
    };
    let absent = plan.parts.iter().filter(|part| !part.is_there()).map(Absent::of);
    let missing = plan.lacking.iter().cloned().chain(absent).collect();
    let error = error.to_string();
    let text = format!("cannot query the databases: {}", error.lines().next().unwrap_or_default());
    let hint = "correct owners and modes first, then inspect again";
    let databases = Check::new("databases", Verdict::Failed, text).with_hint(hint);
    let (checks, product) = (vec![databases, owners], plan.product.clone());
    Ok(Inspection { missing, checks, product, postgres: None, project_count: 0 })
}

/// Inspects this machine and its running databases. Compares keys and repositories with the last
/// complete snapshot, if there is one. Changes nothing.
pub fn inspect(
    plan: &Plan,
    kind: &'static dyn Kind,
    snapshots: Option<Snapshots<'_>>,
    progress: &Progress,
) -> Result<Inspection> {
    let (mut point, mut missing) = match ConsistencyPoint::open(plan, progress) {
        Err(error) if !error.is_interrupted() => return without_databases(plan, error, progress),
        opened => opened?,
    };
    missing.extend(plan.lacking.iter().cloned());
    // Its transactions are read-only.
    point.take()?;
    let mut catalogue = kind.ask(plan, point.connections())?;
    let absent = plan.parts.iter().filter(|part| !part.is_there());
    missing.extend(absent.map(Absent::of));
    let complete = complete(plan, snapshots.as_ref())?;
    let earlier = newest(snapshots.as_ref(), &complete)?;
    let mut checks = checks(plan, kind, &mut point, &mut catalogue, earlier.as_ref())?;
    checks.extend(owners::check(plan, progress)?);
    if let Some(Snapshots { store, .. }) = snapshots {
        checks.extend(changed_keys(plan, kind, store, &catalogue.encrypted, complete)?);
    }
    let project_count = catalogue.projects.len();
    let product = catalogue.product(plan);
    Ok(Inspection { missing, checks, product, postgres: point.version(), project_count })
}
