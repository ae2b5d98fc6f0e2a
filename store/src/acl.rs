//! Names of users and groups in POSIX ACLs.
//!
//! An ACL refers to users and groups by number. The tree stores their names, too, because another
//! machine may have other numbers for the same names.

use crate::limits;
use minicbor::{Decoder, Encoder, decode};
use std::sync::Arc;

/// Attributes that hold an ACL: of an object, and for new objects in a directory.
const ATTRIBUTES: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// First bytes of an ACL: the version of its encoding.
const VERSION: [u8; 4] = 2_u32.to_le_bytes();
/// Bytes of an ACL entry: tag, permissions and number.
const ACL_ENTRY_BYTES: usize = 8;
/// Tag of an ACL entry for the owner.
const OWNER: u16 = 0x01;
/// Tag of an ACL entry for the owning group.
const OWNING_GROUP: u16 = 0x04;
/// Tag of an ACL entry that limits all but the owner and the others.
const MASK: u16 = 0x10;
/// Tag of an ACL entry for everybody else.
const OTHERS: u16 = 0x20;
/// Tag of an ACL entry for a user other than the owner.
const USER: u16 = 0x02;
/// Tag of an ACL entry for a group other than the owning one.
const GROUP: u16 = 0x08;

/// Tags, each with its letter in a text, and with whether a number follows.
const TAGS: [(u16, &str, bool); 6] = [
    (OWNER, "u", false),
    (USER, "u", true),
    (OWNING_GROUP, "g", false),
    (GROUP, "g", true),
    (MASK, "m", false),
    (OTHERS, "o", false),
];

/// Bytes that a name counts for besides itself: its overhead in memory and in a page.
const NAME_PLACE_BYTES: usize = 16;

/// A user or group, by number. Users precede groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A user.
    User(u32),
    /// A group.
    Group(u32),
}

