//! `train`, `evaluate` and `export` on a person's own machine: local paths, no AWS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Fixture, Running, text};
use serde_json::{Value, json};
use tunesmith_contract::{
    evaluation::Evaluation,
    job::{ExportReport, MetricLine, ReferenceLogits, TrainReport},
};
use tunesmith_model::{Adapter, AdapterConfig, Decoder, Tokenizer, peft};
use tunesmith_serving::{ServedModel, openai::Weights};

fn json_of<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn a_run_learns_evaluates_and_exports_what_it_learnt() {
    let fixture = Fixture::new();
    let output = fixture.train("run");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: TrainReport = json_of(&output.stdout);
    assert_eq!((report.steps, report.resumed_from), (18, None));

    let files = fixture.files("run");
    let evaluation: Evaluation = json_of(&files["evaluation.json"]);
    assert_eq!((evaluation.documents, evaluation.examples), (8, 16));
    assert!(evaluation.improvement_percent.low > 0.0, "{evaluation:?}");
    assert!(evaluation.tuned.token.value < evaluation.base.token.value);
    assert_eq!(evaluation.samples.len(), 4);
    assert!(evaluation.samples.iter().all(|s| s.prompt.starts_with("When does room") && s.reference.is_some()));

    let metrics = text(&files["metrics.jsonl"]);
    let lines: Vec<MetricLine> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line.step).collect::<Vec<_>>(), (1..=18).collect::<Vec<_>>());
    assert!(lines[17].loss < lines[0].loss && lines[17].seconds_left == 0.0);
    assert_eq!(lines[17].loss, report.final_loss);

    let kept: Vec<_> = files.keys().filter(|name| name.ends_with("/DONE")).collect();
    assert_eq!(kept, ["checkpoints/16/DONE", "checkpoints/18/DONE"], "the newest two are kept");
    assert!(!files.keys().any(|name| name.contains(".writing") || name.ends_with(".part")), "{:?}", files.keys());

    // the stored adapter gives the stored logits
    let model = Decoder::load(&fixture.path("base")).unwrap();
    let adapter = peft::load(&fixture.path("run/adapter"), model.config()).unwrap();
    let reference: ReferenceLogits = json_of(&files["reference-logits.json"]);
    let logits = model.advance(&mut model.new_cache(), &reference.tokens, Some(&adapter)).unwrap();
    assert_eq!(logits, reference.logits);

    // evaluating again gives the same, with and without a live model beside it
    let mut job = fixture.job("run");
    let again = fixture.trainer("evaluate", &fixture.write_job("again.json", &job)).output().unwrap();
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(json_of::<Evaluation>(&again.stdout), evaluation);
    job["live_adapter"] = json!(fixture.path("run/adapter"));
    let live = fixture.trainer("evaluate", &fixture.write_job("live.json", &job)).output().unwrap();
    let live: Evaluation = json_of(&live.stdout);
    assert_eq!((live.live, live.improvement_over_live_percent.unwrap().value), (Some(evaluation.tuned), 0.0));

    // what is served gives the logits of what was trained
    let job = json!({"run": "run-0123456789ab", "project": "handbook", "adapter": fixture.path("run/adapter"),
        "base": {"name": "tunesmith-mini", "folder": fixture.path("base")}});
    std::fs::write(fixture.path("serve.json"), job.to_string()).unwrap();
    let mut serving = fixture.trainer("serve", &fixture.path("serve.json"));
    serving.args(["--listen", "127.0.0.1:0"]);
    let mut serving = Running::start(serving);
    let address = serving.wait_for("serving", None)["address"].as_str().unwrap().to_owned();
    assert_eq!(ureq::get(&format!("http://{address}/ping")).call().unwrap().status(), 200);
    let body = json!({"kind": "logits", "tokens": reference.tokens}).to_string();
    let answer =
        ureq::post(&format!("http://{address}/invocations")).send_string(&body).unwrap().into_string().unwrap();
    let served: Value = json_of(answer.as_bytes());
    assert_eq!(json_of::<Vec<f32>>(served["logits"].to_string().as_bytes()), reference.logits);
    serving.signal("TERM");
    assert_eq!(serving.end().code(), Some(0), "{}", serving.seen);

    // the merged model needs no adapter to say the same
    for format in ["peft-adapter", "merged-safetensors"] {
        let report = export(&fixture, "run", format, true);
        assert!(report.verified && report.mean_kl <= report.mean_kl_limit, "{report:?}");
    }
    assert_eq!(fixture.files("run-peft-adapter"), fixture.files("run/adapter"));
    let merged = Decoder::load(&fixture.path("run-merged-safetensors")).unwrap();
    assert!(Tokenizer::load(&fixture.path("run-merged-safetensors")).unwrap().chat_template().is_ok());
    let logits = merged.advance(&mut merged.new_cache(), &reference.tokens, None).unwrap();
    let difference = logits.iter().zip(&reference.logits).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(difference < 0.05, "{difference}: more than rounding to f16 explains");

    // as do the files of llama.cpp, the less the fewer bits they have; nothing stays in the cache
    let reports = ["gguf-f16", "gguf-q8_0", "gguf-q4_k"].map(|format| export(&fixture, "run", format, true));
    assert!(reports.is_sorted_by(|a, b| a.mean_kl < b.mean_kl && a.same_top >= b.same_top), "{reports:?}");
    let files = fixture.files("run-gguf-q4_k");
    assert_eq!(files.keys().collect::<Vec<_>>(), ["Modelfile", "model.gguf"]);
    let (modelfile, tokenizer) = (text(&files["Modelfile"]), Tokenizer::load(&fixture.path("base")).unwrap());
    let template = "TEMPLATE \"\"\"{{ range .Messages }}{{ if eq .Role \"system\" }}<|system|>{{ .Content }}<|end|>";
    assert!(modelfile.contains(template) && modelfile.ends_with("PARAMETER num_ctx 1024\n"), "{modelfile}");
    for id in tokenizer.terminators() {
        let stop = format!("PARAMETER stop {:?}\n", tokenizer.token(*id).unwrap());
        assert!(modelfile.contains(&stop), "{stop} is not in {modelfile}");
    }
    assert!(fixture.files("cache").is_empty(), "{:?}", fixture.files("cache").keys());
}

