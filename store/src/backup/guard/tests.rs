use super::*;
use std::collections::BTreeSet;

fn amount(files: u64, bytes: u64) -> Amount {
    Amount { files, bytes, ..Amount::default() }
}

fn found(files: u64, bytes: u64) -> Found {
    Found { amount: amount(files, bytes), is_there: true, mount: None }
}

fn cause(then: Amount, found: &Found, limit: MaxLoss) -> Option<Cause> {
    let state = SourceState { amount: then, ..SourceState::default() };
    loss(&state, found, Amount::default(), limit).map(|(cause, _)| cause)
}

#[test]
fn more_than_half_of_a_hundred_files_is_a_loss() {
    let of = |then: (u64, u64), now: (u64, u64)| {
        cause(amount(then.0, then.1), &found(now.0, now.1), MaxLoss::HALF)
    };
    assert_eq!(of((100, 100), (50, 50)), None);
    assert_eq!(of((100, 100), (49, 100)), Some(Cause::Shrunk));
    assert_eq!(of((100, 100), (100, 49)), Some(Cause::Shrunk));
    assert_eq!(of((101, 101), (51, 51)), None);
    // A few files come and go.
    assert_eq!(of((99, 100), (1, 1)), None);
    assert_eq!(of((99, 100), (0, 0)), Some(Cause::Empty));
    assert_eq!(of((1, 0), (0, 0)), Some(Cause::Empty));
    assert_eq!(of((0, 0), (0, 0)), None);
    // Empty files are files.
    assert_eq!(of((100, 0), (50, 0)), None);
    assert_eq!(of((u64::MAX, u64::MAX), (1, 1)), Some(Cause::Shrunk));
}

#[test]
fn repositories_are_lost_with_their_few_other_files() {
    let of = |now: (u64, u64)| {
        let then = Amount { joined: 300, ..amount(90, 1000) };
        cause(then, &found(now.0, now.1), MaxLoss::HALF)
    };
    assert_eq!(of((6, 60)), Some(Cause::Shrunk));
    assert_eq!(of((90, 1000)), Some(Cause::Shrunk), "no object is left");
    let of = |then: u64, now: (u64, u64)| {
        let with = |amount, joined, joined_bytes| Amount { joined, joined_bytes, ..amount };
        let now = Found { amount: with(amount(now.0, now.1), 3, 90), ..found(0, 0) };
        cause(with(amount(then, 1000), 300, 900), &now, MaxLoss::HALF)
    };
    // Housekeeping, and files that a user deletes beside a repository.
    assert_eq!(of(90, (90, 190)), None);
    assert_eq!(of(90, (6, 900)), None);
    assert_eq!(of(120, (120, 190)), None);
    // The other files.
    assert_eq!(of(120, (120, 130)), Some(Cause::Shrunk));
}

#[test]
fn limits_are_shares_of_files_and_bytes() {
    let limit = |text: &str| text.parse::<MaxLoss>().expect("a share");
    let of = |now: u64, text: &str| cause(amount(1000, 1000), &found(now, now), limit(text));
    assert_eq!(of(200, "80%"), None);
    assert_eq!(of(199, "80%"), Some(Cause::Shrunk));
    assert_eq!(of(999, "0%"), Some(Cause::Shrunk));
    assert_eq!(of(1000, "0%"), None);
    assert_eq!(of(0, "99%"), Some(Cause::Empty));
    assert_eq!(of(0, "100%"), None);
    let gone = Found::default();
    assert_eq!(cause(amount(1, 1), &gone, limit("99%")), Some(Cause::Gone));
    assert_eq!(cause(amount(1, 1), &gone, limit("100%")), None);
    for wrong in ["", "50", "%", "-1%", "+1%", "101%", "5.5%", "50 %", "999%"] {
        assert!(wrong.parse::<MaxLoss>().is_err(), "{wrong}");
    }
    assert_eq!(limit("007%").to_string(), "7%");
}

