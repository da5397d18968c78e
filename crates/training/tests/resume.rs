//! Resuming continues bit for bit; damage and foreign checkpoints are recognised.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{config, dataset, goldens, in_pool, model, run};
use tunesmith_model::{
    AdaLoraConfig, AdapterConfig, Decoder, Ia3Config, LoraConfig, Message, Method, Module, Tokenizer,
};
use tunesmith_training::{
    Dataset, Example, Sequence, Tokenisation, Trainer, TrainingConfig, TrainingError, checkpoint,
};

/// Every file of a checkpoint that has content, with its name.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let manifest: checkpoint::Manifest =
        serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let names = manifest.files.into_keys().chain(["manifest.json".to_owned()]);
    names.map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

/// Ten steps of every method: LoRA, rsLoRA with LoRA+, DoRA, AdaLoRA (saved while its budget falls), IA³.
fn methods() -> Vec<(&'static str, TrainingConfig)> {
    let with = |method, target_modules: &[Module]| TrainingConfig {
        adapter: AdapterConfig { method, target_modules: target_modules.to_vec() },
        ..config()
    };
    let lora = |use_rslora, use_dora| Method::Lora(LoraConfig { rank: 4, alpha: 8.0, use_rslora, use_dora });
    let ada = AdaLoraConfig { init_r: 6, target_r: 2, tinit: 1, tfinal: 2, delta_t: 2, ..AdaLoraConfig::for_steps(10) };
    let ia3 = Method::Ia3(Ia3Config { feedforward_modules: vec![Module::Down] });
    vec![
        ("lora", with(lora(false, false), &Module::LLAMA)),
        ("rslora", TrainingConfig { loraplus_lr_ratio: 4.0, ..with(lora(true, false), &[Module::Q, Module::V]) }),
        ("dora", with(lora(false, true), &Module::LLAMA)),
        ("adalora", with(Method::AdaLora(ada), &Module::LLAMA)),
        ("ia3", with(ia3, &[Module::K, Module::V, Module::Down])),
    ]
}

#[test]
fn ten_steps_equal_five_saved_resumed_and_five_more_at_any_thread_count() {
    for (method, config) in methods() {
        let folder = tempfile::tempdir().unwrap();
        let (straight, broken) = (folder.path().join("straight"), folder.path().join("broken"));
        let (reports, straight) = in_pool(1, || {
            let mut trainer = Trainer::new(config.clone(), model(), dataset(1)).unwrap();
            let reports = run(&mut trainer, 10);
            (reports, trainer.save(&straight).unwrap())
        });
        let first = in_pool(2, || {
            let mut trainer = Trainer::new(config.clone(), model(), dataset(1)).unwrap();
            let first = run(&mut trainer, 5);
            trainer.save(&broken).unwrap();
            first
        });
        let (second, broken) = in_pool(3, || {
            let from = checkpoint::latest(&broken).unwrap().unwrap();
            let mut trainer = Trainer::resume(&from, model(), dataset(1)).unwrap();
            let second = run(&mut trainer, 5);
            assert!(matches!(trainer.step(), Err(TrainingError::Complete { total: 10 })));
            (second, trainer.save(&broken).unwrap())
        });
        assert_eq!([first, second].concat(), reports, "{method}: losses, norms, learning rates and data position");
        assert!(files(&straight) == files(&broken), "{method}: adapter, moments, state and manifest to the byte");
        assert!(reports[2].loss.is_finite() && reports[9].epoch > 3.0, "several epochs were crossed");
        assert_eq!(reports[0].regulariser > 0.0, method == "adalora");
        assert_eq!(broken.join("rank-allocator.safetensors").exists(), method == "adalora");
    }
}