/// Writes `{run}-{format}` and returns what the command says.
fn export(fixture: &Fixture, run: &str, format: &str, verify: bool) -> ExportReport {
    let mut job = json!({"base": {"name": "tunesmith-mini", "folder": fixture.path("base")}, "format": format,
        "adapter": fixture.path(run).join("adapter"), "output": fixture.path(&format!("{run}-{format}"))});
    if verify {
        job["dataset"] = json!(fixture.path("dataset"));
        job["sequence_length"] = json!(96);
    }
    std::fs::write(fixture.path("export.json"), job.to_string()).unwrap();
    let mut command = fixture.trainer("export", &fixture.path("export.json"));
    let done = command.args(verify.then_some("--verify")).output().unwrap();
    assert!(done.status.success(), "{format}: {}", text(&done.stderr));
    let report: ExportReport = json_of(&done.stdout);
    println!(
        "{format}: {} nats per token over {} tokens, the same token first for {}; perplexity {} and {}",
        report.mean_kl, report.tokens, report.same_top, report.trained_perplexity, report.exported_perplexity
    );
    report
}

#[test]
fn verifying_needs_a_dataset_and_adapters_of_other_bases_are_refused() {
    let fixture = Fixture::new();
    let refused = |change: fn(&Fixture, &mut Value), arguments: &[&str]| {
        let mut job = json!({"base": {"name": "tunesmith-mini", "folder": fixture.path("base")}, "format": "gguf-f16",
            "adapter": fixture.path("other"), "output": fixture.path("out")});
        change(&fixture, &mut job);
        std::fs::write(fixture.path("export.json"), job.to_string()).unwrap();
        let done = fixture.trainer("export", &fixture.path("export.json")).args(arguments).output().unwrap();
        assert_eq!(done.status.code(), Some(1), "{}", text(&done.stderr));
        assert!(!fixture.path("out").exists(), "nothing is half-written");
        text(&done.stderr).lines().last().unwrap().to_owned()
    };
    let error = refused(|_, _| {}, &["--verify"]);
    assert!(error.contains("InvalidInput") && error.contains("add \\\"dataset\\\""), "{error}");
    let error = refused(|_, _| {}, &[]);
    assert!(error.contains("NotFound") && error.contains("adapter"), "{error}");
    // an adapter of a model with wider matrices, and one of rank 0
    let goldens = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/goldens/gqa-tied/train/final");
    std::fs::create_dir(fixture.path("other")).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(goldens.join(name), fixture.path("other").join(name)).unwrap();
    }
    let error = refused(|_, _| {}, &[]);
    assert!(
        error.contains("has shape") && error.contains("load the base model that adapter_config.json names"),
        "{error}"
    );
    let config = fixture.path("other/adapter_config.json");
    let mut json: Value = json_of(&std::fs::read(&config).unwrap());
    json["r"] = json!(0);
    std::fs::write(&config, json.to_string()).unwrap();
    let error = refused(|_, _| {}, &[]);
    assert!(error.contains("rank = 0"), "{error}");
    let error = refused(|fixture, _| std::fs::remove_file(fixture.path("base/tokenizer.json")).unwrap(), &[]);
    assert!(error.contains("UnknownBaseModel") && error.contains("tokenizer.json is missing"), "{error}");
}

