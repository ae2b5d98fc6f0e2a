use super::*;
use crate::kind::gitlab::repositories::git::git;
use std::os::unix::fs::symlink;

fn examined(dir: &Path) -> Examined {
    let examiner = Examiner { root: Path::new("/"), view: &View::Live, is_current: true };
    examiner.examine(&[dir.to_owned()]).expect("looks").remove(0)
}

fn state(dir: &Path) -> State {
    examined(dir).state
}

fn write(path: &Path, content: impl AsRef<[u8]>) {
    let _ = std::fs::remove_file(path);
    std::fs::create_dir_all(path.parent().expect("below")).expect("directories");
    std::fs::write(path, content).expect("writes");
}

/// Makes a repository with a pack, a loose object, a packed and a loose reference.
fn make_with_git(dir: &Path, format: &str) {
    let run = |arguments: &[&str], input: &str| git(dir, arguments, input).expect("works");
    let format = format!("--ref-format={format}");
    run(&["init", "-q", "--bare", "--template=", "-b", "main", &format], "");
    for branch in ["main", "other"] {
        let file = run(&["hash-object", "-w", "--stdin"], branch);
        let tree = run(&["mktree"], &format!("100644 blob {file}\tfile\n"));
        let commit = run(&["commit-tree", "-m", branch, &tree], "");
        run(&["update-ref", &format!("refs/heads/{branch}"), &commit], "");
        if branch == "main" {
            run(&["repack", "-qad"], "");
            run(&["pack-refs", "--all"], "");
        }
    }
}

/// Returns the only file with this extension below `objects/pack`.
fn pack_file(dir: &Path, extension: &str) -> PathBuf {
    let all = std::fs::read_dir(dir.join("objects/pack")).expect("lists");
    let mut all = all.map(|entry| entry.expect("an entry").path());
    all.find(|path| path.extension().is_some_and(|end| end == extension)).expect("is there")
}

#[test]
fn only_repositories_that_git_accepts_are_whole() {
    let scratch = tempfile::tempdir().expect("a directory");
    let dir = scratch.path().join("one.git");
    assert_eq!(state(&dir), State::Absent);
    make(&dir);
    assert_eq!(state(&dir), State::Whole);
    for head in ["ref: refs/heads/.invalid\n", &"a".repeat(40)] {
        write(&dir.join("HEAD"), head);
        assert_eq!(state(&dir), State::Whole, "{head}");
    }
    write(&dir.join("HEAD"), "a".repeat(64));
    assert_eq!(state(&dir), State::Damaged(OTHER_HASH));
    for head in ["", "ref: ", "ref: heads/main", "xyz", &"a1".repeat(19), "\0\0\0"] {
        write(&dir.join("HEAD"), head);
        assert_eq!(state(&dir), State::Damaged("has no readable HEAD"), "{head}");
    }
    write(&dir.join("HEAD"), "ref: refs/heads/main");
    std::fs::remove_dir_all(dir.join("objects")).expect("removes");
    assert_eq!(state(&dir), State::Damaged("has no objects"));
    write(&dir.join("objects/info/packs"), "P pack-1.pack\n");
    write(&dir.join("objects/info/commit-graph"), "CGPH");
    assert_eq!(state(&dir), State::Damaged("has references but no objects"));
    write(&dir.join("objects/info/alternates"), "# none\n");
    assert_eq!(state(&dir), State::Damaged("has references but no objects"));
    write(&dir.join("objects/info/alternates"), "../../pool.git/objects\n");
    assert_eq!(state(&dir), State::Whole, "it borrows them");
    std::fs::remove_file(dir.join("objects/info/alternates")).expect("removes");
    std::fs::remove_file(dir.join("refs/heads/main")).expect("removes");
    write(&dir.join("packed-refs"), "# pack-refs with: sorted \n");
    assert_eq!(state(&dir), State::Whole, "a new one has neither");
    std::fs::remove_dir_all(dir.join("refs")).expect("removes");
    assert_eq!(state(&dir), State::Damaged("has no references"));
}