#[test]
fn adalora_ends_with_its_target_ranks_and_a_resume_needs_its_importance() {
    let (_, config) = methods().into_iter().find(|(method, _)| *method == "adalora").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(config.clone(), model(), dataset(1)).unwrap();
    run(&mut trainer, 5);
    let saved = trainer.save(folder.path()).unwrap();
    run(&mut trainer, 5);
    trainer.save_adapter(&folder.path().join("adapter"), "base").unwrap();
    let stored = tunesmith_model::peft::load(&folder.path().join("adapter"), model().config()).unwrap();
    let ranks =
        stored.parameters().into_iter().filter(|(name, _)| name.ends_with("lora_E")).map(|(_, e)| e.elem_count());
    assert_eq!(ranks.sum::<usize>(), 2 * 14, "two ranks for each of the fourteen modules on average");
    // the pruned adapter computes the same
    let logits = |adapter| model().logits(&[1, 2, 3, 4, 5], Some(adapter)).unwrap().to_vec2::<f32>().unwrap().concat();
    let difference = logits(&stored).into_iter().zip(logits(trainer.adapter())).map(|(a, b)| (a - b).abs());
    assert!(difference.fold(0.0f32, f32::max) < 1e-5);
    fs::remove_file(saved.join("rank-allocator.safetensors")).unwrap();
    let error = Trainer::resume(&saved, model(), dataset(1)).err().unwrap();
    assert!(matches!(error, TrainingError::CheckpointCorrupt { .. }), "{error}");
}

#[test]
fn loss_falls_and_the_adapter_moves() {
    let mut trainer =
        Trainer::new(TrainingConfig { max_steps: Some(60), learning_rate: 1e-2, ..config() }, model(), dataset(1))
            .unwrap();
    let nll = |trainer: &Trainer| trainer.evaluate(&dataset(1)).unwrap().iter().map(|e| e.nll).sum::<f64>();
    let before = nll(&trainer);
    run(&mut trainer, 60);
    let after = nll(&trainer);
    assert!(after < 0.7 * before, "from {before} to {after}");
}

#[test]
fn accumulation_is_exact_for_unequal_lengths() {
    let adapters = [(4, 1), (2, 2), (1, 4)].map(|(batch_size, accumulation)| {
        let config = TrainingConfig { batch_size, accumulation, ..config() };
        let mut trainer = Trainer::new(config, model(), dataset(1)).unwrap();
        run(&mut trainer, 2).into_iter().map(|report| (report.loss, report.grad_norm)).collect::<Vec<_>>()
    });
    for other in &adapters[1..] {
        for (a, b) in adapters[0].iter().zip(other) {
            assert!((a.0 / b.0 - 1.0).abs() < 1e-5 && (a.1 / b.1 - 1.0).abs() < 1e-4, "{a:?} {b:?}");
        }
    }
}

#[test]
fn unfinished_and_damaged_checkpoints_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(config(), model(), dataset(1)).unwrap();
    let mut saved = Vec::new();
    for _ in 0..3 {
        run(&mut trainer, 1);
        saved.push(trainer.save(folder.path()).unwrap());
    }
    assert_eq!(checkpoint::latest(folder.path()).unwrap().unwrap(), saved[2]);
    fs::remove_file(saved[2].join(checkpoint::DONE)).unwrap();
    assert_eq!(checkpoint::latest(folder.path()).unwrap().unwrap(), saved[1], "without DONE it does not count");
    assert!(matches!(Trainer::resume(&saved[2], model(), dataset(1)), Err(TrainingError::CheckpointCorrupt { .. })));
    let path = saved[1].join("optimizer.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = Trainer::resume(&saved[1], model(), dataset(1)).err().unwrap();
    assert!(matches!(&error, TrainingError::CheckpointCorrupt { path: found, .. } if *found == path), "{error}");
    fs::remove_file(saved[0].join("state.json")).unwrap();
    assert!(matches!(Trainer::resume(&saved[0], model(), dataset(1)), Err(TrainingError::CheckpointCorrupt { .. })));
    assert_eq!(checkpoint::prune(folder.path(), 1).unwrap(), [saved[0].clone()]);
    assert!(!saved[0].exists() && saved[1].exists());
}

