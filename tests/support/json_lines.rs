//! Compares lines of `--json` with their schema in `docs/json.md`.

use jsonschema::Validator;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// A documented line: its validator and the names of its fields.
struct Line {
    validator: Validator,
    fields: BTreeSet<String>,
}

/// Lines by message type.
static LINES: LazyLock<BTreeMap<String, Vec<Line>>> = LazyLock::new(|| {
    let document = include_str!("../../docs/json.md");
    let schema = document.split("```json\n").nth(1).expect("a schema");
    let schema = schema.split("```").next().expect("a schema");
    let schema: Value = serde_json::from_str(schema).expect("a schema in JSON");
    let mut lines = BTreeMap::<String, Vec<Line>>::new();
    for line in schema["anyOf"].as_array().expect("lines") {
        let name = line["properties"]["message_type"]["const"].as_str().expect("a type");
        let mut whole = line.clone();
        whole["$defs"] = schema["$defs"].clone();
        let validator = jsonschema::validator_for(&whole).expect("a valid schema");
        let target = line["$ref"].as_str().and_then(|at| at.strip_prefix("#/$defs/"));
        let of_type = &schema["$defs"][target.expect("a type")]["properties"];
        let fields = of_type.as_object().into_iter().flatten().map(|(name, _)| name.clone());
        let fields = fields.chain(["message_type".to_owned()]).collect();
        lines.entry(name.to_owned()).or_default().push(Line { validator, fields });
    }
    lines
});

/// Returns why a line does not follow the documentation; `None` if it does.
pub fn fault(line: &Value) -> Option<String> {
    let name = line["message_type"].as_str()?;
    let Some(candidates) = LINES.get(name) else {
        return Some(format!("message type {name} is not in docs/json.md"));
    };
    let mut faults = Vec::new();
    for candidate in candidates {
        let unknown: Vec<_> = line
            .as_object()
            .into_iter()
            .flatten()
            .map(|(field, _)| field)
            .filter(|field| !candidate.fields.contains(*field))
            .collect();
        if !unknown.is_empty() {
            faults.push(format!("fields that docs/json.md does not have: {unknown:?}"));
        } else if let Err(error) = candidate.validator.validate(line) {
            faults.push(format!("{}: {error}", error.instance_path()));
        } else {
            return None;
        }
    }
    Some(faults.join("; or "))
}

#[test]
fn faulty_lines_are_recognised() {
    let good = json!({"message_type": "written", "path": "/etc/cron.d/x"});
    assert_eq!(fault(&good), None);
    for bad in [
        json!({"message_type": "pigeon"}),
        json!({"message_type": "written"}),
        json!({"message_type": "written", "path": 7}),
        json!({"message_type": "written", "path": "/x", "undocumented": true}),
    ] {
        assert!(fault(&bad).is_some(), "{bad}");
    }
}
