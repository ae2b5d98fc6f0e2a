//! Snapshot records: the file unchanged, and the bytes as a record under a matching id.
#![no_main]

use libfuzzer_sys::fuzz_target;
use store::backend::Memory;
use store::codec::Codec;
use store::id::SnapshotId;
use store::snapshot::{Snapshot, VERSION, file_name};

const CODEC: Codec = Codec::new(1);

fn read(id: &SnapshotId, file: &[u8]) -> Option<(Snapshot, bool)> {
    let memory = Memory::default();
    memory.with_files(|files| files.insert(file_name(id), file.to_vec()));
    Snapshot::read(&memory, CODEC, id).ok()
}

fuzz_target!(|record: &[u8]| {
    let id = SnapshotId::of(record);
    let _ = read(&id, record);
    let mut frame = Vec::new();
    CODEC.encode(record, &mut frame);
    let Some((snapshot, is_whole)) = read(&id, &frame.repeat(2)) else { return };
    assert!(is_whole && snapshot.version == VERSION);
    let memory = Memory::default();
    let id = snapshot.write(&memory, CODEC).expect("writes");
    assert_eq!(Snapshot::read(&memory, CODEC, &id).expect("reads what it wrote"), (snapshot, true));
});
