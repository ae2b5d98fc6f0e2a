use super::*;
use crate::acl::AclNames;
use crate::arbitrary::{acl, cases};
use crate::entry::HardLink;
use proptest::prelude::*;

/// Accounts of another machine. Groups have the numbers of users of the same name, plus 1000.
#[derive(Debug)]
struct Passwd(&'static [(&'static str, u32)]);

impl Accounts for Passwd {
    fn number(&self, class: Class, name: &[u8]) -> Result<Option<u32>, LookupError> {
        if name == b"unreachable" {
            let (name, reason) = ("unreachable".into(), nix::Error::ETIMEDOUT);
            return Err(LookupError { class, name, reason });
        }
        let found = self.0.iter().find(|(known, _)| known.as_bytes() == name);
        Ok(found.map(|(_, number)| number + if class == Class::Group { 1000 } else { 0 }))
    }

    fn name(&self, class: Class, number: u32) -> Option<Vec<u8>> {
        let number = number.checked_sub(if class == Class::Group { 1000 } else { 0 })?;
        let found = self.0.iter().find(|(_, known)| *known == number);
        found.map(|(name, _)| name.as_bytes().to_vec())
    }
}

const HERE: Passwd = Passwd(&[("root", 0), ("git", 500), ("forge", 501), ("nobody", 65_534)]);

fn map(unmatched: Unmatched) -> OwnerMap {
    OwnerMap::new(unmatched, Box::new(HERE))
}

fn entry(path: &str, uid: u32, user: Option<&str>, gid: u32, group: Option<&str>) -> Entry {
    let name = |name: Option<&str>| name.map(|name| name.as_bytes().to_vec());
    let owner = Arc::new(Owner { uid, gid, user: name(user), group: name(group) });
    Entry { owner, ..Entry::new(path.into(), EntryKind::File, 0o644) }
}

fn owner_after(map: &OwnerMap, mut entry: Entry) -> (u32, u32) {
    map.apply(&mut entry);
    (entry.owner.uid, entry.owner.gid)
}

#[test]
fn rules_of_a_list_match_names_numbers_ranges_and_nameless_ids() {
    let mut map = map(Unmatched::ByNumber);
    let users = b"git:forge,998:1000,100000-165535:+7,:nobody,web-*:33,root:0";
    map.add_list("--usermap", Class::User, users).expect("rules");
    map.add_list("--groupmap", Class::Group, b"*:git").expect("rules");
    for (uid, user, expected) in [
        (998, Some("git"), 501),
        (998, Some("other"), 1000),
        (100_000, Some("a"), 7),
        (165_535, None, 65_542),
        (165_536, None, 65_534),
        (12, Some("web-2"), 33),
        (12, Some("my-web-2"), 12),
        (0, Some("root"), 0),
    ] {
        let found = owner_after(&map, entry("a", uid, user, 5, None));
        assert_eq!(found, (expected, 1500), "{uid} {user:?}");
    }
    let usage = map.usage();
    let counts: Vec<u64> = usage.rules.iter().map(|rule| rule.entries).collect();
    assert_eq!(counts, [1, 1, 2, 1, 1, 1, 8]);
    assert_eq!(usage.rules[2].rule, "user 100000-165535 -> +7");
    assert_eq!(usage.rules[6].samples, ["/a", "/a", "/a"]);
    assert!(usage.disagreements.is_empty());
}

#[test]
fn sections_of_a_file_apply_below_their_paths() {
    let mut map = map(Unmatched::ByNumber);
    let text = b"# all\nuser 7 -> 70\n[path \"registry/**\"]\nuser registry -> 1000\n\
        group * -> git\nmode D+s,o-rwx\n\n[path \"/srv/a \"b\"\"]\nmode F0600\nuser  *->git/1\n";
    map.add_file("rules", text).expect("rules");
    map.add_owner("--chown", b":nobody").expect("an owner");
    map.add_mode("--chmod", b"g-r").expect("changes");
    let cases = [
        ("srv/registry/x", 6, Some("registry"), (1000, 1500), 0o640),
        ("srv/registry/x/y", 6, Some("other"), (6, 1500), 0o640),
        ("srv/registry", 6, Some("registry"), (6, 66_534), 0o604),
        ("srv/a \"b\"/c", 7, None, (70, 66_534), 0o600),
        ("srv/a \"b\"/d", 8, None, (500, 66_534), 0o600),
        ("srv/registry/z", 6, Some("registry"), (1000, 1500), 0o640),
    ];
    for (path, uid, user, expected, mode) in cases {
        let mut entry = entry(path, uid, user, 5, None);
        map.apply(&mut entry);
        assert_eq!(((entry.owner.uid, entry.owner.gid), entry.mode), (expected, mode), "{path}");
    }
    let mut dir = Entry::new(b"srv/registry/d".to_vec(), EntryKind::Directory, 0o755);
    map.apply(&mut dir);
    assert_eq!(dir.mode, 0o6750);
    assert_eq!(map.usage().rules[1].source, "rules:4");
}

