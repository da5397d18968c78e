//! Losses, gradients and steps of whole models on every device.

use super::{Device, devices, emulated};
use crate::adapters::testing::every_method;
use crate::adapters::{Adapter, AdapterConfig};
use crate::batch::Batch;
use crate::config::ModelConfig;
use crate::cuda::backend::Stored;
use crate::cuda::emulator::{Emulator, Order};
use crate::decoder::tests::{batch, busy_adapter, model, quantised_model, variants};
use crate::decoder::{Decoder, LossGradients, Recompute};
use crate::error::ModelError;
use crate::frozen::Quantization;
use crate::ops::host;

fn on(mut model: Decoder, device: &Device) -> Decoder {
    model.add_device(device.gpu.clone()).unwrap();
    model
}

fn gradients(result: &LossGradients) -> Vec<Vec<f32>> {
    result.gradients.iter().map(|gradient| host(gradient).unwrap().to_vec()).collect()
}

/// Distance of two vectors, relative to the second.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = length(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    difference / length(&mut b.iter().map(|b| f64::from(*b)))
}

/// `method` is `lora` on every module, or `rslora` on some.
fn compare(case: &str, device: &Device, config: ModelConfig, quantization: Quantization, method: &str) {
    let made = || match quantization {
        Quantization::None => model(config.clone()),
        other => quantised_model(config.clone(), other),
    };
    let (host_model, device_model) = (made(), on(made(), device));
    let (_, adapter) = every_method(&host_model).into_iter().find(|(name, _)| *name == method).unwrap();
    let wanted = host_model.loss_and_gradients(&batch(), &adapter, 0.25, Recompute::Nothing).unwrap();
    let got = device_model.loss_and_gradients(&batch(), &adapter, 0.25, Recompute::Nothing).unwrap();
    let (losses, tensors) = if device.stored == Stored::F32 { (3e-6, 1e-5) } else { (2e-2, 8e-2) };
    assert_eq!((got.num_targets, got.gradients.len()), (wanted.num_targets, wanted.gradients.len()));
    let off = distance(&got.row_losses, &wanted.row_losses);
    assert!(off <= losses, "{case} {:?}: losses are off by {off}", device.stored);
    let parameters = adapter.parameters();
    for (((name, _), got), wanted) in parameters.iter().zip(gradients(&got)).zip(gradients(&wanted)) {
        let off = distance(&got, &wanted);
        assert!(off <= tensors, "{case} {:?}: {name} is off by {off}", device.stored);
    }
    let again = device_model.loss_and_gradients(&batch(), &adapter, 0.25, Recompute::Layers).unwrap();
    assert!(gradients(&again) == gradients(&got), "{case}: recomputing must not change a bit");
    assert_eq!(again.row_losses, got.row_losses);
    assert_eq!(device_model.row_losses(&batch(), Some(&adapter)).unwrap(), got.row_losses);
    let base = (device_model.row_losses(&batch(), None).unwrap(), host_model.row_losses(&batch(), None).unwrap());
    assert!(distance(&base.0, &base.1) < losses, "{case} without adapter");
}

#[test]
fn losses_and_gradients_equal_the_processors_in_every_variant() {
    for device in devices(16) {
        for (variant, config) in variants() {
            compare(variant, &device, config, Quantization::None, "lora");
        }
        let untied = ModelConfig { tie_word_embeddings: false, ..ModelConfig::tiny() };
        compare("untied", &device, untied, Quantization::None, "lora");
        compare("some modules", &device, ModelConfig::tiny(), Quantization::None, "rslora");
    }
}

#[test]
fn a_base_in_nf4_is_trained_on_as_on_the_processor() {
    for device in devices(16) {
        let config = ModelConfig { intermediate_size: 64, ..ModelConfig::tiny() };
        let few = Batch::new(vec![1, 7, 9, 30], vec![7, 9, 30, 2], vec![4]).unwrap();
        let models = || quantised_model(config.clone(), Quantization::Nf4);
        let (wanted, got) =
            (models().row_losses(&few, None).unwrap(), on(models(), &device).row_losses(&few, None).unwrap());
        let tolerance = if device.stored == Stored::F32 { 1e-5 } else { 4e-2 };
        assert!(distance(&got, &wanted) < tolerance, "{got:?}, wanted {wanted:?}");
        compare("nf4", &device, config, Quantization::Nf4, "lora");
        let mut other =
            quantised_model(ModelConfig { intermediate_size: 64, ..ModelConfig::tiny() }, Quantization::Q8_0);
        let refused = other.add_device(device.gpu.clone()).unwrap_err().to_string();
        assert!(refused.contains("q8_0") && refused.contains("not computed on a GPU yet"), "{refused}");
    }
}

