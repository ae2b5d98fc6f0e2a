//! A tree with everything that a restore must reproduce.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::makedev;

use super::at::join;
use super::build::{Builder, Expected, Time};

/// Most of these ids have no names, and some exceed an `i32`.
const OWNERS: [(&[u8], u32, u32); 6] = [
    (b"daemon", 1, 1),
    (b"first-user", 1000, 1001),
    (b"nameless", 54_321, 12_345),
    (b"large", 4_000_000_000, 4_000_000_001),
    (b"largest", 4_294_967_294, 0),
    (b"group-only", 0, 65_533),
];

const TIMES: [(&[u8], Time); 8] = [
    (b"1901", (-2_147_472_000, 123_456_789)),
    (b"1969-whole-second", (-86_400, 0)),
    (b"1969-last-nanosecond", (-1, 999_999_999)),
    (b"zero", (0, 0)),
    (b"zero-and-a-bit", (0, 1)),
    (b"2038", (2_147_483_648, 1)),
    (b"2106", (4_294_967_296, 999_999_999)),
    (b"2200", (7_258_118_400, 987_654_321)),
];

const MODES: [(&[u8], u32); 12] = [
    (b"0000", 0),
    (b"0001", 0o0001),
    (b"0007", 0o0007),
    (b"0070", 0o0070),
    (b"0400", 0o0400),
    (b"0600", 0o0600),
    (b"0640", 0o0640),
    (b"0755", 0o0755),
    (b"0777", 0o0777),
    (b"setuid", 0o4755),
    (b"setgid", 0o2755),
    (b"all-special", 0o7777),
];

const NAMES: &[&[u8]] = &[
    b"new\nline",
    b"\n",
    b"carriage\rreturn",
    b"tab\there",
    b" ",
    b"   ",
    b" leading",
    b"trailing ",
    b"two  spaces",
    b"-",
    b"--",
    b"-rf",
    b"--help",
    b"...",
    b"..x",
    b".hidden",
    b"dot.",
    b"\"double\"",
    b"'single'",
    b"`id`",
    b"back\\slash",
    b"\\",
    b"\\n",
    b"\\xff",
    b"$HOME",
    b"${HOME}",
    b"a*b?[c]{d,e}",
    b"~",
    b"#",
    b"!",
    b"&;|<>()",
    b"%s%n%00",
    b"host:path",
    b"@",
    b"=",
    b"+",
    b"\xff\xfe",
    b"\xff",
    b"\x80",
    b"latin-\xe9\xe8\xfc",
    b"cut-short-\xe2\x82",
    b"overlong-\xc0\xaf",
    b"surrogate-\xed\xa0\x80",
    b"\x01",
    b"\x1b[31mred\x1b[0m\x07\x08",
    b"\x7f",
    "composed-\u{e9}".as_bytes(),
    "composed-e\u{301}".as_bytes(),
    "\u{301}".as_bytes(),
    "right-to-left-\u{202e}cba".as_bytes(),
    "zero\u{200b}width\u{feff}".as_bytes(),
    "no-break\u{a0}space".as_bytes(),
    "漢字".as_bytes(),
    "\u{1f5c4}\u{fe0f}".as_bytes(),
    b"CASE",
    b"Case",
    b"case",
    b"CON",
    b"nul.txt",
];

/// Builds a tree below the directory `root` with everything that a restore must reproduce. Two
/// builds are equal, to the nanosecond.
///
/// The tree holds:
///
/// - files of many sizes up to 9 MiB; empty and nested directories,
/// - names with all possible bytes; a path of 4,095 bytes,
/// - symbolic and hard links; sparse files up to 1 TiB; FIFOs, sockets and devices,
/// - many modes, owners and modification times, also for `root` itself,
/// - extended attributes, file capabilities and POSIX ACLs.
///
/// Objects that this user may not create, or the file system cannot store, are skipped and listed
/// in the result. With [`has_full_privileges`], on ext4 for example, the list is empty.
///
/// # Errors
///
/// Any other failure, such as a `root` that is not empty.
pub fn build_everything(root: &Path) -> io::Result<Expected> {
    let mut tree = Builder::new(root)?;
    contents(&mut tree)?;
    directories(&mut tree)?;
    names(&mut tree)?;
    long_path(&mut tree)?;
    symlinks(&mut tree)?;
    hard_links(&mut tree)?;
    sparse_files(&mut tree)?;
    specials(&mut tree)?;
    modes(&mut tree)?;
    owners(&mut tree)?;
    times(&mut tree)?;
    xattrs(&mut tree)?;
    capabilities(&mut tree)?;
    acls(&mut tree)?;
    tree.finish()
}