#[test]
fn exact_sections_do_not_apply_below_their_paths() {
    let mut map = map(Unmatched::ByNumber);
    map.add_file("f", b"[exact \"/a\"]\nuser * -> 3\n[path \"/a\"]\nuser * -> 4\n").expect("rules");
    // In any order.
    let found = ["a", "a/b", "a/b/c", "a/b", "a", "b", "a"];
    let found = found.map(|path| owner_after(&map, entry(path, 1, None, 1, None)).0);
    assert_eq!(found, [3, 4, 4, 4, 3, 1, 3]);
}

#[test]
fn a_rule_may_name_the_default() {
    let mut map = map(Unmatched::ByName);
    let text = b"[path \"/a/b\"]\nuser * -> *\ngroup www -> gone/*\n[path \"/a\"]\nuser * -> 7\n\
        group * -> 8\n";
    map.add_file("f", text).expect("rules");
    let owner = |path, user, group| owner_after(&map, entry(path, 998, Some(user), 9, Some(group)));
    assert_eq!(owner("a/x", "git", "git"), (7, 8));
    assert_eq!(owner("a/b/x", "git", "git"), (500, 8));
    assert_eq!(owner("a/b/x", "gone", "www"), (998, 9));
    assert_eq!(map.usage().disagreements[0].entries, 1);
    assert_eq!(map.usage().rules[0].entries, 2);
}

#[test]
fn names_count_where_they_exist_and_disagreements_are_counted() {
    let map = map(Unmatched::ByName);
    assert_eq!(owner_after(&map, entry("a", 998, Some("git"), 998, Some("git"))), (500, 1500));
    assert_eq!(owner_after(&map, entry("b", 998, Some("gone"), 7, None)), (998, 7));
    assert_eq!(owner_after(&map, entry("c", 998, Some("git"), 0, None)), (500, 0));
    assert_eq!(owner_after(&map, entry("d", 500, Some("www"), 0, None)), (500, 0));
    assert_eq!(owner_after(&map, entry("e", 9, Some("unreachable"), 0, None)), (9, 0));
    let usage = map.usage();
    assert_eq!(usage.failed_lookups.len(), 1);
    let row = |of: &Disagreement| (of.name.clone(), of.number, of.set, of.entries);
    let all: Vec<_> = usage.disagreements.iter().map(row).collect();
    let expected = [("git", 998, 500, 2), ("git", 998, 1500, 1), ("www", 500, 500, 1)];
    assert_eq!(all, expected.map(|(name, number, set, n)| (name.to_owned(), number, set, n)));
    assert_eq!(usage.disagreements[2].name_here.as_deref(), Some("git"));
}

#[test]
fn the_owner_in_the_target_can_stay() {
    let map = map(Unmatched::Unchanged);
    assert_eq!(owner_after(&map, entry("a", 9, Some("git"), 9, None)), (UNCHANGED, UNCHANGED));
}

#[test]
fn unknown_targets_and_malformed_rules_are_refused() {
    let refused = |list: &str| {
        let added = map(Unmatched::ByName).add_list("--usermap", Class::User, list.as_bytes());
        added.expect_err("refused").to_string()
    };
    for (list, expected) in [
        ("git:gone", "--usermap: user git -> gone: user gone does not exist on this machine"),
        ("git:gone/gone2", "does not exist"),
        ("git", "FROM:TO"),
        ("git:", "it has no target"),
        ("9-5:1", "ends before it begins"),
        ("git:+5", "a range LOW-HIGH"),
        ("1-9:+4294967290", "the moved range exceeds"),
        ("4294967295:1", "exceeds the largest number"),
        ("1:4294967295", "exceeds the largest number"),
        ("5:git,,7:git", "FROM:TO"),
        ("a*[:1", "bad pattern"),
    ] {
        let found = refused(list);
        assert!(found.contains(expected), "{list}: {found}");
    }
    let mut known = map(Unmatched::ByName);
    known
        .add_list("--usermap", Class::User, b"git:gone/502,*:git/gone")
        .expect("has a second choice");
    assert_eq!(owner_after(&known, entry("a", 9, Some("git"), 9, None)), (502, 9));
    for text in ["user git", "users a -> b", "[registry]", "[path x]", "mode", "mode x", "user -> "]
    {
        let failed = map(Unmatched::ByName).add_file("f", text.as_bytes());
        assert!(failed.is_err_and(|error| error.to_string().starts_with("f:1: ")), "{text}");
    }
    assert!(map(Unmatched::ByName).add_owner("--chown", b":").is_err());
}

