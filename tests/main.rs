//! The one integration test binary.

/// Checks and restores find the same losses.
mod agreement;
/// Records of checks in the store.
mod check_records;
/// Every command, end to end.
mod cli;
/// Promised numbers of listings, reads and requests.
mod costs;
/// One flipped bit or one cut anywhere in a store, and stores crafted by an attacker.
mod damage;
/// Database servers with unusual settings.
mod databases;
/// A GitLab in containers.
mod docker_gitlab;
/// Restores into scratch space that prove a snapshot.
mod drill;
/// Kills, full disks, errors, locks and interrupts.
mod faults;
/// A restore reproduces everything that a file system stores.
mod fidelity;
/// Retention: rules, named snapshots, pins and tags.
mod forget;
/// `docs/format.md` and `docs/restore.py` against the code.
mod format;
/// A GitLab in a container of its official image.
mod gitlab_container;
/// Stores written by earlier versions.
mod golden;
/// Sources and stores that are not mounted, and sources that lost most of their files.
mod guard;
/// Restores over the machine of an instance.
mod in_place;
/// Whole instances with real servers.
mod instance;
/// Checks of the files and repositories that the databases name.
mod instance_checks;
/// Instances whose parts fail during a backup.
mod instance_faults;
/// Keys that decrypt values in the databases of instances.
mod keys;
/// `kill -9` at every step of prunes, forgets and backups.
mod kills;
/// Live bare repositories.
mod live_git;
/// Mattermost next to GitLab, and alone.
mod mattermost;
/// The text of common errors.
mod messages;
/// Notifications about runs of instances.
mod monitoring;
/// Restores into a directory with mounts in it.
mod mounts;
/// Random trees, compared with copies after every backup.
mod nights;
/// Notifications, received by real servers.
mod notify;
/// Owners and modes of instances.
mod owner_maps;
mod owners;
/// Loss of power at any moment.
mod power_loss;
/// Deleting data that no snapshot needs.
mod prune;
/// A fault of one source path costs only that path.
mod reading;
/// Whole instances from a snapshot.
mod rebuild;
/// Paths that a restore removes, keeps and leaves behind.
mod restore;
/// Changed files are stored as their new bytes.
mod reuse;
/// Rules: excluded paths, named paths, and paths that a restore keeps.
mod rules;
/// Choice of snapshots, and of the store.
mod selectors;
/// Files of very many small slices of chunks.
mod slices;
/// Concurrent work on one store.
mod soak;
/// The files of a store: permissions, locks, syncs and unexpected objects.
mod store_files;
/// Support for several test modules.
mod support;
/// System calls that fail.
mod system_calls;
/// Rules of the source that a machine can keep.
mod tidy;
/// Criteria for unchanged files.
mod unchanged;
