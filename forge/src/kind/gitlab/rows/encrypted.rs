//! Some encrypted values of a database, found by the names of their columns: versions differ.

use crate::catalogue::Catalogue;
use crate::encrypted::{Encrypted, Form};
use crate::error::Result;
use crate::service::postgres::Connection;
use serde::Deserialize;
use serde_json::Value;

/// Name of the queries in errors.
pub const ENCRYPTED: &str = "encrypted values";

/// Rows from each end of a table among which values are looked for.
const ROWS: usize = 500;
/// Values from each end of a column.
const EACH: usize = 2;
/// Values of a database; each costs a decryption.
const VALUES: usize = 60;
/// Values of a table, so that other tables and their keys have their turn.
const OF_TABLE: usize = 20;
/// Bytes of a value.
const BYTES: usize = 64 << 10;

/// A table and its columns by the role of each.
#[derive(Deserialize)]
struct Table {
    name: String,
    columns: Vec<String>,
    /// Columns of JSON that are named like secrets.
    json: Vec<String>,
}

#[derive(Deserialize)]
struct Row {
    value: Value,
    iv: Option<String>,
    salt: Option<String>,
}

/// Asks for the newest and the oldest values of each column.
pub fn ask(database: &mut Connection<'_>, catalogue: &mut Catalogue) -> Result<()> {
    // Only what is found by name alone, and has rows with numbers. Settings come first, because
    // every instance has them. Users and columns of JSON have values of other keys.
    let query = "select name, columns, json from (\
                   select c.relname::text as name, \
                     array_agg(a.attname::text order by a.attnum) as columns, \
                     coalesce(array_agg(a.attname::text order by a.attnum) filter (where \
                       a.atttypid = 'jsonb'::regtype and \
                       a.attname ~ '(secret|token|key|password|credential)'), '{}') as json \
                   from pg_class c join pg_attribute a on a.attrelid = c.oid \
                   where c.relkind in ('r', 'p') and pg_table_is_visible(c.oid) \
                     and c.relnamespace <> 'pg_catalog'::regnamespace \
                     and a.attnum > 0 and not a.attisdropped group by c.relname) tables \
                 where 'id' = any(columns) and (json <> '{}' or exists (\
                   select from unnest(columns) name where name ~ '^encrypted_.*_iv$' or name ~ '_encrypted$')) \
                 order by name <> 'application_settings', name <> 'users', json = '{}', name";
    let first = catalogue.encrypted.len();
    for table in catalogue.ask::<Table>(ENCRYPTED, database, query)? {
        if database.hides(&table.name) {
            continue;
        }
        let of_table = catalogue.encrypted.len();
        for column in &table.columns {
            let asked = catalogue.encrypted.len();
            let left = VALUES.saturating_sub(asked - first);
            if left == 0 {
                return Ok(());
            }
            let left = left.min(OF_TABLE.saturating_sub(asked - of_table));
            if left == 0 {
                break;
            }
            let has = |end: &str| table.columns.contains(&format!("{column}{end}"));
            let is_attribute = column.starts_with("encrypted_") && has("_iv");
            let is_record = table.json.contains(column);
            if !is_attribute && !is_record && !column.ends_with("_encrypted") {
                continue;
            }
            let own = quoted(column);
            let other = |end: &str, is_there: bool| {
                let name = quoted(&format!("{column}{end}"));
                if is_there { format!("{name}::text") } else { "null".into() }
            };
            let (iv, salt) = (other("_iv", is_attribute), other("_salt", has("_salt")));
            let value = if is_record { own.clone() } else { format!("{own}::text") };
            let ends = ["desc", "asc"].map(|order| {
                format!(
                    "(select id, {value} as value, {iv} as iv, {salt} as salt from \
                     (select * from {} order by id {order} limit {ROWS}) t where {own} is not null \
                     and length({own}::text) between 1 and {BYTES} limit {EACH})",
                    quoted(&table.name)
                )
            });
            // The same row may be at both ends.
            let query = format!(
                "select distinct on (id) value, iv, salt from ({}) t",
                ends.join(" union all ")
            );
            let form = |Row { value, iv, salt }: Row| {
                if is_record {
                    // A key in the clear, or something else.
                    return is_record_like(&value).then_some(Form::Record(value));
                }
                let value = value.as_str()?.to_owned();
                match iv {
                    Some(iv) => Some(Form::Attribute { value, iv, salt }),
                    None if is_attribute => None,
                    None => Some(Form::Token(value)),
                }
            };
            let rows = catalogue.ask::<Row>(ENCRYPTED, database, &query)?;
            let column = format!("{}.{column}", table.name);
            let values = rows.into_iter().filter_map(form).take(left);
            let values = values.map(|form| Encrypted { column: column.clone(), form });
            catalogue.encrypted.extend(values);
        }
    }
    Ok(())
}

fn is_record_like(value: &Value) -> bool {
    match value {
        Value::String(text) => text.starts_with('{'),
        object => object["p"].is_string() && object["h"].is_object(),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
