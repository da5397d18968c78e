//! The JSON Schemas of the files people write. That they say what the types say is tried, not trusted: an implementation of JSON
//! Schema that knows nothing of serde has to take and refuse what serde takes and refuses.

use std::{fs, path::PathBuf};

use boon::{Compiler, SchemaIndex, Schemas};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::check;
use crate::{
    BaseModel, DatasetId, DocumentId, IndexId, ProjectId, ProjectSettings, RunId,
    documents::Conversation,
    job::{ExportJob, ServeJob, TrainJob},
    settings::{AdaLoraSettings, TrainingSettings},
};

/// What people write beside `project.toml`.
pub(super) struct Written {
    /// `docs/schemas/{name}.schema.json`.
    pub(super) name: &'static str,
    /// A right one, in this repository.
    pub(super) example: &'static str,
    pub(super) schema: Value,
}

pub(super) fn others() -> [Written; 4] {
    let conversations = "docs/sample/customers/questions.jsonl";
    [
        Written { name: "conversation", example: conversations, schema: schema::<Conversation>() },
        Written { name: "train-job", example: "events/trainer/train.json", schema: schema::<TrainJob>() },
        Written { name: "serve-job", example: "events/trainer/serve.json", schema: schema::<ServeJob>() },
        Written { name: "export-job", example: "events/trainer/export-gguf-q4_k.json", schema: schema::<ExportJob>() },
    ]
}

pub(super) fn schema<T: JsonSchema>() -> Value {
    serde_json::to_value(schemars::schema_for!(T)).unwrap()
}

pub(super) fn check_schema(name: &str, schema: &Value) {
    check(&format!("docs/schemas/{name}.schema.json"), &(serde_json::to_string_pretty(schema).unwrap() + "\n"));
}

#[test]
fn the_json_schemas_of_the_other_files_people_write_are_fresh() {
    for written in others() {
        check_schema(written.name, &written.schema);
    }
}

#[test]
fn every_field_is_described() {
    let others = others().map(|written| (written.name, written.schema));
    for (file, schema) in others.into_iter().chain([("project", schema::<ProjectSettings>())]) {
        assert!(schema["title"].is_string() && schema["description"].is_string(), "{file}");
        let definitions = schema["$defs"].as_object().into_iter().flatten();
        for (of, object) in definitions.map(|(name, object)| (name.as_str(), object)).chain([(file, &schema)]) {
            for (key, property) in object["properties"].as_object().into_iter().flatten() {
                assert!(property["description"].is_string(), "{file}: {of}.{key}");
            }
        }
    }
}

/// A compiled schema. Compiling also holds it against the meta-schema.
struct Validator {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Validator {
    fn of<T: JsonSchema>() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        let url = "http://tunesmith/schema.json";
        compiler.add_resource(url, schema::<T>()).unwrap();
        let index = compiler.compile(url, &mut schemas).unwrap();
        Self { schemas, index }
    }

    /// Whether serde reads `value` as a `T`, which is whether the schema of `T` takes it.
    fn takes<T: DeserializeOwned>(&self, value: &Value) -> bool {
        let read = serde_json::from_value::<T>(value.clone()).map(drop);
        let valid = self.schemas.validate(value, self.index).map_err(|error| error.to_string());
        assert_eq!(read.is_ok(), valid.is_ok(), "serde says {read:?}, the schema {valid:?}: {value}");
        read.is_ok()
    }
}

