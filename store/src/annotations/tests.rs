use super::*;
use crate::arbitrary::cases;
use crate::backend::{Backend, Memory};
use crate::config::Config;
use crate::observe::Silent;
use crate::snapshot::example;
use crate::store::Purpose;
use crate::workspace::Workspace;
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::Arc;

/// Tags in the record of the test's snapshot.
const RECORDED: [&str; 2] = ["nightly", "old"];

/// A host with its own view of the store's files.
struct Host {
    memory: Memory,
    store: Store,
    id: SnapshotId,
    recorded: Vec<String>,
    _workspace: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        let memory = Memory::default();
        let config = Config::new([1; 16], chunker::Parameters::DEFAULT, 3);
        backend::write_all(&memory, crate::config::FILE, &config.to_bytes()).expect("writes");
        Host::on(memory)
    }

    /// Opens the store on these files. Every host writes the same snapshot.
    fn on(memory: Memory) -> Host {
        let workspace = Workspace::temporary().expect("a directory");
        let (backend, observer) = (Arc::new(memory.clone()), Arc::new(Silent::default()));
        let store = Store::open_backend(backend, workspace.path(), Purpose::Write, observer);
        let store = store.expect("opens");
        let recorded = RECORDED.map(str::to_owned).to_vec();
        let snapshot = crate::snapshot::Snapshot { tags: recorded.clone(), ..example() };
        let id = snapshot.write(&memory, store.codec).expect("writes");
        Host { memory, store, id, recorded, _workspace: workspace }
    }

    fn tags(&self) -> Vec<String> {
        let (annotations, errors) = self.store.annotations().expect("reads");
        assert!(errors.is_empty(), "{errors:?}");
        annotations.tags(&self.id, &self.recorded).into_owned()
    }

    fn is_pinned(&self) -> bool {
        self.store.annotations().expect("reads").0.is_pinned(&self.id)
    }

    fn add(&self, tag: &str) -> bool {
        self.store.add_tag(&self.id, &self.recorded, tag).expect("writes")
    }

    fn remove(&self, tag: &str) -> bool {
        self.store.remove_tag(&self.id, &self.recorded, tag).expect("writes")
    }

    fn names(&self, dir: &str) -> Vec<String> {
        self.memory.names(dir).expect("lists")
    }
}

#[test]
fn tags_are_added_and_removed_again_and_again() {
    let host = Host::new();
    assert_eq!(host.tags(), ["nightly", "old"]);
    assert!(host.add("release") && !host.add("release") && !host.add("nightly"));
    assert_eq!(host.tags(), ["nightly", "old", "release"]);
    for _ in 0..3 {
        assert!(host.remove("nightly") && !host.remove("nightly"));
        assert_eq!(host.tags(), ["old", "release"]);
        assert!(host.add("nightly"));
        assert_eq!(host.tags(), ["old", "nightly", "release"]);
    }
    assert!(host.remove("release") && !host.remove("never"));
    // Other snapshots have their own tags.
    let other = SnapshotId::of(b"other");
    let (annotations, _) = host.store.annotations().expect("reads");
    assert_eq!(*annotations.tags(&other, &host.recorded), host.recorded);
}

#[test]
fn pins_are_set_and_removed_again_and_again() {
    let host = Host::new();
    for _ in 0..3 {
        assert!(host.store.pin(&host.id).expect("pins"));
        assert!(!host.store.pin(&host.id).expect("is pinned"));
        assert!(host.is_pinned());
        assert!(host.store.unpin(&host.id).expect("unpins"));
        assert!(!host.store.unpin(&host.id).expect("is not pinned"));
        assert!(!host.is_pinned());
    }
}

#[test]
fn names_of_other_programs_are_ignored() {
    let host = Host::new();
    let key = "0123456789abcdef0123456789abcdef";
    for name in [
        "x".to_owned(),
        host.id.to_string(),
        format!("{}-", host.id),
        format!("{}-{}", host.id, &key[1..]),
        format!("{}-{}", host.id, key.to_uppercase()),
        format!("{}_{key}", host.id),
        format!("{}-{key}-", host.id),
        format!("{}-{key}-removed-removed", host.id),
        format!("ü{}", &host.id.to_string()[1..]),
    ] {
        for dir in [PINS_DIR, TAGS_DIR] {
            backend::write_all(&host.memory, &format!("{dir}/{name}"), b"x").expect("writes");
        }
    }
    assert_eq!((host.tags(), host.is_pinned()), (host.recorded.clone(), false));
    let before = host.names(PINS_DIR);
    host.store.remove_annotations(|_| true).expect("removes");
    assert_eq!(host.names(PINS_DIR), before);
}