#[test]
fn every_method_trains_and_exports_a_merged_model_and_adalora_resumes_its_budget() {
    let fixture = Fixture::new();
    for (method, peft_type) in [("rslora", "LORA"), ("dora", "LORA"), ("adalora", "ADALORA"), ("ia3", "IA3")] {
        let mut job = fixture.job(method);
        job["training"]["method"] = json!(method);
        job["training"]["max_steps"] = json!(6);
        let path = fixture.write_job(&format!("{method}.json"), &job);
        let done = fixture.trainer("train", &path).output().unwrap();
        assert!(done.status.success(), "{method}: {}", text(&done.stderr));
        let config: Value = json_of(&std::fs::read(fixture.path(method).join("adapter/adapter_config.json")).unwrap());
        assert_eq!(config["peft_type"], peft_type);
        assert_eq!(config["use_dora"] == true, method == "dora");

        // without its last checkpoint it goes on from the one before, to the same end
        if method == "adalora" {
            let whole = fixture.files(method);
            std::fs::remove_file(fixture.path(method).join("checkpoints/6/DONE")).unwrap();
            let again = fixture.trainer("train", &path).output().unwrap();
            assert!(again.status.success(), "{}", text(&again.stderr));
            assert_eq!(json_of::<TrainReport>(&again.stdout).resumed_from, Some(4));
            for name in ["adapter/adapter_model.safetensors", "checkpoints/6/rank-allocator.safetensors"] {
                assert_eq!(fixture.files(method)[name], whole[name], "{name}");
            }
        }

        // the export itself compares the written model with base and adapter
        for format in ["merged-safetensors", "gguf-f16"] {
            let report = export(&fixture, method, format, false);
            assert!(!report.verified && report.tokens > 10, "{method} {report:?}");
        }
        assert!(Decoder::load(&fixture.path(&format!("{method}-merged-safetensors"))).is_ok());
    }
}

/// Done-when of training: the result does not depend on how often the run was interrupted.
#[test]
fn killed_and_terminated_runs_end_with_the_bytes_of_an_uninterrupted_one() {
    let fixture = Fixture::new();
    let whole = fixture.train("whole");
    assert!(whole.status.success(), "{}", text(&whole.stderr));

    let job = fixture.write_job("broken.json", &fixture.job("broken"));
    let mut killed = Running::start(fixture.trainer("train", &job));
    killed.wait_for("checkpoint", Some(4));
    killed.signal("KILL");
    assert!(!killed.end().success());

    let mut terminated = Running::start(fixture.trainer("train", &job));
    let resumed = terminated.wait_for("resuming", None)["step"].as_u64().unwrap();
    assert!(resumed >= 4, "{resumed}");
    terminated.wait_for("checkpoint", None);
    terminated.signal("TERM");
    assert_eq!(terminated.end().code(), Some(143), "{}", terminated.seen);
    assert!(terminated.seen.contains("the same command goes on from there"), "{}", terminated.seen);

    let last = fixture.trainer("train", &job).output().unwrap();
    assert!(last.status.success(), "{}", text(&last.stderr));
    let report: TrainReport = json_of(&last.stdout);
    assert!(report.resumed_from.is_some_and(|step| u64::from(step) > resumed) && report.steps == 18, "{report:?}");

    let (whole, broken) = (fixture.files("whole"), fixture.files("broken"));
    for name in
        ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "reference-logits.json", "evaluation.json"]
    {
        assert_eq!(whole[name], broken[name], "{name}");
    }
    let losses = |files: &std::collections::BTreeMap<String, Vec<u8>>| -> Vec<Value> {
        text(&files["metrics.jsonl"]).lines().map(|l| json_of::<Value>(l.as_bytes())["loss"].clone()).collect()
    };
    assert_eq!(losses(&whole), losses(&broken));

    // a finished run started again changes nothing
    let again = fixture.trainer("train", &job).output().unwrap();
    assert_eq!(json_of::<TrainReport>(&again.stdout).resumed_from, Some(18));
    assert_eq!(
        fixture.files("broken")["adapter/adapter_model.safetensors"],
        whole["adapter/adapter_model.safetensors"]
    );
}