#[test]
fn access_lists_follow_the_rules_and_stay_sorted() {
    let mut map = map(Unmatched::ByName);
    map.add_list("--usermap", Class::User, b"8:3,9:3").expect("rules");
    let subjects = [Subject::User(7), Subject::User(8), Subject::User(9), Subject::Group(4)];
    let value = acl(&subjects);
    let (acl_names, _) =
        AclNames::of(&[(b"system.posix_acl_access".to_vec(), value.clone())], |subject| {
            (subject == Subject::User(7)).then(|| Arc::from(&b"git"[..]))
        });
    let xattrs = vec![
        (b"system.posix_acl_access".to_vec(), value.clone()),
        (b"system.posix_acl_default".to_vec(), value),
        (b"user.a".to_vec(), b"1".to_vec()),
    ];
    let mut entry = Entry { xattrs, acl_names, ..entry("a", 1, None, 1, None) };
    map.apply(&mut entry);
    assert_eq!(
        acl::subjects(&entry.xattrs[..1]),
        [Subject::User(3), Subject::User(500), Subject::Group(4)]
    );
    assert_eq!(entry.xattrs[0].1, entry.xattrs[1].1);
    // Two users became one.
    let joined = entry.xattrs[0].1.len();
    assert_eq!(joined, acl(&subjects).len() - 8);
    let mut numbers = entry.xattrs[0].1[4..].chunks(8).map(|entry| entry.to_vec());
    assert!(numbers.all(|entry| entry.len() == 8));
}

#[test]
fn all_names_of_a_file_get_the_owner_of_the_first() {
    let mut map = map(Unmatched::ByNumber);
    map.add_file("f", b"[path \"/a\"]\nuser * -> 3\n[path \"/b\"]\nuser * -> 4\n").expect("rules");
    let link = Some(HardLink { file_system: 1, names: 2 });
    let name = |path| Entry { hard_link: link, inode: 5, ..entry(path, 1, None, 1, None) };
    assert_eq!(owner_after(&map, name("a/x")), (3, 1));
    assert_eq!(owner_after(&map, name("b/x")), (3, 1));
    assert_eq!(owner_after(&map, entry("b/y", 1, None, 1, None)), (4, 1));
}

/// A rule, as text and as the numbers and names that it matches.
fn rule() -> impl Strategy<Value = (String, u32)> {
    let from = prop_oneof![
        Just("*".to_owned()),
        Just(String::new()),
        (0..4u32).prop_map(|number| number.to_string()),
        (0..3u32, 0..3u32).prop_map(|(low, more)| format!("{low}-{}", low + more)),
        Just("n1".to_owned()),
        Just("n*".to_owned()),
    ];
    (from, 100..110u32)
}

/// The same rules, written as simply as possible.
fn plainly(rules: &[(String, u32)], number: u32, name: Option<&str>) -> Option<u32> {
    let is_match = |from: &str| match from {
        "*" => true,
        "" => name.is_none(),
        "n*" => name.is_some_and(|name| name.starts_with('n')),
        "n1" => name == Some("n1"),
        numbers => match numbers.split_once('-') {
            Some((low, high)) => {
                low.parse::<u32>().expect("a number") <= number
                    && number <= high.parse::<u32>().expect("a number")
            }
            None => numbers.parse::<u32>().expect("a number") == number,
        },
    };
    rules.iter().find(|(from, _)| is_match(from)).map(|(_, to)| *to)
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn a_map_does_what_its_rules_say_one_by_one(
        sections in prop::collection::vec(
            (prop_oneof![Just(None), "[ab](/[ab]){0,2}".prop_map(Some)], prop::collection::vec(rule(), 1..4)),
            0..6,
        ),
        paths in prop::collection::btree_set("[abc](/[abc]){0,3}", 1..12),
        owners in prop::collection::vec((0..6u32, prop::option::of("[nm][12]")), 12),
    ) {
        let mut map = map(Unmatched::ByNumber);
        for (path, rules) in &sections {
            let section = path.as_ref().map_or(String::new(), |path| format!("[path \"/{path}\"]\n"));
            let rules = rules.iter().map(|(from, to)| format!("user {from} -> {to}\n"));
            map.add_file("f", (section + &rules.collect::<String>()).as_bytes()).expect("rules");
        }
        let mut sorted: Vec<&String> = paths.iter().collect();
        sorted.sort_by(|a, b| crate::entry::path_cmp(a.as_bytes(), b.as_bytes()));
        for (path, (uid, name)) in sorted.iter().zip(&owners) {
            let name = name.as_deref();
            let covers = |section: &Option<String>| {
                section.as_ref().is_none_or(|top| is_within(path.as_bytes(), top.as_bytes()))
            };
            let mut rules = sections.iter().filter(|(section, _)| covers(section));
            let expected = rules.find_map(|(_, rules)| plainly(rules, *uid, name)).unwrap_or(*uid);
            let found = owner_after(&map, entry(path, *uid, name, 5, None));
            prop_assert_eq!(found, (expected, 5), "{} {} {:?}", path, uid, name);
        }
    }
}
