//! Files that are generated from the types: the JSON Schemas of what people write, `docs/configuration.md`, `docs/errors.md`.
//! The tests fail when a committed file is stale; `UPDATE=1 cargo test -p tunesmith-contract generated` rewrites them.

mod schemas;

use std::{fmt::Write as _, fs, path::PathBuf};

use serde_json::{Map, Value};

use crate::{ErrorName, ProjectSettings};

fn check(path: &str, wanted: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is stale: run UPDATE=1 cargo test -p tunesmith-contract generated", path.display());
}

#[test]
fn the_json_schema_of_project_toml_is_fresh() {
    schemas::check_schema("project", &schemas::schema::<ProjectSettings>());
}

fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

fn resolve<'a>(root: &'a Value, value: &'a Value) -> &'a Value {
    value["$ref"].as_str().and_then(|r| root.pointer(r.trim_start_matches('#'))).unwrap_or(value)
}

fn type_name(root: &Value, property: &Value) -> String {
    let property = resolve(root, property);
    if let Some(variants) = property["oneOf"].as_array() {
        let names = variants.iter().filter_map(|v| v["const"].as_str()).map(|v| format!("`\"{v}\"`"));
        return names.collect::<Vec<_>>().join(" or ");
    }
    match &property["type"] {
        Value::String(kind) if kind == "array" => format!("list of {}", type_name(root, &property["items"])),
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        _ => "value".to_owned(),
    }
}

fn rows(out: &mut String, root: &Value, table: &str, properties: &Map<String, Value>, defaults: &Value) {
    for (key, property) in properties {
        let name = if table.is_empty() { key.clone() } else { format!("{table}.{key}") };
        if let Some(inner) = resolve(root, property)["properties"].as_object() {
            // the tables of the file follow its own keys, those within a table stand among its keys
            if !table.is_empty() {
                rows(out, root, &name, inner, &defaults[key]);
            }
            continue;
        }
        let default = match &defaults[key] {
            Value::Null => "none".to_owned(),
            value => format!("`{value}`"),
        };
        let description = cell(property["description"].as_str().unwrap_or_default());
        let _ = writeln!(out, "| `{name}` | {} | {default} | {description} |", type_name(root, property));
    }
}

#[test]
fn the_configuration_page_is_fresh() {
    let root = schemas::schema::<ProjectSettings>();
    let defaults = serde_json::to_value(ProjectSettings::default()).unwrap();
    let mut out = String::from(
        "# project.toml\n\n\
         Upload it as `<project>/project.toml` beside the documents. Every key has a default except the budget; unknown keys are\n\
         refused with the key, the line and what to write instead. This page is generated from `crates/contract/src/settings/`;\n\
         editors can check the file against [`schemas/project.schema.json`](schemas/project.schema.json).\n\n\
         | key | type | default | meaning |\n|---|---|---|---|\n",
    );
    let properties = root["properties"].as_object().unwrap();
    rows(&mut out, &root, "", properties, &defaults);
    for (table, property) in properties {
        if let Some(inner) = resolve(&root, property)["properties"].as_object() {
            rows(&mut out, &root, table, inner, &defaults[table]);
        }
    }
    out.push_str("\nThe smallest useful file:\n\n```toml\n[budget]\nmonthly_limit_usd = 25.0\n```\n");
    out.push_str(
        "\n## Other files that people write\n\n\
         Conversations lie among the documents; jobs are given to `tunesmith-trainer <command> --job <file>`. Jobs refuse keys they do\n\
         not know, `$schema` too: name the schema in the editor's settings. What a schema cannot say, such as the order of turns in a\n\
         conversation, the readers check as well.\n\n\
         | what | schema | example |\n|---|---|---|\n",
    );
    for schemas::Written { name, example, schema } in schemas::others() {
        let description = cell(schema["description"].as_str().unwrap());
        let schema = format!("schemas/{name}.schema.json");
        let _ = writeln!(out, "| {description} | [`{schema}`]({schema}) | [`{example}`](../{example}) |");
    }
    check("docs/configuration.md", &out);
}

#[test]
fn the_page_of_errors_is_fresh() {
    let mut out = String::from(
        "# Errors\n\n\
         Every failure has one of these names: as `errorType` of a Lambda function, as the error of a Step Functions task, in\n\
         the e-mail that reports it. The state machines match these names and nothing else. This page is generated from\n\
         `crates/contract/src/error_name.rs`.\n\n| name | what happened | what to do | tried again |\n|---|---|---|---|\n",
    );
    for name in ErrorName::ALL {
        let again = if name.is_retryable() { "yes" } else { "no" };
        let _ = writeln!(out, "| `{name}` | {} | {} | {again} |", cell(name.cause()), cell(name.remedy()));
    }
    check("docs/errors.md", &out);
}