#[test]
fn other_data_and_another_base_are_refused_on_resume() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::new(config(), model(), dataset(1)).unwrap();
    run(&mut trainer, 1);
    let saved = trainer.save(folder.path()).unwrap();
    assert!(matches!(Trainer::resume(&saved, model(), dataset(2)), Err(TrainingError::DatasetMismatch { .. })));
    let other = Arc::new(Decoder::load(&goldens("llama3-untied")).unwrap());
    assert!(Trainer::resume(&saved, other, dataset(1)).is_err());
    // same shapes, other weights
    let changed = tempfile::tempdir().unwrap();
    fs::copy(goldens("gqa-tied/config.json"), changed.path().join("config.json")).unwrap();
    let mut bytes = fs::read(goldens("gqa-tied/model.safetensors")).unwrap();
    let at = bytes.len() - 8000;
    bytes[at..].fill(0);
    fs::write(changed.path().join("model.safetensors"), bytes).unwrap();
    let changed = Arc::new(Decoder::load(changed.path()).unwrap());
    assert!(matches!(Trainer::resume(&saved, changed, dataset(1)), Err(TrainingError::BaseModelMismatch { .. })));
}

#[test]
fn what_cannot_be_trained_is_refused_before_the_first_step() {
    let refused = |config: TrainingConfig| Trainer::new(config, model(), dataset(1)).err().unwrap().to_string();
    assert!(refused(TrainingConfig { adapter: AdapterConfig::lora(0, 32.0), ..config() }).contains("rank"));
    let named = |wanted: &str| methods().into_iter().find(|(method, _)| *method == wanted).unwrap().1;
    let short = TrainingConfig { max_steps: Some(9), ..named("adalora") };
    assert!(refused(short).contains("total_step = 10, the run has 9 steps"));
    assert!(refused(TrainingConfig { loraplus_lr_ratio: 2.0, ..named("ia3") }).contains("loraplus_lr_ratio = 2"));
    assert!(refused(TrainingConfig { learning_rate: f64::NAN, ..config() }).contains("learning_rate"));
    assert!(refused(TrainingConfig { sequence_length: 512, ..config() }).contains("256 positions"));
    assert!(refused(TrainingConfig { sequence_length: 10, ..config() }).contains("sequence_length 10"));
    let foreign = Sequence { ids: vec![1, 160], counted: vec![false, true], example: 0 };
    let foreign = Dataset::from_sequences(vec![foreign]).unwrap();
    let trainer = Trainer::new(config(), model(), dataset(1)).unwrap();
    assert!(trainer.check_dataset(&foreign).is_err() && trainer.check_dataset(&dataset(2)).is_ok());
    assert!(Trainer::new(config(), model(), foreign).err().unwrap().to_string().contains("token id 160"));
}