#[test]
fn a_damaged_tag_hides_no_other_tag() {
    let host = Host::new();
    host.add("a");
    host.add("b");
    let damaged = format!("{TAGS_DIR}/{}", host.names(TAGS_DIR)[0]);
    let newer = br#"{"version":2,"tag":"c","nonce":""}"#;
    for content in [&b"damaged"[..], b"", newer] {
        host.memory.with_files(|files| files.insert(damaged.clone(), content.to_vec()));
        let (annotations, errors) = host.store.annotations().expect("reads");
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().starts_with(&damaged), "{}", errors[0]);
        assert_eq!(annotations.tags(&host.id, &host.recorded).len(), 3);
        assert!(annotations.has_unknown_tags(&host.id));
        assert!(!annotations.has_unknown_tags(&SnapshotId::of(b"other")));
    }
    // Under its correct name, as a newer program writes it.
    let name = added(TAGS_DIR, &host.id, &key_of(newer));
    host.memory.with_files(|files| files.remove(&damaged));
    backend::write_all(&host.memory, &name, newer).expect("writes");
    let (_, errors) = host.store.annotations().expect("reads");
    assert!(matches!(errors[..], [Error::Newer { .. }]), "{errors:?}");
}

#[test]
fn a_tag_that_is_too_long_is_refused() {
    let host = Host::new();
    let long = "x".repeat(limits::TAG_BYTES_MAX);
    let error = host.store.add_tag(&host.id, &host.recorded, &long).expect_err("too long");
    assert!(matches!(error, Error::RecordTooLong { .. }), "{error}");
    assert_eq!(host.names(TAGS_DIR), [""; 0]);
    host.add(&long[200..]);
    assert_eq!(host.tags().len(), 3);
}

#[test]
fn a_forgotten_snapshot_gets_no_tags() {
    let host = Host::new();
    let other = SnapshotId::of(b"forgotten");
    let failures = [
        host.store.pin(&other).expect_err("gone"),
        host.store.add_tag(&other, &[], "x").expect_err("gone"),
    ];
    for error in failures {
        assert!(matches!(error, Error::Forgotten(id) if id == other), "{error}");
    }
    assert!(host.names(TAGS_DIR).is_empty() && host.names(PINS_DIR).is_empty());
}

/// A change on one of two hosts.
#[derive(Debug, Clone, Copy)]
enum Step {
    Add(usize),
    Remove(usize),
    Pin,
    Unpin,
    /// The hosts exchange their files.
    Meet,
}

const TAGS: [&str; 3] = ["nightly", "old", "new"];

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let step = prop_oneof![
        3 => (0..TAGS.len()).prop_map(Step::Add),
        3 => (0..TAGS.len()).prop_map(Step::Remove),
        1 => Just(Step::Pin),
        1 => Just(Step::Unpin),
        2 => Just(Step::Meet),
    ];
    vec((any::<bool>(), step), 0..24)
}

/// Gives both hosts the files of both. Files with one name must be equal.
fn meet(hosts: &[Host; 2]) {
    let [mut mine, theirs] = [0, 1].map(|of| hosts[of].memory.with_files(|files| files.clone()));
    for (name, bytes) in theirs {
        let same = mine.entry(name).or_insert_with(|| bytes.clone());
        assert_eq!(*same, bytes);
    }
    for host in hosts {
        host.memory.with_files(|files| files.clone_from(&mine));
    }
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn hosts_agree_after_they_meet(steps in steps()) {
        let first = Host::new();
        let second = Host::on(first.memory.copy());
        let hosts = [first, second];
        // What the last change of each host said, while only one of them spoke since they met.
        let mut said = std::collections::HashMap::new();
        for (of, step) in steps {
            let (host, of) = (&hosts[usize::from(of)], usize::from(of));
            match step {
                Step::Add(tag) => {
                    host.add(TAGS[tag]);
                    prop_assert!(host.tags().iter().any(|known| known == TAGS[tag]));
                    said.entry(tag).or_insert_with(Vec::new).push((of, true));
                }
                Step::Remove(tag) => {
                    host.remove(TAGS[tag]);
                    prop_assert!(host.tags().iter().all(|known| known != TAGS[tag]));
                    said.entry(tag).or_insert_with(Vec::new).push((of, false));
                }
                Step::Pin => {
                    host.store.pin(&host.id).expect("pins");
                    prop_assert!(host.is_pinned());
                }
                Step::Unpin => {
                    host.store.unpin(&host.id).expect("unpins");
                    prop_assert!(!host.is_pinned());
                }
                Step::Meet => {
                    meet(&hosts);
                    prop_assert_eq!(hosts[0].tags(), hosts[1].tags());
                    prop_assert_eq!(hosts[0].is_pinned(), hosts[1].is_pinned());
                    for (tag, changes) in said.drain() {
                        let (of, last) = changes[changes.len() - 1];
                        if changes.iter().all(|(other, _)| *other == of) {
                            let has = hosts[0].tags().iter().any(|known| known == TAGS[tag]);
                            prop_assert_eq!(has, last);
                        }
                    }
                }
            }
        }
    }
}