#[test]
fn a_damaged_checkpoint_is_left_out_for_the_one_before() {
    let fixture = Fixture::new();
    let whole = fixture.train("run");
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    let before = fixture.files("run");
    for name in ["adapter", "evaluation.json"] {
        let path = fixture.path("run").join(name);
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    let optimizer = fixture.path("run/checkpoints/18/optimizer.safetensors");
    let mut bytes = std::fs::read(&optimizer).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&optimizer, bytes).unwrap();
    let again = fixture.train("run");
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(json_of::<TrainReport>(&again.stdout).resumed_from, Some(16));
    assert_eq!(fixture.files("run")["adapter/adapter_model.safetensors"], before["adapter/adapter_model.safetensors"]);
}

#[test]
fn wrong_jobs_are_refused_by_name_before_anything_is_computed() {
    let fixture = Fixture::new();
    let refused = |name: &str, change: fn(&Fixture, &mut Value)| {
        let mut job = fixture.job("wrong");
        change(&fixture, &mut job);
        let path = fixture.path("wrong.json");
        std::fs::write(&path, job.to_string()).unwrap();
        let output = fixture.trainer("train", &path).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}");
        let log = text(&output.stderr);
        let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!(last["name"], name, "{log}");
        last["message"].as_str().unwrap().to_owned()
    };
    let message = refused("InvalidInput", |_, job| job["trainning"] = json!({}));
    assert!(message.contains("trainning"), "{message}");
    let message = refused("UnknownBaseModel", |fixture, job| job["base"]["folder"] = json!(fixture.path("nothing")));
    assert!(message.contains("models/tunesmith-mini/"), "{message}");
    let message = refused("NotFound", |fixture, job| job["dataset"] = json!(fixture.path("nothing")));
    assert!(message.contains("train.jsonl.zst"), "{message}");
    let message = refused("TrainingFailed", |_, job| job["training"]["sequence_length"] = json!(100_000));
    assert!(message.contains("sequence_length") && message.contains("100000"), "{message}");
    let message = refused("TrainingDiverged", |_, job| {
        job["training"]["learning_rate"] = json!(1e30);
        job["training"]["clip_norm"] = json!(1e30);
    });
    assert!(message.contains("learning_rate"), "{message}");
}

#[test]
fn a_folder_of_another_run_is_not_continued_with_other_settings() {
    let fixture = Fixture::new();
    let mut job = fixture.job("run");
    job["training"]["max_steps"] = json!(2);
    let first = fixture.trainer("train", &fixture.write_job("first.json", &job)).output().unwrap();
    assert!(first.status.success(), "{}", text(&first.stderr));
    job["training"]["rank"] = json!(8);
    let second = fixture.trainer("train", &fixture.write_job("second.json", &job)).output().unwrap();
    let log = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{log}");
    assert!(log.contains("rank 4 instead of 8"), "{log}");
}