#[test]
fn what_has_no_kernel_the_processor_computes_and_a_base_without_kernels_is_refused() {
    for device in devices(16) {
        let (on_processor, on_device) = (model(ModelConfig::tiny()), on(model(ModelConfig::tiny()), &device));
        for (name, adapter) in every_method(&on_processor) {
            let run = |model: &Decoder| model.loss_and_gradients(&batch(), &adapter, 1.0, Recompute::Nothing).unwrap();
            let (method, has_kernels) = (&adapter.config().method, name.ends_with("lora") && name != "adalora");
            assert_eq!(on_device.smallest_card(method).is_some(), has_kernels, "{name}");
            // a device adds up in another order
            let same = gradients(&run(&on_device)) == gradients(&run(&on_processor));
            assert_eq!(same, !has_kernels, "{name}");
            let losses = |model: &Decoder| model.row_losses(&batch(), Some(&adapter)).unwrap();
            assert!(has_kernels || losses(&on_device) == losses(&on_processor), "{name}");
        }
        let adapter = busy_adapter(&on_device);
        let norms = |model: &Decoder| {
            model.loss_gradients_and_norms(&batch(), &adapter, 1.0, Recompute::Nothing).unwrap().example_norms
        };
        assert_eq!(norms(&on_device), norms(&on_processor));
        let mut wide = model(ModelConfig { head_dim: 18, ..ModelConfig::tiny() });
        assert!(matches!(wide.add_device(device.gpu.clone()), Err(ModelError::NotOnGpu { .. })));
        assert_eq!(wide.smallest_card(&adapter.config().method), None);
    }
}

#[test]
fn heads_that_shared_memory_has_no_room_for_are_refused_before_the_first_step() {
    let open = |most_shared| {
        let emulator = Emulator::open(Stored::F32, 16, Order::Forward).with_most_shared(most_shared);
        model(ModelConfig::tiny()).add_device(emulated(emulator))
    };
    // what one warp wants: 4 · (2 · 16 · 20 + 2 · 32 · 20 + 2 · 16 · 36 + 2 · 16 · 36) and 256 beside
    open(17_152).unwrap();
    let error = open(17_151).unwrap_err();
    assert!(matches!(error, ModelError::NotOnGpu { .. }), "{error}");
    let text = error.to_string();
    for part in ["heads of 16 values", "17152 bytes", "has 17151"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn several_devices_compute_a_batch_each_and_give_the_bits_of_one() {
    let batches = [
        batch(),
        Batch::new(vec![1, 7, 9, 30], vec![7, 9, 30, 2], vec![4]).unwrap(),
        Batch::new(vec![3, 4], vec![4, 5], vec![2]).unwrap(),
    ];
    let batches: Vec<&Batch> = batches.iter().collect();
    for stored in [Stored::F32, Stored::Bf16] {
        // devices of their own, which refuse each other's memory
        let device = || Device { gpu: emulated(Emulator::open(stored, 16, Order::Forward)), stored, emulated: true };
        let one = on(model(ModelConfig::tiny()), &device());
        let two = on(on(model(ModelConfig::tiny()), &device()), &device());
        let adapter = busy_adapter(&one);
        assert_eq!([&one, &two].map(|model| model.num_devices(Some(&adapter.config().method))), [1, 2]);
        let run = |model: &Decoder| -> Vec<_> {
            let results = model.losses_and_gradients(&batches, &adapter, 0.1, Recompute::Nothing).unwrap();
            results.iter().map(|result| (result.num_targets, result.row_losses.clone(), gradients(result))).collect()
        };
        assert!(run(&two) == run(&one));
        let losses = |model: &Decoder| model.row_losses_of(&batches, Some(&adapter)).unwrap();
        assert_eq!(losses(&two), losses(&one));
        // what fails on one card fails
        let far = Batch::new(vec![1, 5000], vec![2, 3], vec![2]).unwrap();
        assert!(two.row_losses_of(&[batches[0], &far], None).is_err());
    }
}

/// A fresh adapter, ten steps down the gradient.
fn ten_steps(model: &Decoder) -> (Vec<f64>, Vec<f32>) {
    let mut adapter = Adapter::new(AdapterConfig::lora(4, 8.0), model, 3).unwrap();
    let mut losses = Vec::new();
    for _ in 0..10 {
        let result = model.loss_and_gradients(&batch(), &adapter, 1.0 / 22.0, Recompute::Nothing).unwrap();
        losses.push(result.nll() / 22.0);
        let gradients = gradients(&result);
        let step = |index: usize, values: &mut [f32]| {
            values.iter_mut().zip(&gradients[index]).for_each(|(value, gradient)| *value -= 0.05 * gradient);
        };
        adapter.update(step).unwrap();
    }
    let values = adapter.parameters().iter().flat_map(|(_, tensor)| host(tensor).unwrap().to_vec()).collect();
    (losses, values)
}

#[test]
fn ten_steps_of_lora_end_where_the_processors_end() {
    let (wanted, values) = ten_steps(&model(ModelConfig::tiny()));
    assert!(wanted[9] < wanted[0] - 0.5, "{wanted:?}");
    for device in devices(16) {
        let (losses, found) = ten_steps(&on(model(ModelConfig::tiny()), &device));
        let (tolerance, off) = (if device.stored == Stored::F32 { 1e-5 } else { 5e-2 }, distance(&found, &values));
        for (got, wanted) in losses.iter().zip(&wanted) {
            assert!((got - wanted).abs() <= tolerance, "{:?}: {losses:?}, wanted {wanted:?}", device.stored);
        }
        assert!(off <= tolerance, "{:?}: the adapter is off by {off}", device.stored);
    }
}