/// `value` in other forms, right and wrong ones: at every place in it another value, a key less, a key that nobody knows.
///
/// Two things that serde reads and nobody writes are left out: structures as lists of their values, `{"lora": null}` for `"lora"`.
fn variations(value: &Value) -> Vec<Value> {
    let others = r#"[null, true, -1, 1, 1.5, "", "x y", {}, [{}]]"#;
    let mut all: Vec<Value> = serde_json::from_str(others).unwrap();
    match value {
        Value::Object(object) => {
            for (key, inner) in object {
                let mut less = object.clone();
                less.remove(key);
                all.push(less.into());
                for other in variations(inner) {
                    let mut changed = object.clone();
                    changed.insert(key.clone(), other);
                    all.push(changed.into());
                }
            }
            let mut more = object.clone();
            more.insert("surprise".to_owned(), json!(1));
            all.push(more.into());
        }
        Value::Array(items) => {
            for (at, inner) in items.iter().enumerate() {
                for other in variations(inner) {
                    let mut changed = items.clone();
                    changed[at] = other;
                    all.push(changed.into());
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    all
}

/// Tries variations of `sample`, which has every key there is.
fn try_variations<T: DeserializeOwned + JsonSchema>(sample: &Value) {
    for key in schema::<T>()["properties"].as_object().unwrap().keys() {
        assert!(sample.get(key).is_some(), "the sample lacks {key}");
    }
    let validator = Validator::of::<T>();
    assert!(validator.takes::<T>(sample));
    let taken = variations(sample).iter().filter(|value| validator.takes::<T>(value)).count();
    assert!(taken > 0, "every variation was refused: the sample shows nothing");
}

fn job(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../events/trainer").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn training() -> TrainingSettings {
    TrainingSettings {
        target_modules: vec!["down_proj".to_owned()],
        feedforward_modules: Some(vec!["down_proj".to_owned()]),
        memory_limit_mb: Some(4096),
        adalora: AdaLoraSettings { tinit: Some(5), tfinal: Some(10), ..AdaLoraSettings::default() },
        ..TrainingSettings::default()
    }
}

#[test]
fn a_schema_takes_what_serde_takes() {
    let settings = ProjectSettings { training: training(), ..ProjectSettings::default() };
    try_variations::<ProjectSettings>(&serde_json::to_value(settings).unwrap());
    let mut train = job("train.json");
    train["training"] = serde_json::to_value(training()).unwrap();
    try_variations::<TrainJob>(&train);
    try_variations::<ServeJob>(&job("serve.json"));
    try_variations::<ExportJob>(&job("export-gguf-q4_k.json"));
}

fn num_taken<T: DeserializeOwned + JsonSchema>(texts: &[String]) -> usize {
    let validator = Validator::of::<T>();
    texts.iter().filter(|text| validator.takes::<T>(&json!(text))).count()
}

#[test]
fn the_pattern_of_an_id_is_the_rule_of_its_parser() {
    let hex = "0123456789abcdef".repeat(5);
    let words = "a handbook team-7-notes Handbook 7up a--b a- -a ä ../x _x .x x.y_z a/b a/b/c /x x/ x//y x/.y x/-y run-0123456789AB";
    let mut texts: Vec<String> =
        words.split(' ').chain(["", "a b", "a\n", "run-0123456789ab\n"]).map(str::to_owned).collect();
    for length in [11, 12, 13, 15, 16, 17, 63, 64, 65] {
        texts.extend(["", "run-", "ds-", "ix-"].map(|prefix| format!("{prefix}{}", &hex[..length])));
    }
    for length in [40, 41, 96, 97] {
        let part = "a".repeat(length);
        texts.extend([format!("{part}/b"), format!("b/{part}"), part]);
    }

    assert_eq!(num_taken::<RunId>(&texts), 1);
    assert_eq!(num_taken::<DatasetId>(&texts), 1);
    assert_eq!(num_taken::<IndexId>(&texts), 1);
    assert_eq!(num_taken::<DocumentId>(&texts), 1);
    assert!(num_taken::<ProjectId>(&texts) > 1);
    assert!(num_taken::<BaseModel>(&texts) > 1);
}

#[test]
fn the_schemas_take_the_examples_and_refuse_the_wrong_ones() {
    let (train, serve, export) =
        (Validator::of::<TrainJob>(), Validator::of::<ServeJob>(), Validator::of::<ExportJob>());
    for (folder, is_right) in [("", true), ("invalid/", false)] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../events/trainer").join(folder);
        let mut num_jobs = 0;
        for item in fs::read_dir(path).unwrap() {
            let item = item.unwrap();
            let name = item.file_name().into_string().unwrap();
            // folders, what the trainer reports, and what the metadata of a spot machine say
            if item.path().is_dir() || name.starts_with("failure-") || name.starts_with("spot-") {
                continue;
            }
            let value = job(&format!("{folder}{name}"));
            let is_taken = match name.split(['-', '.']).next() {
                Some("train" | "evaluate") => train.takes::<TrainJob>(&value),
                Some("serve") => serve.takes::<ServeJob>(&value),
                Some("export") => export.takes::<ExportJob>(&value),
                _ => panic!("{name} is of no command"),
            };
            assert_eq!(is_taken, is_right, "{folder}{name}");
            num_jobs += 1;
        }
        assert!(num_jobs >= 6, "{num_jobs} in {folder:?}");
    }
}
