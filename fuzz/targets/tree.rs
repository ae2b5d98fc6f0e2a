//! Tree pages and their entries: up to 16 pages, each after its length of two bytes. The first page
//! is the root. The first byte of an id is the number of its page.
#![no_main]

use libfuzzer_sys::fuzz_target;
use store::acl::AclNames;
use store::entry::{is_valid_path, is_within, path_cmp};
use store::id::ChunkId;
use store::tree::{TreeReader, outline, totals};

fn pages(mut input: &[u8]) -> Vec<&[u8]> {
    let mut pages = Vec::new();
    while let Some((len, rest)) = input.split_first_chunk() {
        let (page, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*len).into()));
        pages.push(page);
        input = rest;
    }
    pages.truncate(16);
    pages
}

fuzz_target!(|input: &[u8]| {
    let pages = pages(input);
    if pages.is_empty() {
        return;
    }
    let get = |id: &ChunkId| Ok(pages[usize::from(id.as_bytes()[0]) % pages.len()].to_vec());
    let root = ChunkId::from_bytes([0; 32]);
    for within in [&b""[..], b"a", b"tmp/forgekeep-golden/source/repo"] {
        let mut last = Vec::new();
        for entry in TreeReader::within(&root, within, &get).flatten() {
            assert!(is_valid_path(&entry.path) && is_within(&entry.path, within));
            assert!(last.is_empty() || path_cmp(&last, &entry.path).is_lt());
            let name = |subject| entry.acl_names.as_ref()?.get(subject).cloned();
            assert_eq!(AclNames::of(&entry.xattrs, name), (entry.acl_names.clone(), 0));
            last = entry.path;
        }
    }
    outline(&root, &get, &|_| false, &mut |_| {});
    let _ = totals(&root, &get);
});
