//! A base model by its Hugging Face id: the real trainer as a process, and a hub on loopback that answers as huggingface.co does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::{
    Fixture,
    hub::{Access, Hub, TOKEN, Trouble},
    text,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tunesmith_contract::{DocumentId, evaluation::Evaluation};

const WEIGHTS: &str = "model.safetensors";

/// `evaluate` of the run in this folder, on the base model with this id.
fn evaluate(fixture: &Fixture, hub: &Hub, id: &str, run: &str) -> Command {
    let mut job = fixture.job(run);
    job["base"] = json!({"name": id});
    let job = fixture.write_job("evaluate.json", &job);
    let mut trainer = fixture.trainer("evaluate", &job);
    trainer.env("HF_ENDPOINT", &hub.endpoint).env("HF_HOME", fixture.path("hf"));
    trainer
}

/// The same without a run: what there is to see is what becomes of the base model.
fn fetch(fixture: &Fixture, hub: &Hub, id: &str) -> Command {
    evaluate(fixture, hub, id, "no-run")
}

/// Runs it; it must end with this failure. Returns the message.
fn refused(mut trainer: Command, name: &str) -> String {
    let done = trainer.output().unwrap();
    let log = text(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{log}");
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["name"], name, "{log}");
    last["message"].as_str().unwrap().to_owned()
}

/// Runs it; the base model must be fetched and loaded, after which the adapter is looked for, in vain.
fn loads(trainer: Command) {
    let message = refused(trainer, "NotFound");
    assert!(message.starts_with("adapter "), "{message}");
}

/// The same model in two files, called as older programs do, and its weights once more as their maker has them.
fn in_shards(files: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    let mut files = files.clone();
    let whole = files.remove(WEIGHTS).unwrap();
    files.insert("consolidated.safetensors".into(), whole.clone());
    let mut tensors = SafeTensors::deserialize(&whole).unwrap().tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut weight_map = serde_json::Map::new();
    for (number, part) in [first, second].into_iter().enumerate() {
        let name = format!("pytorch_model-{:05}-of-00002.safetensors", number + 1);
        let views = part.iter().map(|(tensor, view)| (tensor.as_str(), view));
        files.insert(name.clone(), safetensors::serialize(views, None).unwrap());
        weight_map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
    }
    let index = json!({"metadata": {"total_size": whole.len()}, "weight_map": weight_map});
    files.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
    files
}

/// Where hf-hub keeps the files of `tunesmith/mini`.
fn cache(fixture: &Fixture) -> PathBuf {
    fixture.path("hf/hub/models--tunesmith--mini")
}

/// From which byte on the weights were sent, each time since this was last asked.
fn starts(hub: &Hub) -> Vec<usize> {
    hub.downloads().into_iter().filter(|(name, _)| name == WEIGHTS).map(|(_, first)| first).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_of_the_hub_whole_or_in_shards_evaluates_as_its_folder_does_and_is_downloaded_once() {
    let (fixture, hub) = (Fixture::new(), Hub::start());
    let mut job = fixture.job("run");
    job["training"]["max_steps"] = json!(2);
    let trained = fixture.trainer("train", &fixture.write_job("train.json", &job)).output().unwrap();
    assert!(trained.status.success(), "{}", text(&trained.stderr));
    let of_folder: Evaluation = serde_json::from_slice(&fixture.files("run")["evaluation.json"]).unwrap();

    let mut files = fixture.files("base");
    files.insert("README.md".into(), b"# A model card".to_vec());
    files.insert("onnx/model.onnx".into(), vec![0; 100]);
    hub.put("tunesmith/mini", Access::Open, &files);
    hub.put("tunesmith/shards", Access::Open, &in_shards(&files));
    let small = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];
    let single = [WEIGHTS];
    let shards = [
        "model.safetensors.index.json",
        "pytorch_model-00001-of-00002.safetensors",
        "pytorch_model-00002-of-00002.safetensors",
    ];
    for (id, weights) in [("tunesmith/mini", &single[..]), ("tunesmith/shards", &shards[..])] {
        let done = evaluate(&fixture, &hub, id, "run").output().unwrap();
        assert!(done.status.success(), "{id}: {}", text(&done.stderr));
        assert_eq!(serde_json::from_slice::<Evaluation>(&done.stdout).unwrap(), of_folder, "{id}");
        let wanted = small.iter().chain(weights).chain(&["config.json"]).map(|name| ((*name).to_owned(), 0_usize));
        assert_eq!(hub.downloads(), wanted.collect::<Vec<_>>(), "what is needed, and nothing else");

        hub.num_asked();
        loads(fetch(&fixture, &hub, id));
        assert_eq!((hub.downloads(), hub.num_asked()), (vec![], 1), "the second time only the listing is asked for");
    }
}