/// Returns true if this process may do everything that `build_everything` does. It must be root,
/// outside any user namespace, with all its capabilities. Root in a container usually lacks some.
pub fn has_full_privileges() -> bool {
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN, MKNOD, SETFCAP.
    const NEEDED: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 21 | 1 << 27 | 1 << 31;
    let own_ids = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_initial = own_ids.split_whitespace().eq(["0", "0", "4294967295"]);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    rustix::process::geteuid().is_root()
        && is_initial
        && effective.is_some_and(|effective| effective & NEEDED == NEEDED)
}

fn contents(tree: &mut Builder) -> io::Result<()> {
    const SIZES: [usize; 10] = [0, 1, 511, 512, 513, 4095, 4096, 65_535, 262_144, 1_048_577];
    tree.dir(b"contents")?;
    for size in SIZES {
        let path = |kind: &str| format!("contents/{kind}-{size}").into_bytes();
        tree.file(&path("random"), &random_bytes(size as u64, size))?;
        tree.file(&path("text"), &text(size as u64, size))?;
    }
    let large = random_bytes(9, 9 * 1_048_576 + 4321);
    tree.file(b"contents/large", &large)?;
    // Mostly the same content, shifted by a few bytes.
    let moved = [b"shift", &large[..2 * 1_048_576]].concat();
    tree.file(b"contents/large-moved", &moved)?;
    tree.file(b"contents/same-as-text", &text(262_144, 262_144))?;
    tree.file(b"contents/zeros", &vec![0; 1_500_000])?;
    tree.file(b"contents/all-ones", &vec![0xff; 100_000])
}

fn directories(tree: &mut Builder) -> io::Result<()> {
    tree.dir(b"directories")?;
    tree.dir(b"directories/empty")?;
    tree.dir(b"directories/nested")?;
    tree.dir(b"directories/nested/empty-too")?;
    tree.dir(b"directories/nested/again")?;
    tree.file(b"directories/nested/again/file", b"nested\n")?;
    tree.dir(b"directories/wide")?;
    for number in 0..300 {
        let path = format!("directories/wide/{number}").into_bytes();
        tree.file(&path, &text(number, 20))?;
    }
    let mut deep = b"directories/deep".to_vec();
    for _ in 0..100 {
        tree.dir(&deep)?;
        deep = join(&deep, b"d");
    }
    tree.file(&deep, b"at the bottom\n")
}

/// Gives each name to a file, a directory and a symbolic link.
fn names(tree: &mut Builder) -> io::Result<()> {
    let every_byte: Vec<u8> = (1..=255).filter(|&byte| byte != b'/').collect();
    let longest = [vec![b'n'; 255], vec![0xff; 255], "é".repeat(127).into_bytes(), every_byte];
    let all = NAMES.iter().copied().chain(longest.iter().map(Vec::as_slice));
    tree.dir(b"names")?;
    for kind in ["files", "directories", "links"] {
        tree.dir(format!("names/{kind}").as_bytes())?;
    }
    for name in all {
        tree.file(&join(b"names/files", name), name)?;
        let dir = join(b"names/directories", name);
        tree.dir(&dir)?;
        tree.file(&join(&dir, name), b"")?;
        tree.symlink(&join(b"names/links", name), name)?;
    }
    Ok(())
}

