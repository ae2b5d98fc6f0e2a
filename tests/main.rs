//! The one integration test binary.

/// A check and a restore agree.
mod agreement;
/// Every command, end to end.
mod cli;
/// One flipped bit or one cut anywhere in a store, and stores crafted by an attacker.
mod damage;
/// Database servers with unusual settings.
mod databases;
/// A GitLab in containers.
mod docker_gitlab;
/// Kills, full disks, errors, locks and interrupts.
mod faults;
/// A restore reproduces everything that a file system stores.
mod fidelity;
/// `docs/format.md` and `docs/restore.py` against the code.
mod format;
/// Stores of every version of the format are read by the present program.
mod gitlab_container;

mod golden;
/// Restores over the machine of an instance.
mod in_place;
/// Whole instances with real servers.
mod instance;
/// Instances whose parts fail.
mod instance_checks;
mod instance_faults;
/// Keys of instances.
mod keys;
/// Live bare repositories.
mod live_git;
/// Mattermost next to GitLab, and alone.
mod mattermost;
/// The text of the commonest errors.
mod messages;
/// Notifications about runs of instances.
mod monitoring;
/// Random trees against copies.
mod nights;
/// Notifications, received by real servers.
mod notify;
/// Owners and modes of instances.
mod owners;
/// Loss of power at any moment.
mod power_loss;
/// A fault of one source path costs only that path.
mod reading;
/// Paths that a restore removes, keeps and leaves behind.
mod restore;
/// Changed files are stored as their new bytes.
mod reuse;
/// Rules: excluded paths, named paths, and paths that a restore spares.
mod rules;
/// Files of very many small slices of chunks.
mod slices;
/// Concurrent work on one store.
mod soak;
/// Permissions, locks, syncs and unexpected objects among the store's own files.
mod store_files;
mod support;
/// System calls that fail.
mod system_calls;
/// Rules of the source that a machine can keep.
mod tidy;
/// Criteria for unchanged files.
mod unchanged;