#[test]
fn links_within_a_repository_are_followed_as_git_does() {
    let scratch = tempfile::tempdir().expect("a directory");
    let dir = scratch.path().join("one.git");
    make_with_git(&dir, "files");
    std::fs::remove_file(dir.join("HEAD")).expect("removes");
    symlink("refs/heads/main", dir.join("HEAD")).expect("links");
    for name in ["objects/pack", "objects", "refs", "packed-refs", "config"] {
        let away = scratch.path().join(name.replace('/', "-"));
        std::fs::rename(dir.join(name), &away).expect("moves");
        symlink(&away, dir.join(name)).expect("links");
    }
    let other = scratch.path().join("other.git");
    symlink("one.git", &other).expect("links");
    for dir in [dir, other] {
        assert!(git(&dir, &["log", "main"], "").is_some());
        let References { any, branches, head } = examined(&dir).references;
        assert!(any && branches && head);
    }
    symlink("nowhere", scratch.path().join("three.git")).expect("links");
    assert_eq!(state(&scratch.path().join("three.git")), State::Damaged("is not a directory"));
}

#[test]
fn a_repository_after_a_power_cut_is_damaged() {
    type Spoil = fn(&Path);
    let faults: &[(&str, &str, Spoil)] = &[
        ("empty pack", "has a truncated pack", |dir| write(&pack_file(dir, "pack"), "")),
        ("empty index", "has a truncated index of a pack", |dir| {
            write(&pack_file(dir, "idx"), "");
        }),
        ("no pack", "lacks a pack whose index it has", |dir| {
            std::fs::remove_file(pack_file(dir, "pack")).expect("removes");
        }),
        ("no index", "lacks the index of a pack", |dir| {
            std::fs::remove_file(pack_file(dir, "idx")).expect("removes");
        }),
        ("neither pack nor index", "lacks the commit of its HEAD", |dir| {
            for end in ["pack", "idx"] {
                std::fs::remove_file(pack_file(dir, end)).expect("removes");
            }
        }),
        ("zeros as a pack", "has a damaged pack or object", |dir| {
            let pack = pack_file(dir, "pack");
            let size = pack.metadata().expect("is there").len();
            write(&pack, vec![0; size as usize]);
        }),
        ("zeros at the end of a pack", "has a damaged pack or object", |dir| {
            let pack = pack_file(dir, "pack");
            let mut content = std::fs::read(&pack).expect("reads");
            let from = content.len() - 25;
            content[from..].fill(0);
            write(&pack, content);
        }),
        ("zeros as a config", "has an unreadable config", |dir| {
            write(&dir.join("config"), [0; 40]);
        }),
        ("half a config", "has an unreadable config", |dir| write(&dir.join("config"), "[core")),
        ("zeros as packed references", "has a damaged packed-refs", |dir| {
            write(&dir.join("packed-refs"), [0; 90]);
        }),
        ("half a line of packed references", "has a damaged packed-refs", |dir| {
            write(&dir.join("packed-refs"), "a1a1a1");
        }),
        ("zeros as a reference", "has a damaged reference", |dir| {
            write(&dir.join("refs/heads/main"), [0; 41]);
        }),
        ("an empty reference", "has a damaged reference", |dir| {
            write(&dir.join("refs/heads/main"), "");
        }),
        ("an empty HEAD", "has no readable HEAD", |dir| write(&dir.join("HEAD"), "")),
    ];
    for (what, fault, spoil) in faults {
        let scratch = tempfile::tempdir().expect("a directory");
        let dir = scratch.path().join("one.git");
        make_with_git(&dir, "files");
        assert!(git(&dir, &["cat-file", "-p", "main:file"], "").is_some());
        let before = examined(&dir);
        assert_eq!(before.state, State::Whole);
        spoil(&dir);
        assert_eq!(state(&dir), State::Damaged(fault), "{what}");
        assert!(examined(&dir).is_lost_since(&before), "{what}");
        assert_eq!(git(&dir, &["cat-file", "-p", "main:file"], ""), None, "{what}: git agrees");
    }
}