/// Sixteen names of 255 bytes and the slashes between them make 4,095 bytes, the longest path that
/// one system call accepts.
fn long_path(tree: &mut Builder) -> io::Result<()> {
    const LEVELS: usize = 15;
    let mut dir = Vec::new();
    for level in 1..=LEVELS {
        dir = join(&dir, &long_name(&format!("long-{level:02}-")));
        tree.dir(&dir)?;
    }
    let path = |name: &str| join(&dir, &long_name(name));
    tree.file(&path("file-"), b"a long way down\n")?;
    tree.file(&path("file-with-xattr-"), b"and more\n")?;
    tree.xattr(&path("file-with-xattr-"), b"user.depth", b"16")?;
    tree.symlink(&path("link-"), b"target")?;
    tree.fifo(&path("fifo-"))?;
    tree.dir(&path("empty-"))?;
    tree.hard_link(&path("file-"), b"directories/same-as-long-path")?;
    tree.hard_link(&path("file-"), &path("file-again-"))
}

fn long_name(start: &str) -> Vec<u8> {
    format!("{start:x<255}").into_bytes()
}

fn symlinks(tree: &mut Builder) -> io::Result<()> {
    let long = long_target();
    let targets: [(&[u8], &[u8]); 15] = [
        (b"relative", b"../contents/text-513"),
        (b"absolute", b"/usr/bin/env"),
        (b"dangling", b"no/such/file"),
        (b"to-directory", b"../directories/nested"),
        (b"to-directory-with-slash", b"../directories/nested/"),
        (b"to-itself", b"to-itself"),
        (b"to-dot", b"."),
        (b"to-parent", b".."),
        (b"to-root", b"/"),
        (b"unnormalised", b"..//contents/./../contents/text-1"),
        (b"invalid-utf8", b"\xff\xfe/latin-\xe9"),
        (b"control", b"new\nline\ttab\x01"),
        (b"space", b" "),
        (b"short-of-inline", &long[..59]),
        (b"longest", &long),
    ];
    tree.dir(b"symlinks")?;
    for (name, target) in targets {
        tree.symlink(&join(b"symlinks", name), target)?;
    }
    Ok(())
}

/// Returns 4,095 bytes, the longest possible target.
fn long_target() -> Vec<u8> {
    let mut target = b"to/".repeat(1365);
    target[4094] = b'o';
    target
}

fn hard_links(tree: &mut Builder) -> io::Result<()> {
    for dir in [&b"links"[..], b"links/one", b"links/two", b"links/three"] {
        tree.dir(dir)?;
    }
    tree.file(b"links/one/pair", &random_bytes(77, 300_000))?;
    tree.hard_link(b"links/one/pair", b"links/two/pair")?;
    tree.file(b"links/two/triple", b"three names\n")?;
    tree.xattr(b"links/two/triple", b"user.shared", b"by all")?;
    tree.hard_link(b"links/two/triple", b"links/one/triple")?;
    tree.hard_link(b"links/two/triple", b"links/three/another name")?;
    tree.file(b"links/one/empty", b"")?;
    tree.hard_link(b"links/one/empty", b"links/one/empty-too")?;
    tree.symlink(b"links/one/symlink", b"pair")?;
    tree.hard_link(b"links/one/symlink", b"links/two/symlink")?;
    tree.fifo(b"links/one/fifo")?;
    tree.hard_link(b"links/one/fifo", b"links/three/fifo")?;
    tree.character_device(b"links/two/device", makedev(1, 3))?;
    tree.hard_link(b"links/two/device", b"links/three/device")?;
    // Equal in everything, but not the same file.
    tree.file(b"links/three/twin-a", b"twins\n")?;
    tree.file(b"links/three/twin-b", b"twins\n")?;
    tree.time(b"links/three/twin-a", (1_500_000_000, 5));
    tree.time(b"links/three/twin-b", (1_500_000_000, 5));
    Ok(())
}

