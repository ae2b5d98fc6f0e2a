//! The reference of `--json`, generated from the types of its lines. `docs/json.md` is this text; a
//! test compares them, and others compare printed lines with its schema.

use crate::json::LINES;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::fmt::Write;

const INTRODUCTION: &str = "\
# Lines of `--json`

Generated from the program's types by `forgekeep reference json > docs/json.md`.

With `--json`, every command prints one JSON object a line on standard output.
`message_type` and the command identify the line.
The line of the result, if a command has one, comes last; `exit_error` takes its place after a failure.

**Stability.**
Within a major version of the program, no field goes, changes its meaning or changes its type.
New fields and new values of `message_type` may come: skip what you do not know.
`version` in the record of a run and in the manifest of an instance grows when that promise must be broken.
Texts for people may change at any time; compare codes, numbers and names instead.
Times are RFC 3339 in UTC, sizes are bytes.
";

/// Returns the reference as Markdown.
pub fn markdown() -> String {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let lines: Vec<(&str, &str, Value)> = LINES
        .iter()
        .map(|(commands, name, schema)| (*commands, *name, schema(&mut generator).to_value()))
        .collect();
    let types = generator.take_definitions(true);
    let mut out = INTRODUCTION.to_owned();
    let mut described: Vec<&str> = Vec::new();
    for (commands, name, schema) in &lines {
        let _ = write!(out, "\n## {commands}: `{name}`\n\n");
        let id = target(schema).unwrap_or_default();
        described.push(id);
        describe(&mut out, types.get(id).unwrap_or(schema));
    }
    out += "\n## Types of fields\n";
    for (name, schema) in types.iter().filter(|(name, _)| !described.contains(&name.as_str())) {
        let _ = write!(out, "\n### {name}\n\n");
        describe(&mut out, schema);
    }
    let any: Vec<Value> = lines
        .iter()
        .map(|(_, name, schema)| {
            let mut line = schema.clone();
            line["properties"] = json!({"message_type": {"const": name}});
            line["required"] = json!(["message_type"]);
            line
        })
        .collect();
    out += "\n## JSON Schema\n\nThe same for programs (draft 2020-12).\n\n```json\n";
    let _ = writeln!(out, "{}", by_lines(&any, &types));
    out += "```\n";
    out
}

/// Formats the schema with one type a line.
fn by_lines(any: &[Value], types: &Map<String, Value>) -> String {
    let any: Vec<String> = any.iter().map(|line| format!("  {line}")).collect();
    let types: Vec<String> =
        types.iter().map(|(name, schema)| format!("  {}: {schema}", json!(name))).collect();
    format!("{{\"anyOf\": [\n{}\n], \"$defs\": {{\n{}\n}}}}", any.join(",\n"), types.join(",\n"))
}

/// Writes description and fields of a type.
fn describe(out: &mut String, schema: &Value) {
    if let Some(text) = schema["description"].as_str() {
        let _ = writeln!(out, "{}", one_line(text));
    }
    let variants = schema["oneOf"].as_array().into_iter().flatten();
    for variant in variants {
        let text = variant["description"].as_str().unwrap_or_default();
        let _ =
            writeln!(out, "- `{}`: {}", variant["const"].as_str().unwrap_or("?"), one_line(text));
    }
    for variant in schema["anyOf"].as_array().into_iter().flatten() {
        out.push('\n');
        describe(out, variant);
    }
    let Some(fields) = schema["properties"].as_object() else { return };
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    out.push_str("\n| field | type | meaning |\n| --- | --- | --- |\n");
    for (name, field) in fields {
        let text = one_line(field["description"].as_str().unwrap_or_default());
        let presence = if required.contains(&&name[..]) { "" } else { ", optional" };
        let kind = kind(field).replace('|', "\\|");
        let _ = writeln!(out, "| `{name}` | {kind}{presence} | {} |", text.replace('|', "\\|"));
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace("[`", "`")
        .replace("`]", "`")
        .replace("`None`", "null")
}

/// Returns the name of the type to which a schema refers.
fn target(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.strip_prefix("#/$defs/")
}

/// Names the type of a field.
fn kind(schema: &Value) -> String {
    if let Some(name) = target(schema) {
        return name.to_owned();
    }
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    let of = |name: &str| match name {
        "array" if schema["items"].is_object() => format!("array of {}", kind(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("object of {}", kind(&schema["additionalProperties"]))
        }
        name => name.to_owned(),
    };
    match &schema["type"] {
        Value::String(name) => of(name),
        Value::Array(names) => {
            names.iter().filter_map(Value::as_str).map(of).collect::<Vec<_>>().join(" or ")
        }
        _ => "any".to_owned(),
    }
}