#[test]
fn lost_packs_are_noticed_although_the_newest_commit_is_loose() {
    let scratch = tempfile::tempdir().expect("a directory");
    let dir = scratch.path().join("one.git");
    make_with_git(&dir, "files");
    git(&dir, &["symbolic-ref", "HEAD", "refs/heads/other"], "").expect("works");
    git(&dir, &["update-ref", "refs/keep/main", "refs/heads/main"], "").expect("works");
    git(&dir, &["update-ref", "-d", "refs/heads/main"], "").expect("works");
    let before = examined(&dir);
    std::fs::remove_dir_all(dir.join("objects/pack")).expect("removes");
    std::fs::create_dir(dir.join("objects/pack")).expect("creates");
    let now = examined(&dir);
    assert_eq!(now.state, State::Whole);
    assert!(now.is_lost_since(&before) && !before.is_lost_since(&before));
}

#[test]
fn branches_need_their_commits() {
    for format in ["files", "reftable"] {
        let scratch = tempfile::tempdir().expect("a directory");
        let dir = scratch.path().join("one.git");
        make_with_git(&dir, format);
        let commit = git(&dir, &["rev-parse", "other"], "").expect("an id");
        let object = dir.join(format!("objects/{}/{}", &commit[..2], &commit[2..]));
        let aside = scratch.path().join("aside");
        assert_eq!(state(&dir), State::Whole);
        std::fs::rename(&object, &aside).expect("moves");
        assert_eq!(state(&dir), State::Damaged("lacks the commit of a branch"), "{format}");
        git(&dir, &["pack-refs", "--all"], "").expect("works");
        assert_eq!(state(&dir), State::Damaged("lacks the commit of a branch"), "{format}");
        std::fs::rename(&aside, &object).expect("moves");
        git(&dir, &["update-ref", "refs/heads/other", "refs/heads/main"], "").expect("works");
        std::fs::remove_file(&object).expect("removes");
        assert_eq!(state(&dir), State::Whole, "{format}: nothing names it");
    }
}

#[test]
fn ids_must_be_of_the_named_hash() {
    for format in ["files", "reftable"] {
        let scratch = tempfile::tempdir().expect("a directory");
        let (dir, other) = (scratch.path().join("one.git"), scratch.path().join("other.git"));
        make_with_git(&dir, format);
        let format = format!("--ref-format={format}");
        let make = ["init", "-q", "--bare", "--object-format=sha256", &format];
        git(&other, &make, "").expect("works");
        assert_eq!(state(&other), State::Whole);
        std::fs::copy(other.join("config"), dir.join("config")).expect("copies");
        assert_eq!(state(&dir), State::Damaged(OTHER_HASH), "{format}");
        assert_eq!(git(&dir, &["rev-parse", "--verify", "main^{commit}"], ""), None);
        let config = std::fs::read_to_string(dir.join("config")).expect("reads");
        write(&dir.join("config"), config.replace("sha256", "sha512"));
        assert_eq!(state(&dir), State::Damaged("has an unreadable config"), "{format}");
        assert_eq!(git(&dir, &["rev-parse", "--verify", "main"], ""), None);
    }
}

#[test]
fn damaged_loose_objects_are_found() {
    let scratch = tempfile::tempdir().expect("a directory");
    let dir = scratch.path().join("one.git");
    make_with_git(&dir, "files");
    let mut objects = Objects::default();
    objects.list(&View::Live, &dir.join("objects"), "").expect("lists");
    let object = git(&dir, &["rev-parse", "other:file"], "").expect("an id");
    let path = dir.join(format!("objects/{}/{}", &object[..2], &object[2..]));
    for (content, fault) in
        [(&b""[..], "has an empty object"), (&[0; 20][..], "has a damaged pack or object")]
    {
        write(&path, content);
        assert_eq!(state(&dir), State::Damaged(fault));
        assert_eq!(git(&dir, &["cat-file", "-p", "other:file"], ""), None);
    }
}