fn sparse_files(tree: &mut Builder) -> io::Result<()> {
    const MIB: u64 = 1024 * 1024;
    let piece = |seed: u64, offset, size| (offset, random_bytes(1000 + seed, size));
    tree.dir(b"sparse")?;
    tree.sparse(b"sparse/start", MIB + 131_072, &[piece(1, MIB, 131_072)])?;
    let around = [piece(2, 0, 65_536), piece(3, 65_536 + 2 * MIB, 100_001)];
    tree.sparse(b"sparse/middle", 2 * MIB + 165_537, &around)?;
    tree.sparse(b"sparse/end", 3 * MIB + 1, &[piece(4, 0, 100_000)])?;
    tree.sparse(b"sparse/whole", 64 * MIB, &[])?;
    let islands: Vec<_> = (0..20).map(|number| piece(5 + number, number * 300_007, 5000)).collect();
    tree.sparse(b"sparse/islands", 20 * 300_007, &islands)?;
    let close = [piece(30, 0, 12_288), piece(31, 20_480, 12_288)];
    tree.sparse(b"sparse/small-hole", 32_768, &close)?;
    tree.hard_link(b"sparse/start", b"sparse/start-again")?;
    huge_file(tree)
}

/// One data block in the middle of a file far larger than any disk here.
fn huge_file(tree: &mut Builder) -> io::Result<()> {
    const TIB: u64 = 1 << 40;
    for size in [TIB, TIB / 8, TIB / 64, TIB / 1024] {
        let path = format!("sparse/huge-{size}").into_bytes();
        let middle = (size / 2, random_bytes(99, 4096));
        tree.sparse(&path, size, &[middle])?;
        if tree.has(&path) {
            break;
        }
    }
    Ok(())
}

fn specials(tree: &mut Builder) -> io::Result<()> {
    tree.dir(b"specials")?;
    tree.fifo(b"specials/fifo")?;
    tree.fifo(b"specials/private-fifo")?;
    tree.mode(b"specials/private-fifo", 0o600)?;
    tree.socket(b"specials/socket")?;
    tree.mode(b"specials/socket", 0o777)?;
    tree.character_device(b"specials/null", makedev(1, 3))?;
    tree.mode(b"specials/null", 0o666)?;
    tree.character_device(b"specials/large-number", makedev(4095, 1_048_575))?;
    tree.block_device(b"specials/block", makedev(7, 200))?;
    tree.owner(b"specials/block", 0, 6)?;
    tree.mode(b"specials/block", 0o660)?;
    tree.block_device(b"specials/block-minor-256", makedev(8, 256))
}

fn modes(tree: &mut Builder) -> io::Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    tree.dir(b"modes")?;
    for (name, mode) in MODES {
        let path = join(b"modes", name);
        if mode & 0o400 == 0 && !is_root {
            tree.skip("file", &path, "only root can read what its owner cannot");
            continue;
        }
        tree.file(&path, name)?;
        tree.mode(&path, mode)?;
    }
    tree.dir(b"modes/setgid-directory")?;
    tree.file(b"modes/setgid-directory/file", b"of another group\n")?;
    // It would inherit group and bit from a directory that already has them.
    tree.dir(b"modes/setgid-directory/without")?;
    tree.owner(b"modes/setgid-directory", 0, 1000)?;
    tree.mode(b"modes/setgid-directory", 0o2770)?;
    tree.dir(b"modes/sticky-directory")?;
    tree.mode(b"modes/sticky-directory", 0o1777)?;
    for (name, mode) in [(&b"no-write"[..], 0o555), (b"private", 0o500)] {
        let path = join(b"modes", name);
        tree.dir(&path)?;
        tree.dir(&join(&path, b"inside"))?;
        tree.file(&join(&path, b"file"), b"cannot be removed\n")?;
        tree.mode(&path, mode)?;
    }
    Ok(())
}