#[test]
fn a_diverged_run_names_step_and_batch_and_keeps_the_adapter() {
    let config = TrainingConfig { warmup_ratio: 0.0, learning_rate: 1e30, clip_norm: 1e30, ..config() };
    let mut trainer = Trainer::new(config, model(), dataset(1)).unwrap();
    let error = loop {
        if let Err(error) = trainer.step() {
            break error;
        }
    };
    let done = trainer.num_steps_done();
    match error {
        TrainingError::NonFiniteLoss { step, examples, .. }
        | TrainingError::NonFiniteGradient { step, examples, .. } => {
            assert_eq!(step, done + 1);
            assert!((1..=4).contains(&examples.len()) && examples.iter().all(|example| *example < 11), "{examples:?}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_loss_that_climbs_and_stays_finite_ends_the_run_too() {
    let learns = TrainingConfig { max_steps: Some(120), learning_rate: 1e-2, ..config() };
    let mut trainer = Trainer::new(learns, model(), dataset(1)).unwrap();
    let learnt = run(&mut trainer, 120)[119].loss;
    let adapter = trainer.adapter().snapshot().unwrap();
    let forgets = TrainingConfig { warmup_ratio: 0.5, learning_rate: 3.0, max_steps: Some(400), ..config() };
    let mut trainer = Trainer::with_adapter(forgets, model(), dataset(1), adapter).unwrap();
    let mut losses = Vec::new();
    let error = loop {
        match trainer.step() {
            Ok(report) => losses.push(report.loss),
            Err(error) => break error,
        }
    };
    let TrainingError::Diverged { step, from, to, examples } = &error else {
        panic!("{error}, from {learnt}: {losses:?}")
    };
    println!("from {learnt}: {error}");
    assert!(*step < 120 && to > from, "{error}");
    assert!((3..=4).contains(&examples.len()), "the last step of an epoch has three: {examples:?}");
}

#[test]
fn a_tensor_that_does_not_move_is_named_after_ten_steps() {
    // smaller than f32 can add to A; B starts at zero and can take anything
    let config = TrainingConfig { max_steps: Some(30), learning_rate: 1e-13, ..config() };
    let mut trainer = Trainer::new(config, model(), dataset(1)).unwrap();
    let error = loop {
        if let Err(error) = trainer.step() {
            break error;
        }
    };
    let TrainingError::AdapterUnmoved { step, names } = &error else { panic!("{error}") };
    // the warm-up starts with a learning rate of 0, which does not count
    assert_eq!(*step, 11);
    assert_eq!(names.len(), 14, "A of seven projections in two layers: {names:?}");
    assert!(names.iter().all(|name| name.ends_with("lora_A.weight")), "{names:?}");
}

#[test]
fn conversations_without_answers_are_an_error_and_long_ones_are_named() {
    let tokenizer = Tokenizer::load(&goldens("chat/marked")).unwrap();
    let chat =
        |turns: &[(&str, &str)]| Example::Chat { messages: turns.iter().map(|(r, c)| Message::new(r, c)).collect() };
    let question = chat(&[("user", "anyone?")]);
    let error = Dataset::build(&tokenizer, std::slice::from_ref(&question), &Tokenisation::of_length(64)).unwrap_err();
    assert!(matches!(error, TrainingError::AllLabelsMasked { num_examples: 1, .. }), "{error}");
    let answered = chat(&[("user", "one"), ("assistant", "two")]);
    let data = Dataset::build(&tokenizer, &[question, answered.clone()], &Tokenisation::of_length(64)).unwrap();
    assert_eq!((data.len(), data.num_examples, data.num_unusable), (1, 2, 1));
    let last =
        data.sequences()[0].ids.iter().zip(&data.sequences()[0].counted).rfind(|(_, counted)| **counted).unwrap();
    assert_eq!(Some(*last.0), tokenizer.eos(), "the terminator is inside the loss");
    let error = Dataset::build(&tokenizer, &[answered], &Tokenisation::of_length(4)).unwrap_err();
    assert!(matches!(error, TrainingError::SequenceTooLong { example: 0, limit: 4, .. }), "{error}");
    assert!(matches!(
        Dataset::build(&tokenizer, &[], &Tokenisation::of_length(4)),
        Err(TrainingError::EmptyDataset { num_examples: 0 })
    ));
}

#[test]
fn texts_end_with_the_end_token_and_every_token_counts_once() {
    let tokenizer = Tokenizer::load(&goldens("chat/marked")).unwrap();
    let texts = ["a longer text about leave and days", "  "].map(|text| Example::Text { text: text.to_owned() });
    let whole = Dataset::build(&tokenizer, &texts, &Tokenisation::of_length(512)).unwrap();
    let split = Dataset::build(&tokenizer, &texts, &Tokenisation::of_length(6)).unwrap();
    assert_eq!(whole.num_unusable, 1);
    assert_eq!(whole.sequences()[0].ids.last().copied(), tokenizer.eos());
    let targets = |data: &Dataset| data.sequences().iter().map(Sequence::num_targets).sum::<usize>();
    assert_eq!(targets(&whole), whole.num_tokens() - 1);
    assert_eq!(targets(&split), targets(&whole));
}