#[test]
fn loose_and_packed_references_are_found() {
    let scratch = tempfile::tempdir().expect("a directory");
    let dir = scratch.path().join("one.git");
    make(&dir);
    let references = |any, branches, head| References { any, branches, head };
    assert_eq!(examined(&dir).references, references(true, true, true));
    std::fs::remove_file(dir.join("refs/heads/main")).expect("removes");
    assert_eq!(examined(&dir).references, references(false, false, false), "directories stay");
    let header = "# pack-refs with: peeled fully-peeled sorted \n";
    let id = "a".repeat(40);
    for (line, expected) in [
        (String::new(), references(false, false, false)),
        (format!("{id} refs/heads/main\n"), references(true, true, true)),
        (format!("{id} refs/heads/other\n"), references(true, true, false)),
        (format!("{id} refs/keep-around/{id}\n^{id}\n"), references(true, false, false)),
    ] {
        write(&dir.join("packed-refs"), format!("{header}{line}"));
        assert_eq!(examined(&dir).references, expected, "{line}");
    }
    // A reference that is being written is not one yet.
    write(&dir.join("refs/heads/main.lock"), "");
    assert_eq!(state(&dir), State::Whole);
}

#[test]
fn references_in_a_reftable_are_found() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (empty, full) = (scratch.path().join("empty.git"), scratch.path().join("full.git"));
    git(&empty, &["init", "-q", "--bare", "--ref-format=reftable"], "").expect("works");
    assert_eq!(examined(&empty).references, References::default());
    make_with_git(&full, "reftable");
    let before = examined(&full);
    assert_eq!(before.references, References::UNREAD);
    let list = full.join("reftable/tables.list");
    let text = std::fs::read_to_string(&list).expect("reads");
    let table = full.join("reftable").join(text.lines().next().expect("a table"));
    let content = std::fs::read(&table).expect("reads");
    let check = |fault: &str| {
        let Examined { state, .. } = examined(&full);
        assert!(matches!(state, State::Damaged(known) if known == fault), "{state:?}");
    };
    write(&table, "");
    check("has a damaged reftable");
    write(&table, vec![0; content.len()]);
    check("has a damaged reftable");
    std::fs::remove_file(&table).expect("removes");
    check("lacks a table of its reftable");
    write(&table, content);
    let config = std::fs::read(full.join("config")).expect("reads");
    write(&full.join("config"), "");
    check("has a reftable that its config does not name");
    write(&full.join("config"), config);
    assert_eq!(examined(&full), before);
    for is_there in [true, false] {
        write(&list, "");
        if !is_there {
            std::fs::remove_file(&list).expect("removes");
        }
        assert_eq!(state(&full), State::Whole, "git accepts it");
        assert!(examined(&full).is_lost_since(&before));
    }
}

#[test]
fn the_commit_of_head_is_found_in_a_pool() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (pool, fork) = (scratch.path().join("pool.git"), scratch.path().join("fork.git"));
    make_with_git(&pool, "files");
    make_with_git(&fork, "reftable");
    for end in ["pack", "idx"] {
        std::fs::remove_file(pack_file(&fork, end)).expect("removes");
    }
    assert_eq!(state(&fork), State::Damaged("lacks the commit of its HEAD"));
    write(&fork.join("objects/info/alternates"), "../../pool.git/objects\n");
    let id = git(&pool, &["rev-parse", "main"], "").expect("an id");
    git(&fork, &["update-ref", "refs/heads/main", &id], "").expect("works");
    assert_eq!(state(&fork), State::Whole);
}