#[test]
fn an_id_that_the_hub_does_not_show_is_refused_with_what_to_do_and_a_token_opens_it() {
    let (fixture, hub) = (Fixture::new(), Hub::start());
    // what a model may do without
    let mut files = fixture.files("base");
    files.retain(|name, _| ["config.json", "tokenizer.json", WEIGHTS].contains(&name.as_str()));
    hub.put("tunesmith/private", Access::Private, &files);
    hub.put("tunesmith/gated", Access::Gated, &files);
    for (id, token_opt, says) in [
        ("tunesmith/none", None, "401 (Invalid username or password.)"),
        ("tunesmith/none", Some(TOKEN), "404 (Repository not found)"),
        ("tunesmith/private", None, "401 (Invalid username or password.)"),
        ("tunesmith/private", Some("hf_wrong"), "401 (Invalid credentials in Authorization header)"),
        ("tunesmith/gated", None, "401 (Access to model tunesmith/gated is restricted."),
    ] {
        let mut trainer = fetch(&fixture, &hub, id);
        trainer.envs(token_opt.map(|token| ("HF_TOKEN", token)));
        let message = refused(trainer, "UnknownBaseModel");
        for part in [id, says, "set HF_TOKEN", id.replace('/', "--").as_str(), "correct base_model"] {
            assert!(message.contains(part), "{part:?} is not in {message}");
        }
        assert!(hub.downloads().is_empty());
    }
    hub.num_asked();
    refused(fetch(&fixture, &hub, "tunesmith/none"), "UnknownBaseModel");
    assert_eq!(hub.num_asked(), 1, "no is no: it is not asked again");

    let mut trainer = fetch(&fixture, &hub, "tunesmith/private");
    trainer.env("HF_TOKEN", TOKEN);
    loads(trainer);
    // as `hf auth login` leaves it
    fs::write(fixture.path("hf/token"), format!("{TOKEN}\n")).unwrap();
    loads(fetch(&fixture, &hub, "tunesmith/gated"));
}

#[test]
fn a_download_that_is_cut_off_goes_on_where_it_ended_and_is_never_taken_for_whole() {
    let (fixture, hub) = (Fixture::new(), Hub::start());
    let files = fixture.files("base");
    let whole = files[WEIGHTS].len();
    let commit = hub.put("tunesmith/mini", Access::Open, &files);

    let tenth = whole / 10;
    hub.trouble(Trouble::Cut(tenth));
    // a small file must come whole, or it is cut as well
    assert!(files["tokenizer.json"].len() < tenth);
    let message = refused(fetch(&fixture, &hub, "tunesmith/mini"), "ServiceUnavailable");
    for part in ["tunesmith/mini", "before all bytes were read", "try again", "models/tunesmith--mini/"] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    assert_eq!(starts(&hub), [0, tenth, 2 * tenth, 3 * tenth]);
    let snapshot = cache(&fixture).join("snapshots").join(&commit);
    assert!(!names(&snapshot).contains(&WEIGHTS.to_owned()), "{:?}", names(&snapshot));

    // the next run begins where this one ended, and is cut off once more
    hub.trouble(Trouble::Cut(whole / 3));
    loads(fetch(&fixture, &hub, "tunesmith/mini"));
    assert_eq!(starts(&hub), [4 * tenth, 4 * tenth + whole / 3]);
    assert!(fs::read(snapshot.join(WEIGHTS)).unwrap() == files[WEIGHTS]);
    assert!(!names(&cache(&fixture).join("blobs")).iter().any(|name| name.ends_with(".part")));
}

