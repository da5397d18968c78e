//! Every method in the layer: against its merged matrix, and its gradients against finite differences.

use super::*;
use crate::adapters::adalora::AdaLora;
use crate::adapters::dora::Dora;
use crate::adapters::ia3::{Ia3, Scales};
use crate::adapters::lora::Lora;
use crate::ops::testing::{check_gradient, dot, random};

const WIDTH: usize = 5;

fn frozen() -> AdaptedLinear {
    let weights = [(Module::Q, random(1, &[6, WIDTH], 1.0)), (Module::K, random(2, &[4, WIDTH], 1.0))];
    AdaptedLinear::new(&weights).unwrap()
}

fn lora(seed: u64, out: usize) -> Lora {
    Lora { a: random(seed, &[2, WIDTH], 1.0), b: random(seed + 1, &[out, 2], 1.0), scale: 3.0 }
}

/// Every method beside a neighbour without an adapter, and LoRA on both.
fn cases() -> Vec<(&'static str, LayerAdapters)> {
    let on_k = |adapter| {
        let mut adapters = LayerAdapters::default();
        adapters.set(Module::K, adapter);
        adapters
    };
    let mut both = on_k(ModuleAdapter::Lora(lora(5, 4)));
    both.set(Module::Q, ModuleAdapter::Lora(lora(3, 6)));
    let e = random(9, &[3, 1], 1.0);
    let ada = AdaLora { a: random(7, &[3, WIDTH], 1.0), b: random(8, &[4, 3], 1.0), e, scale: 0.5 };
    let none =
        AdaLora { a: random(7, &[0, WIDTH], 1.0), b: random(8, &[4, 0], 1.0), e: random(9, &[0, 1], 1.0), scale: 1.0 };
    let outputs = Ia3 { l: random(10, &[4, 1], 1.0), scales: Scales::Outputs };
    let inputs = Ia3 { l: random(11, &[1, WIDTH], 1.0), scales: Scales::Inputs };
    vec![
        ("lora", both),
        ("dora", on_k(ModuleAdapter::Dora(Dora::new(lora(5, 4), random(12, &[4], 1.0))))),
        ("adalora", on_k(ModuleAdapter::AdaLora(ada))),
        ("adalora of rank 0", on_k(ModuleAdapter::AdaLora(none))),
        ("ia3 on outputs", on_k(ModuleAdapter::Ia3(outputs))),
        ("ia3 on inputs", on_k(ModuleAdapter::Ia3(inputs))),
    ]
}

