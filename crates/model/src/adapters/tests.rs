//! Every method through the whole model: gradients, norms of examples, threads. Names of modules.

use crate::adapters::testing::every_method;
use crate::adapters::{Adapter, Module};
use crate::batch::Batch;
use crate::decoder::tests::{batch, model, tiny_model, variants};
use crate::decoder::{Decoder, Recompute};
use crate::ops::host;
use crate::ops::testing::check_gradient;

#[test]
fn every_gradient_of_every_method_agrees_with_finite_differences_in_every_variant() {
    for (variant, config) in variants() {
        let model = model(config);
        for (method, adapter) in every_method(&model) {
            check_gradients(&model, &adapter, &format!("{variant} {method}"));
        }
    }
}

fn check_gradients(model: &Decoder, adapter: &Adapter, case: &str) {
    let result = model.loss_and_gradients(&batch(), adapter, 0.25, Recompute::Nothing).unwrap();
    let parameters = adapter.parameters();
    assert_eq!((result.gradients.len(), result.num_targets), (parameters.len(), 22), "{case}");
    for (index, (name, value)) in parameters.iter().enumerate() {
        println!("{case} {name}"); // the captured output of a failed test names the tensor
        let gradient = &result.gradients[index];
        assert_eq!(gradient.dims(), value.dims());
        assert!(host(gradient).unwrap().iter().any(|v| *v != 0.0), "no gradient");
        if case.ends_with("dora") && !name.ends_with("magnitude_vector") {
            continue; // the norm counts as a constant: linear/tests.rs holds that constant, parity compares with peft
        }
        check_gradient(value, gradient, 5e-3, |changed| {
            let mut copy = adapter.snapshot().unwrap();
            let changed = host(changed).unwrap();
            copy.update(|i, values| {
                if i == index {
                    values.copy_from_slice(&changed)
                }
            })
            .unwrap();
            0.25 * model.row_losses(&batch(), Some(&copy)).unwrap().iter().map(|l| f64::from(*l)).sum::<f64>()
        });
    }
}

#[test]
fn norms_of_each_example_equal_its_gradient_computed_alone() {
    let model = tiny_model();
    // three tokens: shorter than the rank of AdaLoRA
    let (ids, targets) = (batch().ids().to_vec(), batch().targets().to_vec());
    let lengths = vec![3, 6, 14];
    let packed = Batch::new(ids.clone(), targets.clone(), lengths.clone()).unwrap();
    for (method, adapter) in every_method(&model) {
        let together = model.loss_gradients_and_norms(&packed, &adapter, 0.25, Recompute::Nothing).unwrap();
        let mut start = 0;
        for (example, length) in lengths.iter().enumerate() {
            let range = start..start + length;
            start += length;
            let one = Batch::new(ids[range.clone()].to_vec(), targets[range].to_vec(), vec![*length]).unwrap();
            let alone = model.loss_and_gradients(&one, &adapter, 0.25, Recompute::Nothing).unwrap();
            assert!(alone.example_norms.is_empty(), "not asked for");
            for ((name, _), (norms, own)) in
                adapter.parameters().iter().zip(together.example_norms.iter().zip(&alone.gradients))
            {
                let wanted: f64 = host(own).unwrap().iter().map(|v| f64::from(*v).powi(2)).sum();
                let relative = (norms[example] / wanted - 1.0).abs();
                assert!(wanted > 0.0 && relative < 1e-5, "{method} {name} example {example}: {relative:e}");
            }
        }
        assert_eq!(together.example_norms.len(), adapter.parameters().len(), "{method}");
        let plain = model.loss_and_gradients(&packed, &adapter, 0.25, Recompute::Nothing).unwrap();
        for (a, b) in plain.gradients.iter().zip(&together.gradients) {
            assert!(*host(a).unwrap() == *host(b).unwrap(), "{method}: norms must not change a bit of the gradients");
        }
    }
}

#[test]
fn gradients_are_the_same_to_the_bit_at_any_number_of_threads() {
    let model = tiny_model();
    for (method, adapter) in every_method(&model) {
        let run = |num_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
            let result =
                pool.install(|| model.loss_gradients_and_norms(&batch(), &adapter, 1.0, Recompute::Nothing)).unwrap();
            let values: Vec<Vec<f32>> = result.gradients.iter().map(|g| host(g).unwrap().to_vec()).collect();
            (result.row_losses, values, result.example_norms)
        };
        let one = run(1);
        assert!(one == run(2) && one == run(3), "{method}");
    }
}

#[test]
fn targets_are_read_as_peft_reads_them() {
    for module in Module::ALL {
        assert_eq!(Module::from_target(module.name()), [module]);
        assert_eq!(serde_json::to_value(module).unwrap(), module.name());
        assert_eq!(Module::from_name(module.name(), &Module::ALL).unwrap(), module);
    }
    assert_eq!(Module::from_target("c_proj"), [Module::AttnCProj, Module::MlpCProj]);
    assert_eq!(Module::from_target("mlp.c_fc"), [Module::CFc]);
    assert!(Module::from_target("proj").is_empty());
    assert!(Module::from_target("").is_empty());
}