#[test]
fn skipped_files_are_not_lost() {
    let state = SourceState { amount: amount(1000, 1000), ..SourceState::default() };
    let of = |unread, now| loss(&state, &found(now, now), amount(unread, unread), MaxLoss::HALF);
    assert_eq!(of(800, 100), None);
    assert_eq!(of(800, 99), Some((Cause::Shrunk, amount(200, 200))));
    assert_eq!(of(1000, 0), None);
    assert_eq!(of(999, 0), Some((Cause::Empty, amount(1, 1))));
}

#[test]
fn a_mount_is_lost_if_a_directory_above_is_on_the_same_file_system() {
    let of = |then: Option<(&str, u64)>, now: (&str, u64)| {
        let state = SourceState {
            amount: amount(5, 5),
            mount: then.map(|(top, _)| top.as_bytes().to_vec().into()),
            file_system: then.map(|(_, kind)| kind),
        };
        let mount = Some(MountState { top: now.0.into(), kind: now.1 });
        let found = Found { mount, ..found(5, 5) };
        loss(&state, &found, Amount::default(), MaxLoss::ALL).map(|(cause, _)| cause)
    };
    assert_eq!(of(Some(("/srv/data", 1)), ("/srv/data", 1)), None);
    assert_eq!(of(Some(("/srv/data", 1)), ("/", 1)), Some(Cause::Unmounted));
    assert_eq!(of(Some(("/srv/data", 1)), ("/srv", 1)), Some(Cause::Unmounted));
    assert_eq!(of(Some(("/srv/data", 1)), ("/srv/data", 2)), Some(Cause::OtherFileSystem));
    // A disk was added, or one deeper.
    assert_eq!(of(None, ("/srv/data", 1)), None);
    assert_eq!(of(Some(("/srv", 1)), ("/srv/data", 2)), None);
    // A source that had nothing cannot lose anything.
    let state = SourceState { mount: Some(b"/srv".to_vec().into()), ..SourceState::default() };
    let mount = Some(MountState { top: "/".into(), kind: 1 });
    let found = Found { mount, ..found(0, 0) };
    assert_eq!(loss(&state, &found, Amount::default(), MaxLoss::HALF), None);
}

#[test]
fn files_count_for_the_innermost_source() {
    let entry = |path: &str, kind| Entry {
        size: path.len() as u64,
        ..Entry::new(path.as_bytes().to_vec(), kind, 0o644)
    };
    let sources: BTreeSet<Vec<u8>> =
        ["a", "a/in", "a/in/deep", "a/zz", "a-b", "z", "not/there"].map(|of| of.into()).into();
    let mut counts = SourceCounts::new(&sources);
    use EntryKind::{Directory, File, Symlink};
    let entries = [
        ("a", Directory),
        ("a/0", File),
        ("a/in", Directory),
        ("a/in/1", File),
        ("a/in/deep", Directory),
        ("a/in/deep/2", File),
        ("a/in/z", Symlink),
        ("a/zz", File),
        ("a-b", File),
        ("b", File),
        ("z", Directory),
    ];
    for (path, kind) in entries {
        counts.push(&entry(path, kind));
    }
    let counts = counts.finish();
    let of = |path: &str| (counts[path.as_bytes()].files, counts[path.as_bytes()].bytes);
    assert_eq!(of("a"), (2, 7));
    assert_eq!(of("a/in"), (2, 12));
    assert_eq!(of("a/in/deep"), (1, 11));
    assert_eq!(of("a/zz"), (1, 4));
    assert_eq!(of("a-b"), (1, 3));
    assert_eq!(of("z"), (0, 0));
    assert_eq!(of("not/there"), (0, 0));
    let innermost = |path: &str| innermost(path.as_bytes(), &counts).map(<[u8]>::to_vec);
    assert_eq!(innermost("a/in/deep/2"), Some(b"a/in/deep".to_vec()));
    assert_eq!(innermost("a/inner"), Some(b"a".to_vec()));
    assert_eq!(innermost("a/in"), Some(b"a".to_vec()));
    assert_eq!(innermost("a"), None);
    assert_eq!(innermost("b"), None);
    // All paths are below the root.
    let mut counts = SourceCounts::new([&Vec::new()]);
    counts.push(&entry("etc", Directory));
    counts.push(&entry("etc/passwd", File));
    assert_eq!(counts.finish()[&Vec::new()], amount(1, 10));
}