/// Returns the users and groups in the POSIX ACLs among these attributes, ascending, each once.
///
/// Ignores an ACL with an unknown encoding. To system calls, the largest number means "none".
pub(crate) fn subjects(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<Subject> {
    let acls = xattrs.iter().filter(|(name, _)| ATTRIBUTES.contains(&&name[..]));
    let entries = acls.filter_map(|(_, value)| value.strip_prefix(&VERSION));
    let mut found: Vec<Subject> = entries
        .flat_map(|entries| entries.chunks_exact(ACL_ENTRY_BYTES))
        .filter_map(subject)
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Returns true if a POSIX ACL is among these attributes.
pub(crate) fn is_in(xattrs: &[(Vec<u8>, Vec<u8>)]) -> bool {
    xattrs.iter().any(|(name, _)| ATTRIBUTES.contains(&&name[..]))
}

/// Replaces the numbers of users and groups in the POSIX ACLs among these attributes.
///
/// Joins entries of the same user or group: such a user gets the permissions of all of them. Leaves
/// an ACL with an unknown encoding as it is.
pub(crate) fn map_subjects(
    xattrs: &mut [(Vec<u8>, Vec<u8>)],
    mut number: impl FnMut(Subject) -> u32,
) {
    for (_, value) in xattrs.iter_mut().filter(|(name, _)| ATTRIBUTES.contains(&&name[..])) {
        let Some(entries) = value.strip_prefix(&VERSION) else { continue };
        let (entries, []) = entries.as_chunks::<ACL_ENTRY_BYTES>() else { continue };
        let mut all: Vec<[u8; ACL_ENTRY_BYTES]> = entries.to_vec();
        for entry in &mut all {
            if let Some(subject) = subject(entry) {
                entry[4..].copy_from_slice(&number(subject).to_le_bytes());
            }
        }
        if all == entries {
            continue;
        }
        // Ascending, as libacl demands: tags first.
        let key = |entry: &[u8; ACL_ENTRY_BYTES]| {
            let [tag, tag_high, _, _, id @ ..] = *entry;
            (u16::from_le_bytes([tag, tag_high]), u32::from_le_bytes(id))
        };
        all.sort_by_key(key);
        all.dedup_by(|next, kept| {
            let is_same = key(next) == key(kept);
            if is_same {
                kept[2] |= next[2];
                kept[3] |= next[3];
            }
            is_same
        });
        *value = [&VERSION[..], all.as_flattened()].concat();
    }
}

/// Changes the access ACL among these attributes as chmod(2) does: the bits of the group become the
/// mask, if there is one.
pub(crate) fn set_mode(xattrs: &mut [(Vec<u8>, Vec<u8>)], mode: u32) {
    let access = xattrs.iter_mut().find(|(name, _)| name == ATTRIBUTES[0]);
    let Some(entries) = access
        .and_then(|(_, value)| value.split_at_mut_checked(VERSION.len()))
        .filter(|(version, _)| *version == VERSION)
        .map(|(_, entries)| entries)
    else {
        return;
    };
    let (entries, _) = entries.as_chunks_mut::<ACL_ENTRY_BYTES>();
    let tag = |entry: &[u8; ACL_ENTRY_BYTES]| u16::from_le_bytes([entry[0], entry[1]]);
    let has_mask = entries.iter().any(|entry| tag(entry) == MASK);
    for entry in entries {
        let shift = match tag(entry) {
            OWNER => 6,
            OWNING_GROUP if !has_mask => 3,
            MASK => 3,
            OTHERS => 0,
            _ => continue,
        };
        entry[2] = (mode >> shift & 7) as u8;
    }
}

/// Returns the user or group of one ACL entry. Returns `None` if the entry has no number.
fn subject(entry: &[u8]) -> Option<Subject> {
    let tag = u16::from_le_bytes(entry[..2].try_into().expect("2 of 8 bytes"));
    let id = u32::from_le_bytes(entry[4..].try_into().expect("4 of 8 bytes"));
    match tag {
        _ if id == u32::MAX => None,
        USER => Some(Subject::User(id)),
        GROUP => Some(Subject::Group(id)),
        _ => None,
    }
}

/// Names of the attributes in a file of owner rules, in the order of [`ATTRIBUTES`].
pub(crate) const WORDS: [&str; 2] = ["acl", "default-acl"];

/// Sets the ACL of a word of [`WORDS`] among these attributes, which are in the order of their names.
pub(crate) fn replace(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>, word: usize, value: &[u8]) {
    let attribute = ATTRIBUTES[word];
    match xattrs.binary_search_by(|(name, _)| name[..].cmp(attribute)) {
        Ok(at) => xattrs[at].1 = value.to_vec(),
        Err(at) => xattrs.insert(at, (attribute.to_vec(), value.to_vec())),
    }
}

/// Returns the POSIX ACLs among these attributes as lines of a file of owner rules. Ignores an ACL
/// with an unknown encoding.
pub fn lines(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<String> {
    let line = |(word, attribute): (&str, &[u8])| {
        let (_, value) = xattrs.iter().find(|(name, _)| name == attribute)?;
        Some(format!("{word} {}", to_text(value)?))
    };
    WORDS.into_iter().zip(ATTRIBUTES).filter_map(line).collect()
}

/// Formats an ACL as `setfacl` reads it: `u::rw-,u:7:r--,g::r--,m::rw-,o::r--`. Returns `None` for an
/// unknown encoding.
fn to_text(value: &[u8]) -> Option<String> {
    let (entries, []) = value.strip_prefix(&VERSION)?.as_chunks::<ACL_ENTRY_BYTES>() else {
        return None;
    };
    let text = |entry: &[u8; ACL_ENTRY_BYTES]| {
        let [tag, tag_high, permissions, 0, id @ ..] = *entry else { return None };
        let tag = u16::from_le_bytes([tag, tag_high]);
        let (_, letter, has_id) = TAGS.into_iter().find(|(known, ..)| *known == tag)?;
        let id = if has_id { u32::from_le_bytes(id).to_string() } else { String::new() };
        let bit = |bit: u8, letter: char| if permissions & bit != 0 { letter } else { '-' };
        (permissions <= 7)
            .then(|| format!("{letter}:{id}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x')))
    };
    entries.iter().map(text).collect::<Option<Vec<_>>>().map(|entries| entries.join(","))
}

/// Parses the form of [`lines`]. Returns `None` if it is not an ACL.
pub(crate) fn of_text(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries: Vec<(u16, u32, u8)> = Vec::new();
    for entry in text.split(',') {
        let [letter, id, permissions] = entry.split(':').collect::<Vec<_>>()[..] else {
            return None;
        };
        let is_known =
            |(_, known, has_id): &(u16, &str, bool)| *known == letter && *has_id != id.is_empty();
        let (tag, ..) = TAGS.into_iter().find(is_known)?;
        let id = if id.is_empty() { u32::MAX } else { id.parse().ok()? };
        let [read, write, execute] = *permissions.as_bytes() else { return None };
        let mut bits = 0;
        for (found, letter, bit) in [(read, b'r', 4), (write, b'w', 2), (execute, b'x', 1)] {
            bits |= match found {
                b'-' => 0,
                found if found == letter => bit,
                _ => return None,
            };
        }
        entries.push((tag, id, bits));
    }
    entries.sort_unstable();
    let count = |tag: u16| entries.iter().filter(|(known, ..)| *known == tag).count();
    let is_whole = [OWNER, OWNING_GROUP, OTHERS].into_iter().all(|tag| count(tag) == 1);
    let has_mask = count(MASK) == 1 || count(MASK) == 0 && count(USER) + count(GROUP) == 0;
    let are_distinct = entries.windows(2).all(|two| two[0].0 != two[1].0 || two[0].1 != two[1].1);
    if !is_whole || !has_mask || !are_distinct {
        return None;
    }
    let mut value = VERSION.to_vec();
    for (tag, id, bits) in entries {
        value.extend(tag.to_le_bytes());
        value.extend([bits, 0]);
        value.extend(id.to_le_bytes());
    }
    Some(value)
}

/// Names of users and groups in ACLs. Every name is within the limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AclNames {
    /// Ascending, each user and group once.
    rows: Vec<(Subject, Arc<[u8]>)>,
}

impl AclNames {
    /// Returns the names of the users and groups in the POSIX ACLs among these attributes, as far
    /// as `name` returns them. Returns `None` instead of no names.
    ///
    /// Also returns the number of names that exceed the limits and are skipped.
    pub fn of(
        xattrs: &[(Vec<u8>, Vec<u8>)],
        mut name: impl FnMut(Subject) -> Option<Arc<[u8]>>,
    ) -> (Option<Arc<AclNames>>, usize) {
        let (mut rows, mut bytes, mut skipped) = (Vec::new(), 0, 0);
        for subject in subjects(xattrs) {
            let Some(name) = name(subject) else { continue };
            let with = bytes + name_bytes(&name);
            if is_valid_name(&name) && with <= limits::ACL_NAMES_BYTES_MAX {
                rows.push((subject, name));
                bytes = with;
            } else {
                skipped += 1;
            }
        }
        ((!rows.is_empty()).then(|| Arc::new(AclNames { rows })), skipped)
    }

    /// Returns the names without those of users and groups that are not in these attributes.
    pub(crate) fn within(&self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Option<Arc<AclNames>> {
        if self.rows.is_empty() {
            return None;
        }
        AclNames::of(xattrs, |subject| self.get(subject).cloned()).0
    }

    /// Returns the name of a user or group, if it is known.
    pub fn get(&self, subject: Subject) -> Option<&Arc<[u8]>> {
        let at = self.rows.binary_search_by_key(&subject, |(subject, _)| *subject).ok()?;
        Some(&self.rows[at].1)
    }

    /// Returns all names in ascending order of users, then groups.
    pub fn iter(&self) -> impl Iterator<Item = (Subject, &[u8])> {
        self.rows.iter().map(|(subject, name)| (*subject, &name[..]))
    }

    /// Returns the number of bytes that the names count for.
    pub(crate) fn bytes(&self) -> usize {
        self.iter().map(|(_, name)| name_bytes(name)).sum()
    }

    /// Decodes the table of a page. A malformed row costs only its name. The table ends early where
    /// its rows cannot be separated.
    pub(crate) fn decode(input: &mut Decoder<'_>) -> AclNames {
        let mut names = AclNames::default();
        // The entries are complete without names, so an error must not cost entries.
        let _ = names.read(input);
        names
    }

    fn read(&mut self, input: &mut Decoder<'_>) -> Result<(), decode::Error> {
        let count = input.array()?.filter(|count| *count <= limits::PAGE_NAMES_MAX as u64);
        let count = count.ok_or_else(|| decode::Error::message("it has too many names"))?;
        for _ in 0..count {
            let start = input.position();
            match row(input) {
                Ok(row) => self.add(row),
                Err(_) => {
                    input.set_position(start);
                    input.skip()?;
                }
            }
        }
        Ok(())
    }

    /// Appends a decoded row, unless it is out of order or no user or group can have it.
    fn add(&mut self, (subject, name): (Subject, &[u8])) {
        let ascends = self.rows.last().is_none_or(|(last, _)| *last < subject);
        let (Subject::User(id) | Subject::Group(id)) = subject;
        if ascends && id != u32::MAX && is_valid_name(name) {
            self.rows.push((subject, name.into()));
        }
    }
}

/// Returns the number of bytes that a name counts for.
pub(crate) fn name_bytes(name: &[u8]) -> usize {
    name.len() + NAME_PLACE_BYTES
}

fn is_valid_name(name: &[u8]) -> bool {
    name.len() <= limits::OWNER_NAME_BYTES_MAX
}

/// Appends a row of a page's table.
pub(crate) fn encode_row(
    subject: Subject,
    name: &[u8],
    out: &mut Encoder<&mut Vec<u8>>,
) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
    let (is_group, id) = match subject {
        Subject::User(id) => (false, id),
        Subject::Group(id) => (true, id),
    };
    out.array(3)?.bool(is_group)?.u32(id)?.bytes(name)?;
    Ok(())
}

fn row<'p>(input: &mut Decoder<'p>) -> Result<(Subject, &'p [u8]), decode::Error> {
    if input.array()? != Some(3) {
        return Err(decode::Error::message("a name does not have three fields"));
    }
    let subject = if input.bool()? { Subject::Group } else { Subject::User };
    Ok((subject(input.u32()?), input.bytes()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::{acl, cases, changed, changes, noise};
    use proptest::prelude::*;

    fn xattrs(attribute: &str, value: Vec<u8>) -> Vec<(Vec<u8>, Vec<u8>)> {
        vec![(attribute.into(), value)]
    }

    #[test]
    fn only_named_users_and_groups_of_known_acls_are_found() {
        let some = [Subject::Group(7), Subject::User(9), Subject::User(3), Subject::User(9)];
        let sorted = [Subject::User(3), Subject::User(9), Subject::Group(7)];
        for attribute in ["system.posix_acl_access", "system.posix_acl_default"] {
            assert_eq!(subjects(&xattrs(attribute, acl(&some))), sorted);
        }
        let both = [
            xattrs("system.posix_acl_access", acl(&some)),
            xattrs("system.posix_acl_default", acl(&[Subject::User(3), Subject::User(1)])),
        ];
        assert_eq!(subjects(&both.concat()), [&[Subject::User(1)][..], &sorted].concat());
        assert_eq!(subjects(&xattrs("user.posix_acl_access", acl(&some))), []);
        assert_eq!(subjects(&xattrs("system.nfs4_acl", acl(&some))), []);
        let none = acl(&[Subject::User(u32::MAX), Subject::Group(u32::MAX)]);
        assert_eq!(subjects(&xattrs("system.posix_acl_access", none)), []);
        let mut other = acl(&some);
        other[0] = 3;
        assert_eq!(subjects(&xattrs("system.posix_acl_access", other)), []);
        for len in 0..acl(&some).len() {
            let cut = subjects(&xattrs("system.posix_acl_access", acl(&some)[..len].into()));
            assert!(cut.iter().all(|subject| some.contains(subject)) && cut.len() <= sorted.len());
        }
    }

    #[test]
    fn the_text_of_an_acl_is_read_as_it_was_written() {
        let text = "u::rw-,u:3:rw-,u:7:---,g::r--,g:9:r-x,m::rwx,o::r--";
        let value = of_text(text.as_bytes()).expect("an ACL");
        assert_eq!(to_text(&value).as_deref(), Some(text));
        assert_eq!(
            lines(&xattrs("system.posix_acl_default", value)),
            [format!("default-acl {text}")]
        );
        assert!(of_text(b"u::rwx,g::r-x,o::---").is_some());
        for wrong in [
            "",
            "u::rw-",
            "u::rw-,g::r--,o::r--,o::r--",
            "u::rw-,u:3:r--,g::r--,o::r--",
            "u::rw-,u:3:r--,u:3:rw-,g::r--,m::r--,o::r--",
            "u::wr-,g::r--,o::r--",
            "u::rw-,g::r--,o:1:r--",
            "u::rw-,g::r--,x::r--",
            "u::rw-,u:-1:r--,g::r--,m::r--,o::r--",
        ] {
            assert_eq!(of_text(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(to_text(&acl(&[Subject::User(1)])[..11]), None);
    }

    #[test]
    fn names_beyond_the_limits_are_skipped_and_counted() {
        let ids: Vec<Subject> = (0..8000).map(Subject::User).collect();
        let long = xattrs("system.posix_acl_access", acl(&ids));
        let name = |len: usize| Some(vec![b'n'; len].into());
        let (names, skipped) = AclNames::of(&long, |_| name(limits::OWNER_NAME_BYTES_MAX));
        let names = names.expect("some");
        assert!(names.bytes() <= limits::ACL_NAMES_BYTES_MAX);
        assert!(names.bytes() + 255 + NAME_PLACE_BYTES > limits::ACL_NAMES_BYTES_MAX);
        assert_eq!(names.iter().count() + skipped, 8000);
        let (names, skipped) = AclNames::of(&long, |_| name(limits::OWNER_NAME_BYTES_MAX + 1));
        assert_eq!((names, skipped), (None, 8000));
        assert_eq!(AclNames::of(&long, |_| None), (None, 0));
    }

    proptest! {
        #![proptest_config(cases(200))]

        #[test]
        fn any_bytes_are_a_table_and_any_value_is_an_acl(
            noise in noise(),
            changes in changes(),
            rows in proptest::collection::vec((any::<bool>(), any::<u32>(), noise()), 0..9),
        ) {
            let mut table = Vec::new();
            let mut out = Encoder::new(&mut table);
            out.array(rows.len() as u64).expect("grows");
            for (is_group, id, name) in rows {
                let subject = if is_group { Subject::Group(id) } else { Subject::User(id) };
                encode_row(subject, &name, &mut out).expect("grows");
            }
            for bytes in [noise, changed(table.clone(), &changes), table] {
                let names = AclNames::decode(&mut Decoder::new(&bytes));
                prop_assert!(names.rows.is_sorted_by(|(a, _), (b, _)| a < b));
                prop_assert!(names.iter().all(|(_, name)| is_valid_name(name)));
                let value = [&VERSION[..], &bytes].concat();
                let found = subjects(&xattrs("system.posix_acl_access", value));
                prop_assert!(found.is_sorted_by(|a, b| a < b));
            }
        }
    }
}