/// Gives each owner a file that is setuid and setgid, a directory, a link and a FIFO.
fn owners(tree: &mut Builder) -> io::Result<()> {
    tree.dir(b"owners")?;
    for (name, user, group) in OWNERS {
        let dir = join(b"owners", name);
        let path = |name: &[u8]| join(&dir, name);
        tree.dir(&dir)?;
        tree.file(&path(b"file"), name)?;
        tree.symlink(&path(b"link"), b"file")?;
        tree.fifo(&path(b"fifo"))?;
        for path in [path(b"file"), path(b"link"), path(b"fifo"), dir.clone()] {
            tree.owner(&path, user, group)?;
        }
        // Set last: a change of owner clears these bits.
        tree.mode(&path(b"file"), 0o6755)?;
    }
    Ok(())
}

/// Gives each time to a file of every kind that needs no privileges.
fn times(tree: &mut Builder) -> io::Result<()> {
    tree.dir(b"times")?;
    for (name, time) in TIMES {
        let dir = join(b"times", name);
        let path = |name: &[u8]| join(&dir, name);
        tree.dir(&dir)?;
        tree.file(&path(b"file"), name)?;
        tree.symlink(&path(b"link"), b"file")?;
        tree.fifo(&path(b"fifo"))?;
        tree.socket(&path(b"socket"))?;
        for name in [&b"file"[..], b"link", b"fifo", b"socket"] {
            tree.time(&path(name), time);
        }
        tree.time(&dir, time);
    }
    Ok(())
}

fn xattrs(tree: &mut Builder) -> io::Result<()> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let longest = [b"user.".to_vec(), vec![b'n'; 250]].concat();
    tree.dir(b"xattrs")?;
    tree.file(b"xattrs/file", b"with attributes\n")?;
    tree.dir(b"xattrs/directory")?;
    tree.file(b"xattrs/directory/plain", b"without\n")?;
    for path in [&b"xattrs/file"[..], b"xattrs/directory"] {
        tree.xattr(path, b"user.empty", b"")?;
        tree.xattr(path, b"user.binary", &every_byte)?;
        tree.xattr(path, b"user.text", "Grüße\n".as_bytes())?;
        tree.xattr(path, b"user.trailing-nul", b"value\0")?;
        tree.xattr(path, "user.näme with spaces".as_bytes(), b"1")?;
        tree.xattr(path, b"user.latin-\xe9", b"2")?;
        tree.xattr(path, &longest, b"3")?;
        tree.xattr(path, b"trusted.hidden", b"\0\xff")?;
    }
    tree.file(b"xattrs/large", b"")?;
    tree.xattr(b"xattrs/large", b"user.large", &random_bytes(55, 2800))?;
    tree.file(b"xattrs/many", b"many\n")?;
    for number in 0..30 {
        let (name, value) = (format!("user.number-{number}"), format!("{number}"));
        tree.xattr(b"xattrs/many", name.as_bytes(), value.as_bytes())?;
    }
    // `user.` attributes are for files and directories only.
    tree.symlink(b"xattrs/link", b"file")?;
    tree.xattr(b"xattrs/link", b"trusted.on-link", b"link")?;
    tree.fifo(b"xattrs/fifo")?;
    tree.xattr(b"xattrs/fifo", b"trusted.on-fifo", b"fifo")?;
    tree.file(b"xattrs/read-only", b"read-only\n")?;
    tree.xattr(b"xattrs/read-only", b"user.kept", b"yes")?;
    tree.mode(b"xattrs/read-only", 0o444)
}

/// Creates capabilities last, because a later change of owner or content drops them.
fn capabilities(tree: &mut Builder) -> io::Result<()> {
    const NET_RAW_AND_BIND: u32 = 1 << 13 | 1 << 10;
    tree.dir(b"capabilities")?;
    for (name, user) in [(&b"of-root"[..], 0), (b"of-user", 1000)] {
        let path = join(b"capabilities", name);
        tree.file(&path, b"#!/bin/true\n")?;
        if user != 0 {
            tree.owner(&path, user, user)?;
        }
        tree.mode(&path, 0o755)?;
        let value = capability(NET_RAW_AND_BIND, true);
        tree.xattr(&path, b"security.capability", &value)?;
    }
    Ok(())
}