#[test]
fn a_quantised_base_is_trained_evaluated_and_served_alike_and_merged_as_it_is() {
    let fixture = Fixture::new();
    let mut job = fixture.job("qlora");
    for (key, value) in [("quantization", json!("nf4")), ("recompute", json!("layers")), ("max_steps", json!(6))] {
        job["training"][key] = value;
    }
    let done = fixture.trainer("train", &fixture.write_job("qlora.json", &job)).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let files = fixture.files("qlora");
    assert_eq!(json_of::<Value>(&files["adapter/base_quantization.json"]), json!({"base_quantization": "nf4"}));
    let reference: ReferenceLogits = json_of(&files["reference-logits.json"]);

    // what is served gives the logits of what was trained, which are not those of the base model as it is in its files
    let served = ServedModel::load("handbook", &fixture.path("base"), Some(&fixture.path("qlora/adapter"))).unwrap();
    let logits = served.advance(&mut served.new_cache(), &reference.tokens, Weights::Tuned).unwrap();
    assert_eq!(logits, reference.logits);
    let plain = Decoder::load(&fixture.path("base")).unwrap();
    let adapter = peft::load(&fixture.path("qlora/adapter"), plain.config()).unwrap();
    let unquantised = plain.advance(&mut plain.new_cache(), &reference.tokens, Some(&adapter)).unwrap();
    assert_ne!(unquantised, reference.logits);

    let export = json!({"base": {"name": "tunesmith-mini", "folder": fixture.path("base")}, "adapter": fixture.path("qlora/adapter"),
        "format": "merged-safetensors", "output": fixture.path("qlora-merged")});
    let done = fixture.trainer("export", &fixture.write_export("qlora-merged.json", &export)).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert_eq!(
        json_of::<Value>(&done.stdout)["base_quantization"],
        "nf4",
        "the exported model is not the evaluated one"
    );
    assert!(text(&done.stderr).contains("trained and evaluated on a quantised base"), "{}", text(&done.stderr));
    let merged = Decoder::load(&fixture.path("qlora-merged")).unwrap();
    let logits = merged.advance(&mut merged.new_cache(), &reference.tokens, None).unwrap();
    let difference = logits.iter().zip(&unquantised).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(difference < 0.05, "{difference}: more than rounding to f16 explains");
}

#[test]
fn every_adapter_is_evaluated_on_the_base_as_it_was_trained_on_it() {
    let fixture = Fixture::new();
    let mut job = fixture.job("qlora");
    (job["training"]["quantization"], job["training"]["max_steps"]) = (json!("nf4"), json!(2));
    let done = fixture.trainer("train", &fixture.write_job("qlora.json", &job)).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let quantised: Evaluation = json_of(&fixture.files("qlora")["evaluation.json"]);

    // on the base as it is in its files nobody serves it
    job["training"]["quantization"] = json!("none");
    let refused = fixture.trainer("evaluate", &fixture.write_job("qlora-on-f32.json", &job)).output().unwrap();
    let log = text(&refused.stderr);
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!((refused.status.code(), &last["name"]), (Some(1), &json!("InvalidInput")), "{log}");
    let message = last["message"].as_str().unwrap();
    assert!(message.contains("quantization nf4, the job says none") && message.contains("= \"nf4\""), "{message}");

    // beside an adapter of another form it is scored as when it was trained
    let plain = Decoder::load(&fixture.path("base")).unwrap();
    let fresh = Adapter::new(AdapterConfig::lora(2, 4.0), &plain, 1).unwrap();
    peft::save(&fresh, &fixture.path("plain/adapter"), "tunesmith-mini").unwrap();
    let mut job = fixture.job("plain");
    job["live_adapter"] = json!(fixture.path("qlora/adapter"));
    let done = fixture.trainer("evaluate", &fixture.write_job("plain.json", &job)).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let evaluation: Evaluation = json_of(&done.stdout);
    assert_ne!(evaluation.base, quantised.base, "the base of this run is not quantised");
    assert_eq!(evaluation.live, Some(quantised.tuned), "the live model is");
}

#[test]
fn a_live_adapter_of_another_base_is_left_out_and_stops_no_training() {
    let fixture = Fixture::new();
    let goldens = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/goldens/gqa-tied/train/final");
    let mut job = fixture.job("run");
    job["live_adapter"] = json!(goldens);
    let done = fixture.trainer("train", &fixture.write_job("run.json", &job)).output().unwrap();
    let log = text(&done.stderr);
    assert!(done.status.success() && log.contains("the live model is left out of the evaluation"), "{log}");
    let written = std::fs::read(fixture.path("run/evaluation.json")).unwrap();
    assert_eq!(json_of::<Evaluation>(&written).live, None);
}

#[test]
fn a_run_that_would_not_fit_into_memory_is_refused_with_the_remedy() {
    let fixture = Fixture::new();
    let mut job = fixture.job("small");
    for (limit, remedy) in [(1, "quantization nf4 would need"), (25, "evaluation needs most")] {
        job["training"]["memory_limit_mb"] = json!(limit);
        let done = fixture.trainer("train", &fixture.write_job("small.json", &job)).output().unwrap();
        let said = text(&done.stderr);
        assert!(
            !done.status.success() && said.contains(remedy) && said.contains(&format!("limit is {limit} MB")),
            "{said}"
        );
        assert!(!fixture.path("small").exists(), "nothing was written");
    }
}
