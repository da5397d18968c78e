//! `combine`: the adapters of two runs on the embedded base model as one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use common::{Fixture, text};
use serde_json::{Value, json};
use tunesmith_contract::job::ReferenceLogits;
use tunesmith_model::{
    Adapter, AdapterConfig, Decoder, LoraConfig, Method, Quantization,
    adapters::{ModuleAdapter, Place},
    peft,
};

/// By what the kernel ends a process that writes a larger file than it may (signal(7)).
const SIGXFSZ: i32 = 25;

/// Two short runs, `a` of rank 4 and `b` of rank 2.
fn trained() -> (Fixture, Decoder) {
    let fixture = Fixture::new();
    for (run, rank, learning_rate) in [("a", 4, 0.005), ("b", 2, 0.01)] {
        let mut job = fixture.job(run);
        job["training"]["rank"] = json!(rank);
        job["training"]["learning_rate"] = json!(learning_rate);
        job["training"]["max_steps"] = json!(4);
        let done = fixture.trainer("train", &fixture.write_job(&format!("{run}.json"), &job)).output().unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
    }
    let model = Decoder::load(&fixture.path("base")).unwrap();
    (fixture, model)
}

/// The folder of a run's adapter, with its weight.
fn weighted(fixture: &Fixture, run: &str, weight: &str) -> String {
    format!("{}:{weight}", fixture.path(run).join("adapter").display())
}

/// The command line, outside every cloud.
fn arguments(adapters: &[String], more: &[&str], to: &Path) -> Vec<String> {
    let mut arguments = vec!["combine".to_owned()];
    adapters.iter().for_each(|adapter| arguments.extend(["--adapter".to_owned(), adapter.clone()]));
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    arguments.extend(["--to".to_owned(), to.display().to_string()]);
    arguments
}

fn run(fixture: &Fixture, program: &str, arguments: &[String]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    command.env("TUNESMITH_CACHE", fixture.path("cache")).env("TMPDIR", fixture.folder.path());
    command.output().unwrap()
}

fn combine(fixture: &Fixture, adapters: &[String], more: &[&str], to: &Path) -> Output {
    run(fixture, env!("CARGO_BIN_EXE_tunesmith-trainer"), &arguments(adapters, more, to))
}

/// What the command says, and the new folder's path.
fn combined(fixture: &Fixture, adapters: &[String], more: &[&str], name: &str) -> (Value, PathBuf) {
    let to = fixture.path(name);
    let done = combine(fixture, adapters, more, &to);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["output"], json!(to));
    (report, to)
}

/// The change of every module, one after the other.
fn changes(adapter: &Adapter) -> Vec<Vec<f32>> {
    let change = |(place, module): (Place, &ModuleAdapter)| {
        let mut change = vec![0.0; place.shape[0] * place.shape[1]];
        module.merge_into(&mut change, place.shape[1]).unwrap();
        change
    };
    adapter.modules().map(change).collect()
}

fn squared_norm(change: &[f32]) -> f64 {
    change.iter().map(|value| f64::from(*value).powi(2)).sum()
}

