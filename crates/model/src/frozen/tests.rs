use super::*;
use crate::ops::tensor;
use crate::ops::testing::{check_gradient, dot, random};

const ALL: [Quantization; 4] = [Quantization::None, Quantization::Nf4, Quantization::Q8_0, Quantization::Q4K];

/// Two matrices, wide enough for every format and together larger than one block of rows.
fn weight(quantization: Quantization, rows: [usize; 2], width: usize) -> FrozenWeight {
    let matrix = |seed, rows| FrozenMatrix::new("w", random(seed, &[rows, width], 1.0), quantization).unwrap();
    FrozenWeight::join(vec![matrix(1, rows[0]), matrix(2, rows[1])]).unwrap()
}

fn all(weight: &FrozenWeight) -> Tensor {
    let [out, width] = weight.shape();
    let mut values = vec![0.0; out * width];
    weight.read_rows(0, &mut values).unwrap();
    tensor(values, (out, width)).unwrap()
}

fn forward(weight: &FrozenWeight, x: &Tensor, rows: Range<usize>) -> Tensor {
    let (n, width) = x.dims2().unwrap();
    let mut y = vec![9.0; n * rows.len()];
    let (x, y_view) = (host(x).unwrap(), ViewMut::new(&mut y, n, rows.len(), rows.len()));
    weight.product(y_view, View::new(&x, n, width, width), rows.clone()).unwrap();
    tensor(y, (n, rows.len())).unwrap()
}

fn backward(weight: &FrozenWeight, dy: &Tensor, rows: Range<usize>) -> Tensor {
    let ((n, out), width) = (dy.dims2().unwrap(), weight.shape()[1]);
    let mut dx = vec![9.0; n * width];
    let (dy, dx_view) = (host(dy).unwrap(), ViewMut::new(&mut dx, n, width, width));
    weight.input_gradient(dx_view, Write::Replace, View::new(&dy, n, out, out), rows).unwrap();
    tensor(dx, (n, width)).unwrap()
}

fn near(a: &Tensor, b: &Tensor, tolerance: f32, what: &str) {
    let (a, b) = (host(a).unwrap(), host(b).unwrap());
    let largest = b.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let worst = a.iter().zip(b.iter()).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(largest > 0.0 && worst <= tolerance * largest, "{what}: {worst} of {largest}");
}

#[test]
fn products_equal_those_of_the_dequantised_matrix() {
    // rows of several blocks, and a range over the border of the two matrices
    for (rows, width) in [([3, 5], 256), ([700, 900], 1024)] {
        for quantization in ALL {
            let weight = weight(quantization, rows, width);
            let (w, out) = (all(&weight), rows[0] + rows[1]);
            for rows in [0..out, 1..out - 2, 0..rows[0], rows[0]..out] {
                let x = random(3, &[4, width], 1.0);
                let part = w.narrow(0, rows.start, rows.len()).unwrap();
                let what = format!("{quantization:?} {rows:?}");
                near(&forward(&weight, &x, rows.clone()), &x.matmul(&part.t().unwrap()).unwrap(), 1e-5, &what);
                let dy = random(4, &[4, rows.len()], 1.0);
                near(&backward(&weight, &dy, rows), &dy.matmul(&part).unwrap(), 1e-5, &what);
            }
        }
    }
}

#[test]
fn the_gradient_of_the_input_agrees_with_finite_differences() {
    for quantization in ALL {
        let weight = weight(quantization, [3, 5], 256);
        let (x, dy) = (random(5, &[2, 256], 1.0), random(6, &[2, 8], 1.0));
        let dx = backward(&weight, &dy, 0..8);
        check_gradient(&x, &dx, 1e-3, |x| dot(&forward(&weight, x, 0..8), &dy));
    }
}

#[test]
fn products_are_the_same_to_the_bit_at_any_number_of_threads() {
    for quantization in ALL {
        let weight = weight(quantization, [700, 900], 1024);
        let (x, dy) = (random(7, &[5, 1024], 1.0), random(8, &[5, 1600], 1.0));
        let run = |num_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
            pool.install(|| (forward(&weight, &x, 0..1600), backward(&weight, &dy, 0..1600)))
        };
        let values = |(y, dx): (Tensor, Tensor)| (host(&y).unwrap().to_vec(), host(&dx).unwrap().to_vec());
        let one = values(run(1));
        assert!([2, 3].map(run).map(values).iter().all(|other| *other == one), "{quantization:?}");
    }
}

#[test]
fn a_width_that_the_format_cannot_divide_is_refused_with_the_remedy() {
    for (quantization, width) in [(Quantization::Q8_0, 40), (Quantization::Q4K, 576)] {
        let refused = FrozenMatrix::new("model.layers.0.mlp.up_proj.weight", random(1, &[2, width], 1.0), quantization);
        let text = refused.unwrap_err().to_string();
        for part in ["up_proj", &width.to_string(), quantization.name(), "nf4"] {
            assert!(text.contains(part), "{text}");
        }
    }
    assert!(FrozenMatrix::new("w", random(1, &[3, 45], 1.0), Quantization::Nf4).is_ok());
}

#[test]
fn names_and_sizes_are_those_of_settings_and_storage() {
    for quantization in ALL {
        assert_eq!(Quantization::from_name(quantization.name()), Some(quantization));
        assert_eq!(serde_json::to_value(quantization).unwrap(), quantization.name());
        let bits = quantization.bytes([1024, 1024]) as f64 * 8.0 / f64::from(1 << 20);
        let wanted = match quantization {
            Quantization::None => 32.0,
            Quantization::Nf4 => 4.127,
            Quantization::Q8_0 => 8.5,
            Quantization::Q4K => 4.5,
        };
        assert!((bits - wanted).abs() < 1e-3, "{quantization:?}: {bits}");
    }
    assert_eq!(Quantization::from_name("nf3"), None);
}
