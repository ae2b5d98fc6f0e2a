//! The one integration test binary.

/// A check and a restore come to the same verdict.
mod agreement;
/// Every command, end to end.
mod cli;
/// One bit or one cut anywhere in a store, and stores made by an enemy.
mod damage;
/// Database servers that are not as everybody's are.
mod databases;
/// A GitLab in containers.
mod docker_gitlab;
/// Kills, full disks, errors, locks and interrupts.
mod faults;
/// Everything a file system keeps comes back.
mod fidelity;
/// `docs/format.md` and `docs/restore.py` against the code.
mod format;
/// Stores of every version of the format are read by the present program.
mod gitlab_container;

mod golden;
/// Whole instances with real servers.
mod instance;
/// Instances whose parts fail.
mod instance_checks;
mod instance_faults;
/// Live bare repositories.
mod live_git;
/// Mattermost beside GitLab, and alone.
mod mattermost;
/// Random trees against copies.
mod nights;
/// Who is told, by real servers.
mod notify;
/// Power goes at any moment.
mod power_loss;
/// Trouble with the source costs what it is about, and nothing else.
mod reading;
/// What a restore removes, keeps and leaves behind.
mod restore;
/// What changed is stored as what is new of it.
mod reuse;
/// What is left out, what is named, and what a restore spares.
mod rules;
/// Files of very many small slices of chunks.
mod slices;
/// Everything at once on one store.
mod soak;
/// Permissions, locks, syncs and odd things of the store's own files.
mod store_files;
mod support;
/// System calls that fail.
mod system_calls;
/// Runs of instances and who hears of them.
mod telling;
/// When a file counts as unchanged.
mod unchanged;