/// Largest difference, relative to the largest value.
fn difference(got: &[Vec<f32>], wanted: &[Vec<f32>]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().flatten().fold(0.0f32, |most, value| most.max(value.abs()));
    assert!(largest > 0.0, "the adapters were trained");
    let pairs = got.iter().flatten().zip(wanted.iter().flatten());
    pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

#[test]
fn a_combined_adapter_is_the_weighted_sum_and_answers_as_it() {
    let (fixture, model) = trained();
    let [a, b] = ["a", "b"].map(|run| peft::load_onto(&fixture.path(run).join("adapter"), &model).unwrap());
    let reference: ReferenceLogits =
        serde_json::from_slice(&fs::read(fixture.path("a/reference-logits.json")).unwrap()).unwrap();
    let logits = |adapter: &Adapter| model.advance(&mut model.new_cache(), &reference.tokens, Some(adapter)).unwrap();

    // once A is A
    let (report, to) = combined(&fixture, &[weighted(&fixture, "a", "1.0")], &[], "same");
    assert_eq!(report, json!({"output": to, "rank": 4, "num_modules": a.modules().count(), "kept": 1.0}));
    let same = peft::load_onto(&to, &model).unwrap();
    let distance = logits(&same).iter().zip(&reference.logits).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(distance < 1e-4, "{distance}");
    let config: Value = serde_json::from_slice(&fs::read(to.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["peft_type"], &config["base_model_name_or_path"]), (&json!("LORA"), &json!("tunesmith-mini")));
    assert_eq!(same.base_fingerprint(), Some(model.fingerprint()), "it still knows its base");

    // a weighted sum is the sum of the changes, and all of its ranks are all of it
    let both = [weighted(&fixture, "a", "0.7"), weighted(&fixture, "b", "-0.3")];
    let (report, to) = combined(&fixture, &both, &[], "sum");
    assert_eq!((&report["rank"], &report["kept"]), (&json!(6), &json!(1.0)));
    let sum = peft::load_onto(&to, &model).unwrap();
    let added = |(a, b): (Vec<f32>, Vec<f32>)| a.iter().zip(b).map(|(a, b)| 0.7 * a - 0.3 * b).collect::<Vec<f32>>();
    let wanted: Vec<Vec<f32>> = changes(&a).into_iter().zip(changes(&b)).map(added).collect();
    assert!(difference(&changes(&sum), &wanted) < 1e-5);
    let (report, to) = combined(&fixture, &both, &["--rank", "6"], "full");
    assert_eq!((&report["rank"], &report["kept"], report.get("worst_module")), (&json!(6), &json!(1.0), None));
    let full = peft::load_onto(&to, &model).unwrap();
    assert!(difference(&changes(&full), &wanted) < 1e-5);

    // a smaller rank says what it keeps: what is cut off is orthogonal to it
    let (report, to) = combined(&fixture, &both, &["--rank", "2"], "small");
    let small = peft::load_onto(&to, &model).unwrap();
    let of_small = changes(&small);
    let kept = of_small.iter().zip(&wanted).map(|(small, whole)| squared_norm(small) / squared_norm(whole));
    let paths = small.modules().map(|(place, _)| place.path);
    let (share, path) = kept.zip(paths).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    assert!((report["kept"].as_f64().unwrap() - share).abs() < 1e-4 && share < 1.0, "{report} {share}");
    assert_eq!((&report["rank"], &report["worst_module"]), (&json!(2), &json!(path)));
    println!("rank 2 of 6 keeps {share} of {path}");

    // as peft's linear: the matrices of adapters with one rank
    let half = [weighted(&fixture, "a", "0.5"), weighted(&fixture, "a", "0.5")];
    let (report, to) = combined(&fixture, &half, &["--sum", "linear"], "linear");
    assert_eq!(report["rank"], 4);
    // each of A and B is √(½ s) of two: their product is 2 s B A
    let twice: Vec<Vec<f32>> =
        changes(&a).iter().map(|change| change.iter().map(|value| 2.0 * value).collect()).collect();
    assert!(difference(&changes(&peft::load_onto(&to, &model).unwrap()), &twice) < 1e-5);
    let (report, _) = combined(&fixture, &half, &["--sum", "linear", "--rank", "1"], "linear-small");
    assert!(report["rank"] == 1 && report["kept"].as_f64().unwrap() < 1.0, "{report}");
}

#[test]
fn what_cannot_be_combined_is_refused_by_name_and_nothing_is_written() {
    let (fixture, model) = trained();
    let a = || weighted(&fixture, "a", "1");
    let refused = |adapters: &[String], more: &[&str], wanted: &[&str]| {
        let done = combine(&fixture, adapters, more, &fixture.path("out"));
        let log = text(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{log}");
        let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        let message = last["message"].as_str().unwrap();
        wanted.iter().for_each(|wanted| assert!(message.contains(*wanted), "{wanted}: {message}"));
        let left = ["out", ".out.part"].map(|name| fixture.path(name).exists());
        assert_eq!(left, [false, false], "nothing is written");
        last["name"].as_str().unwrap().to_owned()
    };
    let put = |name: &str, adapter: &Adapter| {
        peft::save(adapter, &fixture.path(name), "tunesmith-mini").unwrap();
        format!("{}:1", fixture.path(name).display())
    };

    // the command line itself
    for (adapters, wanted) in [(vec![], "--adapter"), (vec![weighted(&fixture, "a", "half")], "weight \"half\"")] {
        let done = combine(&fixture, &adapters, &[], &fixture.path("out"));
        assert_eq!(done.status.code(), Some(2));
        assert!(text(&done.stderr).contains(wanted), "{}", text(&done.stderr));
    }
    for weight in ["nan", "-inf", "1e39"] {
        let done = combine(&fixture, &[weighted(&fixture, "a", weight)], &[], &fixture.path("out"));
        let log = text(&done.stderr);
        assert!(done.status.code() == Some(2) && log.contains("is no finite number; write FOLDER:WEIGHT"), "{log}");
    }

    // ranks
    for rank in ["0", "5"] {
        let name = refused(&[a()], &["--rank", rank], &[&format!("rank {rank} lies outside 1 to 4"), "--rank"]);
        assert_eq!(name, "InvalidInput");
    }
    let b = weighted(&fixture, "b", "1");
    refused(&[a(), b.clone()], &["--rank", "7"], &["outside 1 to 6"]);
    refused(&[a(), b], &["--sum", "linear"], &["linear with the ranks [4, 2]", "choose cat"]);

    // methods whose changes do not add up
    let fresh = |config| Adapter::new(config, &model, 1).unwrap();
    let ia3 = put("ia3", &fresh(AdapterConfig::ia3(model.config().modules())));
    let name = refused(&[a(), ia3], &[], &["ia3 is IA³", "combine LoRA, rsLoRA and AdaLoRA"]);
    assert_eq!(name, "InvalidInput");
    let method = Method::Lora(LoraConfig { use_dora: true, ..LoraConfig::default() });
    let dora = put("dora", &fresh(AdapterConfig { method, ..AdapterConfig::default() }));
    refused(&[dora, a()], &[], &["dora is DoRA"]);

    // other bases: of another quantization, of another fingerprint, of another name, of another shape
    let nf4 = Decoder::load_quantised(&fixture.path("base"), Quantization::Nf4).unwrap();
    let quantised = put("nf4", &Adapter::new(AdapterConfig::lora(2, 4.0), &nf4, 1).unwrap());
    refused(&[a(), quantised], &[], &["quantization \"none\"", "\"nf4\"", "of one quantization"]);
    let other = put("other", &fresh(AdapterConfig::lora(2, 4.0)));
    let print = json!({"base_fingerprint": "0123456789abcdef"});
    fs::write(fixture.path("other/base_fingerprint.json"), print.to_string()).unwrap();
    let fingerprint = model.fingerprint().to_string();
    refused(&[a(), other.clone()], &[], &[&fingerprint, "\"0123456789ab\"", "of one base model"]);
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/goldens/gqa-tied/train/final");
    let elsewhere = format!("{}:1", goldens.display());
    refused(&[a(), elsewhere], &[], &["\"tunesmith-mini\"", "write the same name"]);
    // one that says nothing but its shapes
    for name in [peft::CONFIG_FILE, peft::WEIGHTS_FILE] {
        fs::copy(goldens.join(name), fixture.path("other").join(name)).unwrap();
    }
    fs::remove_file(fixture.path("other/base_fingerprint.json")).unwrap();
    let config = fixture.path("other/adapter_config.json");
    let mut settings: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    settings["base_model_name_or_path"] = json!("tunesmith-mini");
    fs::write(&config, settings.to_string()).unwrap();
    refused(&[a(), other], &[], &["layers", "combine adapters of one base model"]);

    // what is no adapter, and what is no number
    let run = format!("{}:1", fixture.path("a").display());
    refused(&[run], &[], &["it has no adapter_config.json"]);
    let mut large = fresh(AdapterConfig::lora(2, 4.0));
    large.update(|_, values| values.fill(10.0)).unwrap();
    put("large", &large);
    let large = format!("{}:3e38", fixture.path("large").display());
    refused(&[large], &[], &["the sum has inf in tensor model.layers.0.", "smaller weights"]);
}

#[test]
fn a_folder_is_never_overwritten_and_a_killed_write_leaves_nothing_that_is_taken_for_an_adapter() {
    let (fixture, model) = trained();
    let adapters = [weighted(&fixture, "a", "1")];
    let parent = fixture.path("made");
    let to = parent.join("sum");
    let names = || -> Vec<String> {
        let items = fs::read_dir(&parent).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap());
        items.collect()
    };

    // the kernel ends the process in the midst of the tensors: files may have eight blocks, the settings fit
    let mut limited = vec!["-c".to_owned(), "ulimit -c 0; ulimit -f 8; exec \"$@\"".to_owned(), "sh".to_owned()];
    limited.push(env!("CARGO_BIN_EXE_tunesmith-trainer").to_owned());
    limited.extend(arguments(&adapters, &[], &to));
    let killed = run(&fixture, "/bin/sh", &limited);
    assert_eq!(killed.status.signal(), Some(SIGXFSZ), "{}", text(&killed.stderr));
    assert!(killed.stdout.is_empty() && !to.exists());
    assert_eq!(names(), [".sum.part"], "hidden");

    // the next attempt takes it over
    let done = combine(&fixture, &adapters, &[], &to);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(names(), ["sum"]);
    let files = fixture.files("made/sum");
    let written = ["adapter_config.json", "adapter_model.safetensors", "base_fingerprint.json"];
    assert_eq!(files.keys().collect::<Vec<_>>(), written);
    peft::load_onto(&to, &model).unwrap();

    // an adapter that is there stays, and so does an empty folder
    let empty = parent.join("empty");
    fs::create_dir(&empty).unwrap();
    for folder in [&to, &empty] {
        let again = combine(&fixture, &adapters, &["--rank", "1"], folder);
        let log = text(&again.stderr);
        assert!(again.status.code() == Some(1) && log.contains("exists and is not overwritten"), "{log}");
    }
    assert!(fixture.files("made/sum") == files && fs::read_dir(&empty).unwrap().count() == 0);

    // S3 has no folders that appear as a whole
    let remote = combine(&fixture, &adapters, &[], Path::new("s3://bucket/adapter"));
    let log = text(&remote.stderr);
    assert!(remote.status.code() == Some(1) && log.contains("aws s3 cp --recursive"), "{log}");
}