/// Returns a `security.capability` value of revision 2, with permitted capabilities only.
fn capability(permitted: u32, effective: bool) -> Vec<u8> {
    const REVISION_2: u32 = 0x0200_0000;
    let words = [REVISION_2 | u32::from(effective), permitted, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn acls(tree: &mut Builder) -> io::Result<()> {
    use Acl::{Group, GroupOwner, Mask, Other, Owner, User};
    let named = |owner| {
        acl(&[
            (Owner, owner),
            (User(1000), 4),
            (User(4_000_000_000), 6),
            (GroupOwner, 4),
            (Group(1001), 5),
            (Mask, 7),
            (Other, 0),
        ])
    };
    // A directory is useless to an owner who may not search it.
    let (named, named_searchable) = (named(6), named(7));
    // Here the mask, shown as the group's mode bits, differs from the group's permissions.
    let masked = acl(&[(Owner, 7), (User(2), 7), (GroupOwner, 5), (Mask, 1), (Other, 4)]);
    let minimal = acl(&[(Owner, 7), (GroupOwner, 5), (Other, 0)]);
    tree.dir(b"acls")?;
    for (name, value) in [(&b"named"[..], &named), (b"masked", &masked)] {
        let path = join(b"acls", name);
        tree.file(&path, name)?;
        tree.xattr(&path, ACCESS, value)?;
    }
    let directories = [
        ("access-only", Some(&masked), None),
        ("default-only", None, Some(&named_searchable)),
        ("minimal-default", None, Some(&minimal)),
        ("both", Some(&named_searchable), Some(&masked)),
    ];
    for (name, access, default) in directories {
        let dir = join(b"acls", name.as_bytes());
        tree.dir(&dir)?;
        // Created before the default ACL is set, so it does not inherit the ACL.
        tree.file(&join(&dir, b"plain"), b"no ACL\n")?;
        tree.dir(&join(&dir, b"plain-directory"))?;
        if let Some(access) = access {
            tree.xattr(&dir, ACCESS, access)?;
        }
        if let Some(default) = default {
            tree.xattr(&dir, DEFAULT, default)?;
        }
    }
    Ok(())
}

/// Attribute that holds the ACL of a file.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Attribute that holds the ACL for new files in a directory.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Subject of an ACL entry.
#[derive(Clone, Copy)]
pub enum Acl {
    Owner,
    User(u32),
    GroupOwner,
    Group(u32),
    Mask,
    Other,
}

/// Encodes an ACL for the kernel. The entries must be in the order of `Acl`.
pub fn acl(entries: &[(Acl, u16)]) -> Vec<u8> {
    const VERSION: u32 = 2;
    const NO_ID: u32 = u32::MAX;
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (whom, permissions) in entries {
        let (tag, id) = match *whom {
            Acl::Owner => (0x01_u16, NO_ID),
            Acl::User(id) => (0x02, id),
            Acl::GroupOwner => (0x04, NO_ID),
            Acl::Group(id) => (0x08, id),
            Acl::Mask => (0x10, NO_ID),
            Acl::Other => (0x20, NO_ID),
        };
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Pseudorandom numbers that are always the same for the same seed (SplitMix64).
struct Numbers(u64);

impl Iterator for Numbers {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(number ^ (number >> 31))
    }
}

/// Returns incompressible bytes.
pub(super) fn random_bytes(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        Numbers(seed).take(size.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(size);
    bytes
}

/// Returns lines of words, which compress well.
fn text(seed: u64, size: usize) -> Vec<u8> {
    const WORDS: [&str; 8] =
        ["anvil ", "bellows ", "coal ", "hammer ", "iron ", "quench ", "tongs ", "vice\n"];
    let mut bytes = Vec::with_capacity(size + 8);
    for number in Numbers(seed) {
        if bytes.len() >= size {
            break;
        }
        bytes.extend(WORDS[number as usize % WORDS.len()].bytes());
    }
    bytes.truncate(size);
    bytes
}