#[test]
fn what_a_killed_run_left_in_the_cache_is_mended() {
    let (fixture, hub) = (Fixture::new(), Hub::start());
    let files = fixture.files("base");
    let whole = files[WEIGHTS].len();
    let commit = hub.put("tunesmith/mini", Access::Open, &files);
    let (blobs, hash) = (cache(&fixture).join("blobs"), DocumentId::of(&files[WEIGHTS]).to_string());
    let weights = cache(&fixture).join("snapshots").join(&commit).join(WEIGHTS);
    let left = |name: &str, bytes: &[u8]| {
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(name), bytes).unwrap();
    };
    let mended = |begun: &[usize], what: &str| {
        loads(fetch(&fixture, &hub, "tunesmith/mini"));
        assert_eq!(starts(&hub), begun, "{what}");
        assert!(fs::read(&weights).unwrap() == files[WEIGHTS], "{what}");
    };

    // killed between the last byte and the name: no server has more of it
    left(&format!("{hash}.part"), &files[WEIGHTS]);
    mended(&[whole, 0], "a whole file under the name of an unfinished one");

    left(&hash, &files[WEIGHTS][..whole / 2]);
    mended(&[0], "half a file under the name of a whole one");

    fs::remove_dir_all(cache(&fixture)).unwrap();
    left(&format!("{hash}.part"), &files[WEIGHTS][..whole / 2]);
    hub.trouble(Trouble::Whole);
    mended(&[whole / 2, 0], "a server that sends the whole file where its rest was asked for");
}

#[test]
fn a_model_that_changed_on_the_hub_is_not_mixed_with_what_was_downloaded_before() {
    let (fixture, hub) = (Fixture::new(), Hub::start());
    let mut files = fixture.files("base");
    hub.put("tunesmith/mini", Access::Open, &files);
    loads(fetch(&fixture, &hub, "tunesmith/mini"));
    files.insert("special_tokens_map.json".into(), b"{}".to_vec());
    let commit = hub.put("tunesmith/mini", Access::Open, &files);
    loads(fetch(&fixture, &hub, "tunesmith/mini"));
    let snapshot = cache(&fixture).join("snapshots").join(commit);
    assert_eq!(names(&snapshot), files.keys().cloned().collect::<Vec<_>>());
}

#[test]
fn a_hub_that_is_down_is_asked_four_times_and_is_a_failure_that_can_be_tried_again() {
    let (fixture, hub) = (Fixture::new(), Hub::start());
    hub.put("tunesmith/mini", Access::Open, &fixture.files("base"));
    hub.trouble(Trouble::Status(500));
    let message = refused(fetch(&fixture, &hub, "tunesmith/mini"), "ServiceUnavailable");
    for part in ["tunesmith/mini", "status 500", "try again", "models/tunesmith--mini/"] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    assert_eq!((hub.num_asked(), hub.downloads()), (4, vec![]));
}

#[test]
fn without_a_home_folder_the_files_of_the_hub_lie_in_the_trainer_s_cache() {
    let (fixture, hub) = (Fixture::new(), Hub::start());
    let commit = hub.put("tunesmith/mini", Access::Open, &fixture.files("base"));
    let mut trainer = fetch(&fixture, &hub, "tunesmith/mini");
    trainer.env_remove("HF_HOME").env("HOME", "/dev/null").env("HF_ENDPOINT", format!("{}/", hub.endpoint));
    loads(trainer);
    let snapshots = fixture.path("cache/hub/models--tunesmith--mini/snapshots");
    assert_eq!(names(&snapshots), [commit]);
}
