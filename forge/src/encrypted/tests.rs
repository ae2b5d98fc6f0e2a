//! The values come from Ruby's OpenSSL: `values.rb` writes `values.json`.

use super::*;

fn values() -> Value {
    serde_json::from_str(include_str!("values.json")).expect("JSON")
}

/// All values under the names that they have there.
fn encrypted() -> Vec<Encrypted> {
    let values = values();
    let text = |value: &Value| value.as_str().map(String::from);
    let of = |name: &str, form: &dyn Fn(&Value) -> Form| {
        let all = values[name].as_object().expect("an object").iter();
        all.map(|(column, value)| Encrypted { column: column.clone(), form: form(value) })
            .collect::<Vec<_>>()
    };
    let attribute = |value: &Value| Form::Attribute {
        value: text(&value["value"]).expect("a value"),
        iv: text(&value["iv"]).expect("a vector"),
        salt: text(&value["salt"]),
    };
    let token = |value: &Value| Form::Token(text(value).expect("a token"));
    let mut all = of("attributes", &attribute);
    all.extend(of("tokens", &token));
    all.extend(of("records", &|value: &Value| Form::Record(value.clone())));
    all
}

#[test]
fn the_right_keys_decrypt_all_forms() {
    let mut all = encrypted();
    let as_text = all.iter().find_map(|one| match &one.form {
        Form::Record(record) => Some(Form::Record(Value::String(record.to_string()))),
        _ => None,
    });
    let (column, form) = ("records.text".into(), as_text.expect("a record"));
    all.push(Encrypted { column, form });
    let trial = Keys::of(&values()["keys"]).attempt(&all);
    assert_eq!(trial.untried, 0);
    let counts: Vec<_> = trial.keys.iter().map(|(name, of)| (*name, of.count, of.failed)).collect();
    assert_eq!(counts, [(RECORD_KEY, 3, 0), (DB_KEY, 8, 0), (OTP_KEY, 1, 0)]);
    let mut secrets = values()["keys"].clone();
    secrets["secret_key_base"] = "of cookies".into();
    let keys = Keys::of(&secrets);
    assert_eq!(keys.untried(&trial), ["secret_key_base", SEARCHABLE_KEY]);
    // Without the key of records, the one of searchable records opens them.
    secrets[SEARCHABLE_KEY] = std::mem::take(&mut secrets[RECORD_KEY]);
    secrets[RECORD_KEY] = "another".into();
    let keys = Keys::of(&secrets);
    let trial = keys.attempt(&all);
    assert_eq!(trial.keys[SEARCHABLE_KEY].count, 3);
    assert_eq!(keys.untried(&trial), ["secret_key_base", RECORD_KEY]);
}

#[test]
fn any_key_of_a_list_decrypts() {
    let mut keys = values()["keys"].clone();
    for name in [DB_KEY, OTP_KEY] {
        keys[name] = serde_json::json!([keys[name], "newer", ""]);
    }
    // More keys than are tried: the newest count.
    let many = (0..20).map(|at| Value::from(format!("older {at}")));
    let newest = keys_of(&keys[RECORD_KEY]).into_iter().map(|Password(key)| Value::from(key));
    keys[RECORD_KEY] = many.chain(newest).collect();
    let trial = Keys::of(&keys).attempt(&encrypted());
    assert!(trial.keys.values().all(|tried| tried.failed == 0), "{trial:?}");
    assert_eq!(trial.untried, 0);
    keys[DB_KEY] = serde_json::json!(["newer", "newest"]);
    assert!(Keys::of(&keys).attempt(&encrypted()).keys[DB_KEY].is_wrong());
}

#[test]
fn wrong_keys_are_recognised() {
    // One that differs behind its first 32 bytes opens what uses only those.
    let mut keys = values()["keys"].clone();
    keys[DB_KEY] = (keys[DB_KEY].as_str().expect("a key").to_owned() + "0").into();
    let trial = Keys::of(&keys).attempt(&encrypted());
    let tried = &trial.keys[DB_KEY];
    assert_eq!(tried.columns, ["salted", "salted_object"]);
    assert!(!tried.is_wrong());
    for name in [DB_KEY, OTP_KEY, "active_record_encryption_key_derivation_salt"] {
        keys[name] = "another".into();
    }
    let trial = Keys::of(&keys).attempt(&encrypted());
    for (name, tried) in &trial.keys {
        assert_eq!(tried.failed, tried.count, "{name}");
        assert!(tried.is_wrong(), "{name}");
    }
}

#[test]
fn values_of_unknown_form_are_not_tried() {
    let keys = Keys::of(&values()["keys"]);
    let attribute = |value: &str, iv: &str| Form::Attribute {
        value: value.into(),
        iv: iv.into(),
        salt: Some("_not base64!".into()),
    };
    for form in [
        attribute("", ""),
        attribute("AAAA", "AAAA"),
        attribute("\\x00", "\\x0"),
        attribute("AAAAAAAAAAAAAAAAAAAAAA==", "AAAAAAAAAAAAAAAA"),
        Form::Token(String::new()),
        Form::Token("|".into()),
        Form::Token("|éééééééééééé".into()),
        Form::Token("a plain token".into()),
        Form::Record(Value::Null),
        Form::Record("{".into()),
        Form::Record(serde_json::json!({"p": "AAAA", "h": {"iv": "AAAA", "at": "AAAA"}})),
    ] {
        let trial = keys.attempt(&[Encrypted { column: "odd".into(), form }]);
        assert_eq!(trial, Trial { untried: 1, ..Trial::default() });
    }
    // Without a key there is nothing to try.
    let trial = Keys::of(&Value::Null).attempt(&encrypted());
    assert_eq!((trial.untried, trial.keys.len()), (encrypted().len(), 0));
}

#[test]
fn key_bases_are_cut_and_padded_like_in_gitlab() {
    assert_eq!(fitted("short", 8), b"short000");
    assert_eq!(fitted("longer than that", 8), b"longer t");
    assert_eq!(fitted("1234567é", 8), b"12345670");
    assert_eq!(fitted("", 2), b"00");
}