#[test]
fn every_method_equals_its_merged_matrix_with_and_without_a_bias() {
    let (bias, x) = (random(40, &[10], 1.0), random(20, &[3, WIDTH], 1.0));
    for (linear, of_k) in [(frozen(), Tensor::zeros_like(&bias).unwrap()), (frozen().with_bias(bias.clone()), bias)] {
        let of_k = of_k.narrow(0, 6, 4).unwrap();
        for (name, adapters) in cases() {
            let (y, _) = linear.forward(&x, Some(&adapters)).unwrap();
            let adapter = adapters.get(Module::K).unwrap();
            let mut weight = host(&random(2, &[4, WIDTH], 1.0)).unwrap().to_vec();
            adapter.merge_into(&mut weight, WIDTH).unwrap();
            let merged = tensor(weight, (4, WIDTH)).unwrap();
            // DoRA adds the bias as it is, IA³ on outputs multiplies it
            assert_eq!(adapter.scales_bias().is_some(), name == "ia3 on outputs");
            let bias = match adapter.scales_bias() {
                Some(factors) => (&of_k * factors.flatten_all().unwrap()).unwrap(),
                None => of_k.clone(),
            };
            let wanted = x.matmul(&merged.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
            for (row, wanted) in y.to_vec2::<f32>().unwrap().iter().zip(wanted.to_vec2::<f32>().unwrap()) {
                for (a, b) in row[6..].iter().zip(wanted) {
                    assert!((a - b).abs() < 1e-5, "{name}");
                }
            }
        }
    }
}

/// The same adapter with another tensor at `index`; DoRA's norm stays what it was, as its backward pass assumes.
fn with(adapter: &ModuleAdapter, index: usize, value: &Tensor) -> ModuleAdapter {
    let mut changed = adapter.clone();
    let tensor = match (&mut changed, index) {
        (ModuleAdapter::Lora(lora), 0) => &mut lora.a,
        (ModuleAdapter::Lora(lora), _) => &mut lora.b,
        (ModuleAdapter::Dora(dora), 0) => &mut dora.lora.a,
        (ModuleAdapter::Dora(dora), 1) => &mut dora.lora.b,
        (ModuleAdapter::Dora(dora), _) => &mut dora.magnitude,
        (ModuleAdapter::AdaLora(ada), 0) => &mut ada.a,
        (ModuleAdapter::AdaLora(ada), 1) => &mut ada.b,
        (ModuleAdapter::AdaLora(ada), _) => &mut ada.e,
        (ModuleAdapter::Ia3(ia3), _) => &mut ia3.l,
    };
    *tensor = value.clone();
    changed
}

#[test]
fn every_gradient_agrees_with_finite_differences() {
    let (x, dy) = (random(20, &[3, WIDTH], 1.0), random(21, &[3, 10], 1.0));
    let linear = frozen().with_bias(random(40, &[10], 1.0));
    for (name, adapters) in cases() {
        let (_, inner) = linear.forward(&x, Some(&adapters)).unwrap();
        let wants = Wants { dx: WantsDx::Yes, norms_of: None };
        let (dx, gradients) = linear.backward(&dy, &x, &inner, Some(&adapters), wants).unwrap();
        let loss = |x: &Tensor, adapters: &LayerAdapters| dot(&linear.forward(x, Some(adapters)).unwrap().0, &dy);
        check_gradient(&x, &dx.unwrap(), 1e-3, |x| loss(x, &adapters));
        for gradient in gradients {
            let adapter = adapters.get(gradient.module).unwrap();
            let parameters = adapter.parameters();
            assert_eq!(gradient.tensors.len(), parameters.len(), "{name}");
            for (index, ((_, value), gradient_of)) in parameters.iter().zip(&gradient.tensors).enumerate() {
                assert_eq!(value.dims(), gradient_of.value.dims(), "{name}");
                check_gradient(value, &gradient_of.value, 1e-3, |changed| {
                    let mut adapters = adapters.clone();
                    adapters.set(gradient.module, with(adapter, index, changed));
                    loss(&x, &adapters)
                });
            }
        }
    }
}

#[test]
fn factors_on_inputs_get_a_gradient_even_where_nobody_wants_dx() {
    let (linear, x, dy) = (frozen(), random(20, &[3, WIDTH], 1.0), random(21, &[3, 10], 1.0));
    let adapters = cases().pop().unwrap().1;
    let (_, inner) = linear.forward(&x, Some(&adapters)).unwrap();
    let run = |dx| linear.backward(&dy, &x, &inner, Some(&adapters), Wants { dx, norms_of: None }).unwrap();
    let ((dx, some), (none, same)) = (run(WantsDx::Yes), run(WantsDx::No));
    assert!(dx.is_some() && none.is_none());
    let values = |gradients: &[ModuleGradient]| gradients[0].tensors[0].value.to_vec2::<f32>().unwrap();
    assert_eq!(values(&some), values(&same));
}

#[test]
fn the_norm_of_dora_is_measured_again_after_a_change_and_for_another_weight() {
    let mut adapters = LayerAdapters::default();
    adapters.set(Module::K, ModuleAdapter::Dora(Dora::new(lora(5, 4), random(12, &[4], 1.0))));
    let x = random(20, &[3, WIDTH], 1.0);
    let y = |linear: &AdaptedLinear, adapters: &LayerAdapters| {
        linear.forward(&x, Some(adapters)).unwrap().0.to_vec2::<f32>().unwrap()
    };
    let (linear, before) = (frozen(), y(&frozen(), &adapters));
    assert_eq!(y(&linear, &adapters), before);
    let other = AdaptedLinear::new(&[(Module::K, random(30, &[4, WIDTH], 1.0))]).unwrap();
    let fresh = |linear| {
        let mut fresh = LayerAdapters::default();
        fresh.set(Module::K, adapters.get(Module::K).unwrap().snapshot().unwrap());
        y(linear, &fresh)
    };
    assert_eq!(y(&other, &adapters), fresh(&other));
    let adapter = adapters.get(Module::K).unwrap();
    crate::ops::update(adapter.parameters()[1].1, |b| b.iter_mut().for_each(|b| *b *= 2.0)).unwrap();
    adapter.changed();
    assert_eq!(y(&linear, &adapters), fresh(&linear));
    assert_ne!(y(&linear, &adapters), before);
}
