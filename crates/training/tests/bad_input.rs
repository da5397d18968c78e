//! Every kind of bad input is refused before the first step wherever it can be known, by an error that names the values and
//! what to do, and nothing half-written is left. (Out of memory: see the tests of the memory plan.)

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fmt::{Debug, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{config, dataset, goldens, model};
use serde_json::{Value, json};
use tempfile::TempDir;
use tunesmith_model::{AdapterConfig, Decoder, Foreign, Message, ModelError, Module, Tokenizer, peft};
use tunesmith_training::{
    Dataset, Example, Sequence, Tokenisation, Trainer, TrainingConfig, TrainingError, checkpoint, disk,
};

/// The error, whose text holds every one of `wanted`.
fn refused<T, E: Display + Debug>(result: Result<T, E>, wanted: &[&str]) -> E {
    let Err(error) = result else { panic!("nothing was refused, wanted {wanted:?}") };
    let text = error.to_string();
    wanted.iter().for_each(|wanted| assert!(text.contains(wanted), "{wanted:?} is not in: {text}"));
    error
}

/// A copy of a golden folder's files, to be damaged.
fn copy_of(golden: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(goldens(golden)).unwrap().map(Result::unwrap).filter(|file| file.path().is_file()) {
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

/// Changes keys of a JSON file; one that is not there becomes `{}` first.
fn change(path: PathBuf, changes: Value) {
    let mut json: Value = fs::read(&path).map_or(json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    fs::write(path, json.to_string()).unwrap();
}

fn load(folder: &TempDir) -> Result<Decoder, ModelError> {
    Decoder::load(folder.path())
}

#[test]
fn a_missing_shard_is_named() {
    let folder = copy_of("linear-f16-sharded");
    load(&folder).unwrap();
    fs::remove_file(folder.path().join("model-00003-of-00004.safetensors")).unwrap();
    let error = refused(load(&folder), &["model-00003-of-00004.safetensors", "index.json wants", "fetch it again"]);
    assert!(matches!(error, ModelError::MissingShard { .. }), "{error:?}");

    let folder = copy_of("gqa-tied");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let error = refused(load(&folder), &["model.safetensors", "check the path"]);
    assert!(matches!(error, ModelError::Io { .. }), "{error:?}");
}

#[test]
fn a_truncated_shard_is_named() {
    let folder = copy_of("linear-f16-sharded");
    let shard = folder.path().join("model-00002-of-00004.safetensors");
    let whole = fs::read(&shard).unwrap();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n".to_vec();
    for damaged in [whole[..whole.len() - 1].to_vec(), whole[..40].to_vec(), whole[..5].to_vec(), Vec::new(), pointer] {
        fs::write(&shard, damaged).unwrap();
        let error = refused(load(&folder), &["model-00002-of-00004.safetensors", "not a complete", "fetch it again"]);
        assert!(matches!(error, ModelError::BadSafetensors { .. }), "{error:?}");
    }
}

/// The tokenizer of the folder, checked against a model with so many embeddings.
fn check_tokenizer(folder: &TempDir, rows: usize) -> Result<(), ModelError> {
    Tokenizer::load(folder.path())?.check_model(rows)
}

fn foreign(result: Result<(), ModelError>, wanted: &[&str]) -> Foreign {
    let remedy = "use the tokenizer files that came with the base model";
    match refused(result, &[wanted, &["tokenizer.json", remedy][..]].concat()) {
        ModelError::WrongTokenizer { foreign, .. } => foreign,
        error => panic!("{error:?}"),
    }
}

#[test]
fn a_tokenizer_with_tokens_beyond_the_embedding_is_refused() {
    let folder = copy_of("chat/marked");
    let tokens = Tokenizer::load(folder.path()).unwrap().vocabulary_size();
    check_tokenizer(&folder, tokens).unwrap();
    check_tokenizer(&folder, tokens + 64).unwrap();
    let (id, rows) = (format!("id {}", tokens - 1), format!("embeddings for {} tokens", tokens - 1));
    let error = foreign(check_tokenizer(&folder, tokens - 1), &[&id, &rows]);
    assert!(matches!(error, Foreign::BeyondEmbedding { rows, .. } if rows == tokens - 1));

    // an added token, as people add one without resizing the embedding
    let path = folder.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let added = json!({"id": tokens, "content": "<extra>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    json["added_tokens"].as_array_mut().unwrap().push(added);
    fs::write(&path, json.to_string()).unwrap();
    foreign(check_tokenizer(&folder, tokens), &["\"<extra>\"", &format!("id {tokens}")]);
    // nothing is padded, so a padding token needs no embedding
    change(folder.path().join("tokenizer_config.json"), json!({"pad_token": "<extra>"}));
    check_tokenizer(&folder, tokens).unwrap();
}

#[test]
fn a_wrong_tokenizer_whose_ids_all_fit_is_recognised() {
    let folder = copy_of("chat/marked");
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let (tokens, eos) = (tokenizer.vocabulary_size(), tokenizer.eos().unwrap());
    let rows = 2 * tokens + 1;
    let error = foreign(check_tokenizer(&folder, rows), &[&format!("{tokens} tokens"), &format!("for {rows}")]);
    assert_eq!(error, Foreign::TooFewTokens { tokens, rows });

    let config = folder.path().join("config.json");
    change(config.clone(), json!({"eos_token_id": [eos, 7]}));
    check_tokenizer(&folder, tokens).unwrap();
    change(config.clone(), json!({"eos_token_id": 7}));
    let error = foreign(check_tokenizer(&folder, tokens), &["\"<|im_end|>\"", &format!("id {eos}"), "{7}"]);
    assert!(matches!(error, Foreign::OtherEnd { .. }));
    // what generation_config.json says counts, too
    change(folder.path().join("generation_config.json"), json!({"eos_token_id": [eos]}));
    check_tokenizer(&folder, tokens).unwrap();
    change(config, json!({"eos_token_id": 128_009}));
    assert_eq!(foreign(check_tokenizer(&folder, tokens), &["id 128009"]), Foreign::NoSuchEnd { id: 128_009 });

    change(folder.path().join("tokenizer_config.json"), json!({"eos_token": "<|eot_id|>"}));
    let error = foreign(check_tokenizer(&folder, tokens), &["\"<|eot_id|>\" as eos_token"]);
    assert!(matches!(error, Foreign::NoSuchToken { key: "eos_token", .. }));
}

#[test]
fn a_vocabulary_that_does_not_match_the_weights_or_the_data_is_refused() {
    let folder = copy_of("gqa-tied");
    change(folder.path().join("config.json"), json!({"vocab_size": 200}));
    let error = refused(load(&folder), &["model.embed_tokens.weight", "[160, 64]", "[200, 64]", "do not belong"]);
    assert!(matches!(error, ModelError::WrongShape { .. }), "{error:?}");

    let sequence = Sequence { ids: vec![5, 160], counted: vec![false, true], example: 0 };
    let data = Dataset::from_sequences(vec![sequence]).unwrap();
    let error = refused(Trainer::new(config(), model(), data), &["token id 160", "vocabulary of 160", "another model"]);
    assert!(matches!(error, TrainingError::Model(ModelError::TokenOutOfRange { id: 160, .. })), "{error:?}");
}

#[test]
fn an_adapter_for_another_base_is_refused() {
    let adapter = goldens("gqa-tied/train/final");
    let load = |base: &str| peft::load(&adapter, Decoder::load(&goldens(base)).unwrap().config());
    load("gqa-tied").unwrap();
    let shapes = "lora_A.weight has shape [8, 64], for this model it would have [8, 48]";
    let remedy = "load the base model that adapter_config.json names (\"gqa-tied\")";
    let error = refused(load("llama3-untied"), &["gqa-tied/train/final", shapes, remedy]);
    assert!(matches!(error, ModelError::ForeignAdapter { .. }), "{error:?}");
    let error = refused(load("architectures/gpt2"), &["\"down_proj\"", "it has c_attn attn.c_proj c_fc mlp.c_proj"]);
    assert!(matches!(error, ModelError::UnknownModule { .. }), "{error:?}");
}

#[test]
fn a_checkpoint_of_another_base_of_the_same_shape_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(config(), model(), dataset(1)).unwrap();
    trainer.step().unwrap();
    let saved = trainer.save(folder.path()).unwrap();
    let other = copy_of("gqa-tied");
    change(other.path().join("config.json"), json!({"rms_norm_eps": 0.5}));
    let resumed = Trainer::resume(&saved, Arc::new(load(&other).unwrap()), dataset(1));
    let error = refused(resumed.map(drop), &["another base model", "logits differ by", "resume with the base model"]);
    assert!(matches!(error, TrainingError::BaseModelMismatch { .. }), "{error:?}");
}

/// A run with these settings that never begins.
fn never_begins(config: TrainingConfig, wanted: &[&str]) -> TrainingError {
    refused(Trainer::new(config, model(), dataset(1)).map(drop), wanted)
}

#[test]
fn rank_zero_is_refused() {
    let of_rank_zero = TrainingConfig { adapter: AdapterConfig::lora(0, 8.0), ..config() };
    let error = never_begins(of_rank_zero, &["rank = 0", "choose a rank of 1 or more"]);
    assert!(matches!(error, TrainingError::Model(ModelError::UnsupportedAdapter { .. })), "{error:?}");

    let folder = copy_of("gqa-tied/train/final");
    change(folder.path().join(peft::CONFIG_FILE), json!({"r": 0}));
    let error = refused(peft::load(folder.path(), model().config()), &["rank = 0"]);
    assert!(matches!(error, ModelError::UnsupportedAdapter { .. }), "{error:?}");
}

#[test]
fn a_target_module_that_does_not_exist_is_refused_with_those_that_do() {
    let adapter = AdapterConfig { target_modules: vec![Module::Q, Module::GateUp], ..AdapterConfig::default() };
    let wanted = ["\"gate_up_proj\"", "it has q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"];
    let error = never_begins(TrainingConfig { adapter, ..config() }, &wanted);
    assert!(matches!(error, TrainingError::Model(ModelError::UnknownModule { .. })), "{error:?}");

    let error = refused(Module::from_name("w1", &Module::LLAMA), &["\"w1\"", "q_proj k_proj"]);
    assert!(matches!(error, ModelError::UnknownModule { .. }), "{error:?}");
    let folder = copy_of("gqa-tied/train/final");
    change(folder.path().join(peft::CONFIG_FILE), json!({"target_modules": ["q_proj", "w1"]}));
    refused(peft::load(folder.path(), model().config()), &["\"w1\"", "q_proj k_proj"]);
}

#[test]
fn an_empty_dataset_and_one_that_teaches_nothing_are_refused() {
    let tokenizer = Tokenizer::load(&goldens("chat/marked")).unwrap();
    let build = |examples: &[Example]| Dataset::build(&tokenizer, examples, &Tokenisation::of_length(64)).map(drop);
    let error = refused(build(&[]), &["0 given", "add documents"]);
    assert!(matches!(error, TrainingError::EmptyDataset { num_examples: 0 }), "{error:?}");
    let blank = ["", " \n"].map(|text| Example::Text { text: text.to_owned() });
    refused(build(&blank), &["2"]);
    let error = refused(Dataset::from_sequences(Vec::new()).map(drop), &["0 given"]);
    assert!(matches!(error, TrainingError::EmptyDataset { .. }), "{error:?}");
    let question = Example::Chat { messages: vec![Message::new("user", "anyone?")] };
    let error = refused(build(&[question]), &["1 examples", "train_on"]);
    assert!(matches!(error, TrainingError::AllLabelsMasked { num_examples: 1, .. }), "{error:?}");
}

#[test]
fn sequences_longer_than_the_models_positions_are_refused() {
    let longer = TrainingConfig { sequence_length: 257, ..config() };
    let error = never_begins(longer, &["sequence_length 257", "256 positions", "choose at most 256"]);
    assert!(matches!(error, TrainingError::SequenceBeyondModel { length: 257, limit: 256 }), "{error:?}");

    let data =
        || Dataset::from_sequences(vec![Sequence { ids: vec![1; 65], counted: vec![true; 65], example: 3 }]).unwrap();
    let wanted = ["example 3", "65 tokens", "sequence_length 64", "raise sequence_length or split"];
    let error = refused(Trainer::new(config(), model(), data()).map(drop), &wanted);
    assert!(matches!(error, TrainingError::SequenceTooLong { example: 3, .. }), "{error:?}");

    let error = refused(model().logits(&[1; 257], None), &["257 tokens", "256 positions", "shorten the text"]);
    assert!(matches!(error, ModelError::TooManyPositions { length: 257, limit: 256 }), "{error:?}");
}

#[test]
fn a_disk_without_room_for_the_checkpoints_is_refused_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = ["bytes free", "18446744073709551615 are needed", "free some space"];
    let error = refused(disk::require(folder.path(), u64::MAX), &wanted);
    assert!(matches!(error, TrainingError::DiskFull { needed: u64::MAX, .. }), "{error:?}");
    assert!(
        Trainer::new(config(), model(), dataset(1)).unwrap().checkpoint_bytes() > 1 << 20,
        "this is what is asked for"
    );
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A link to a device that is always full in the place where the file is prepared.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_adapter_that_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let trainer = Trainer::new(config(), model(), dataset(1)).unwrap();
    trainer.save_adapter(folder.path(), "base").unwrap();
    let before = fs::read(folder.path().join(peft::WEIGHTS_FILE)).unwrap();
    for name in [peft::WEIGHTS_FILE, peft::CONFIG_FILE] {
        std::os::unix::fs::symlink("/dev/full", folder.path().join(format!(".{name}.part"))).unwrap();
        let error = refused(trainer.save_adapter(folder.path(), "base"), &[name, "No space left", "room on the disk"]);
        let TrainingError::Model(ModelError::Io { source, .. }) = &error else { panic!("{error:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        let whole = [peft::CONFIG_FILE, peft::WEIGHTS_FILE, peft::FINGERPRINT_FILE];
        assert_eq!(names(folder.path()), whole, "nothing half-written");
        assert!(before == fs::read(folder.path().join(peft::WEIGHTS_FILE)).unwrap());
    }
    peft::load(folder.path(), model().config()).unwrap();
}

const FOLDER: &str = "BAD_INPUT_TEST_FOLDER";

/// Files of the child process may have at most 48 kB (96 blocks of 512 bytes), as if the disk were full in the middle of one.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_in_the_middle_of_a_checkpoint_leaves_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(config(), model(), dataset(1)).unwrap();
    trainer.step().unwrap();
    trainer.save(folder.path()).unwrap();
    let child = "trap '' XFSZ; ulimit -f 96; exec \"$0\" --exact the_child_whose_files_are_limited --nocapture";
    let mut command = std::process::Command::new("sh");
    let test = std::env::current_exe().unwrap();
    let output = command.args(["-c", child]).arg(test).env(FOLDER, folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names(folder.path()), ["1"], "nothing half-written");
    assert_eq!(Trainer::resume(&folder.path().join("1"), model(), dataset(1)).unwrap().num_steps_done(), 1);
}

/// Does something only when the test above starts it, with a folder.
#[test]
fn the_child_whose_files_are_limited() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let mut trainer = Trainer::resume(&folder.join("1"), model(), dataset(1)).unwrap();
    trainer.step().unwrap();
    let error = refused(trainer.save(&folder), &["cannot read or write", "File too large", "space"]);
    assert!(matches!(error, TrainingError::Io { .. } | TrainingError::Model(ModelError::Io { .. })), "{error:?}");
    assert_eq!(checkpoint::list(&folder).unwrap().len(), 1);
}
