//! `store.json`, unchanged and with a matching hash.
#![no_main]

use libfuzzer_sys::fuzz_target;
use store::config::Config;

fuzz_target!(|body: &[u8]| {
    let _ = Config::from_bytes(body);
    let member = format!(",\n  \"blake3\": \"{}\"\n}}\n", blake3::hash(body));
    if let Ok(config) = Config::from_bytes(&[body, member.as_bytes()].concat()) {
        chunker::Cutter::new(config.parameters()).expect("sizes were checked");
        config.store_id_bytes().expect("the id was checked");
        assert_eq!(Config::from_bytes(&config.to_bytes()).expect("reads what it wrote"), config);
    }
});
