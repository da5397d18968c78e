//! Kernels that are no attention.

use candle_core::Tensor;

use super::{CLOSE, agree, devices, random, values};
use crate::config::{RopeScaling, Rotary};
use crate::cuda::backend::Stored;
use crate::cuda::memory::{Buffer, Matrix};
use crate::cuda::{Gpu, gpu};
use crate::frozen::nf4::Nf4;
use crate::ops::activation::Activation;
use crate::ops::attention::Heads;
use crate::ops::head::Head;
use crate::ops::qk_norm::QkNorm;
use crate::ops::rope::{Direction, RopeTable};
use crate::ops::{cross_entropy, layer_norm, rms_norm, rope, tensor};

fn up(gpu: &Gpu, tensor: &Tensor) -> Matrix {
    gpu.upload(&values(tensor), tensor.dims()[1]).unwrap()
}

fn ints(gpu: &Gpu, values: &[u32]) -> Buffer {
    Buffer::of_ints(&gpu.backend, values.iter().map(|value| *value as usize)).unwrap()
}

#[test]
fn rms_norm_equals_the_processors() {
    for h in [36, 515] {
        let (x, w, dy) = (random(1, &[5, h], 2.0), random(2, &[h], 1.0), random(3, &[5, h], 1.0));
        let residual = random(4, &[5, h], 1.0);
        let (y, r) = rms_norm::forward(&x, &w, 1e-5).unwrap();
        let forward = |gpu: &Gpu| gpu.rms_norm_forward(&up(gpu, &x), &gpu.floats(&values(&w)).unwrap(), 1e-5).unwrap();
        agree("rms_norm", &values(&y), CLOSE, |gpu| forward(gpu).0.values().unwrap());
        agree("rms_norm statistics", &r, [3e-6; 2], |gpu| forward(gpu).1.floats(0, 5).unwrap());
        for residual in [None, Some(&residual)] {
            let dx = rms_norm::backward(&dy, &x, &w, &r, residual).unwrap();
            agree("rms_norm backward", &values(&dx), CLOSE, |gpu| {
                let (w, residual) = (gpu.floats(&values(&w)).unwrap(), residual.map(|residual| up(gpu, residual)));
                let (dy, x, r) = (up(gpu, &dy), up(gpu, &x), forward(gpu).1);
                gpu.rms_norm_backward(&dy, &x, &w, &r, residual.as_ref()).unwrap().values().unwrap()
            });
        }
    }
}

#[test]
fn layer_norm_equals_the_processors() {
    let (x, w, b) = (random(1, &[5, 132], 2.0), random(2, &[132], 1.0), random(3, &[132], 1.0));
    let (dy, residual) = (random(4, &[5, 132], 1.0), random(5, &[5, 132], 1.0));
    let (y, statistics) = layer_norm::forward(&x, &w, &b, 1e-5).unwrap();
    let forward = |gpu: &Gpu| {
        let (w, b) = (gpu.floats(&values(&w)).unwrap(), gpu.floats(&values(&b)).unwrap());
        gpu.layer_norm_forward(&up(gpu, &x), &w, &b, 1e-5).unwrap()
    };
    agree("layer_norm", &values(&y), CLOSE, |gpu| forward(gpu).0.values().unwrap());
    for residual in [None, Some(&residual)] {
        let dx = layer_norm::backward(&dy, &x, &w, &statistics, residual).unwrap();
        agree("layer_norm backward", &values(&dx), CLOSE, |gpu| {
            let (w, residual) = (gpu.floats(&values(&w)).unwrap(), residual.map(|residual| up(gpu, residual)));
            let (dy, x, kept) = (up(gpu, &dy), up(gpu, &x), forward(gpu).1);
            gpu.layer_norm_backward(&dy, &x, &w, &kept, residual.as_ref()).unwrap().values().unwrap()
        });
    }
}

#[test]
fn norms_of_queries_and_keys_equal_the_processors() {
    let heads = Heads { query: 3, key_value: 1, size: 40 };
    let (x, dy) = (random(1, &[4, heads.width()], 2.0), random(2, &[4, heads.width()], 1.0));
    let norm = QkNorm { query: random(3, &[40], 1.0), key: random(4, &[40], 1.0), eps: 1e-5 };
    let (y, dx) = (x.copy().unwrap(), dy.copy().unwrap());
    let kept = norm.forward(&y, heads).unwrap();
    norm.backward(&dx, &kept, heads).unwrap();
    let on = |gpu: &Gpu| gpu::QkNorm {
        query: gpu.floats(&values(&norm.query)).unwrap(),
        key: gpu.floats(&values(&norm.key)).unwrap(),
        eps: norm.eps,
    };
    agree("qk_norm", &values(&y), CLOSE, |gpu| {
        gpu.qk_norm_forward(&up(gpu, &x), &on(gpu), heads).unwrap().values().unwrap()
    });
    agree("qk_norm backward", &values(&dx), CLOSE, |gpu| {
        let dx = up(gpu, &dy);
        gpu.qk_norm_backward(&dx, &up(gpu, &x), &on(gpu), heads).unwrap();
        dx.values().unwrap()
    });
}

#[test]
fn rotations_equal_the_processors() {
    let table = RopeTable::new(&Rotary { theta: 10_000.0, scaling: RopeScaling::Default }, 8, 64);
    let (x, positions) = (random(1, &[4, 40], 1.0), [0, 7, 63, 2]);
    for direction in [Direction::Forward, Direction::Backward] {
        let wanted = x.copy().unwrap();
        rope::rotate(&wanted, 3, &positions, &table, direction).unwrap();
        agree("rope", &values(&wanted), CLOSE, |gpu| {
            let x = up(gpu, &x);
            gpu.rope(&x, 3, &ints(gpu, &positions), &gpu.rotation(&table).unwrap(), direction).unwrap();
            x.values().unwrap()
        });
    }
}

#[test]
fn activations_equal_the_processors() {
    let (x, dy) = (random(1, &[9, 70], 4.0), random(2, &[9, 70], 1.0));
    for activation in [Activation::SwiGlu, Activation::GeGluTanh, Activation::GeluTanh] {
        let y = activation.forward(&x).unwrap();
        let dy = dy.narrow(1, 0, y.dim(1).unwrap()).unwrap().contiguous().unwrap();
        let dx = activation.backward(&dy, &x).unwrap();
        let forward = |gpu: &Gpu| gpu.activation_forward(activation, &up(gpu, &x)).unwrap().values().unwrap();
        agree("activation", &values(&y), CLOSE, forward);
        agree("activation backward", &values(&dx), CLOSE, |gpu| {
            gpu.activation_backward(activation, &up(gpu, &dy), &up(gpu, &x)).unwrap().values().unwrap()
        });
    }
}

#[test]
fn rows_are_moved_and_added() {
    let (x, y) = (random(1, &[6, 33], 1.0), random(2, &[2, 33], 1.0));
    let rows = x.to_vec2::<f32>().unwrap();
    let twice: Vec<f32> = [4, 0].iter().flat_map(|row| rows[*row].iter().map(|value| 2.0 * value)).collect();
    agree("gather", &twice, [0.0; 2], |gpu| {
        gpu.gather(&up(gpu, &x), &ints(gpu, &[4, 0]), 2, 2.0).unwrap().values().unwrap()
    });
    let scattered =
        [y.to_vec2::<f32>().unwrap()[1].clone(), rows[1..5].concat(), y.to_vec2::<f32>().unwrap()[0].clone()];
    agree("scatter", &scattered.concat(), [0.0; 2], |gpu| {
        let x = up(gpu, &x);
        gpu.scatter(&up(gpu, &y), &ints(gpu, &[5, 0]), &x).unwrap();
        x.values().unwrap()
    });
    let sum = (&x + &random(3, &[6, 33], 1.0)).unwrap();
    agree("add", &values(&sum), [0.0, 4e-3], |gpu| {
        let x = up(gpu, &x);
        gpu.add_to(&x, &up(gpu, &random(3, &[6, 33], 1.0))).unwrap();
        x.values().unwrap()
    });
    let bias = random(4, &[33], 1.0);
    agree("bias", &values(&x.broadcast_add(&bias).unwrap()), [0.0, 4e-3], |gpu| {
        let x = up(gpu, &x);
        gpu.add_bias(&x, &gpu.floats(&values(&bias)).unwrap()).unwrap();
        x.values().unwrap()
    });
}

#[test]
fn losses_and_their_gradients_equal_the_processors() {
    const V: usize = 151;
    let (logits, targets) = (random(1, &[4, V], 5.0), [0, 150, 7, 31]);
    let unit = tensor((0..V * V).map(|i| f32::from(u8::from(i / V == i % V))).collect(), (V, V)).unwrap();
    for soft_cap in [None, Some(3.0)] {
        let head = Head { weight: unit.clone(), soft_cap };
        let (losses, gradient) = cross_entropy::forward_backward(&logits, &head, &targets, 0.25).unwrap();
        let run = |gpu: &Gpu, scale_opt| {
            let (logits, losses) = (gpu.floats(&values(&logits)).unwrap(), gpu.room(4).unwrap());
            let found = gpu.cross_entropy(&logits, [4, V], &ints(gpu, &targets), &losses, scale_opt, soft_cap).unwrap();
            (losses.floats(0, 4).unwrap(), found.map(|gradient| gradient.values().unwrap()))
        };
        agree("losses", &losses, [3e-6; 2], |gpu| run(gpu, None).0);
        agree("losses beside gradients", &losses, [3e-6; 2], |gpu| run(gpu, Some(0.25)).0);
        agree("gradient of losses", &values(&gradient), CLOSE, |gpu| run(gpu, Some(0.25)).1.unwrap());
    }
    for device in devices(16) {
        let logits = device.gpu.floats(&[1.0, f32::NAN, 2.0]).unwrap();
        let losses = device.gpu.room(1).unwrap();
        device.gpu.cross_entropy(&logits, [1, 3], &ints(&device.gpu, &[0]), &losses, None, None).unwrap();
        assert!(losses.floats(0, 1).unwrap()[0].is_nan(), "a failed computation stays visible");
    }
}

#[test]
fn nf4_is_read_to_the_bit_and_multiplied() {
    let (out, width) = (300, 70);
    let weight = random(1, &[out, width], 1.0);
    let stored = Nf4::quantise(&values(&weight));
    let mut read = vec![0.0; out * width];
    stored.read(0, &mut read);
    for device in devices(16).iter().filter(|device| device.stored == Stored::F32) {
        let (gpu, bits) = (&device.gpu, |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
        let parts = gpu.nf4(&stored).unwrap();
        let all = gpu.nf4_dequantise(&parts, [out, width]).unwrap().values().unwrap();
        assert_eq!(bits(&all), bits(&read));
    }
    // more rows than a block takes
    let x = random(2, &[11, width], 1.0);
    let wanted = x.matmul(&tensor(read, (out, width)).unwrap().t().unwrap()).unwrap();
    agree("nf4_multiply", &values(&wanted), CLOSE, |gpu| {
        // into columns of a wider matrix
        let y = gpu.upload(&vec![0.0; 11 * (out + 3)], out + 3).unwrap();
        gpu.nf4_multiply(&gpu.nf4(&stored).unwrap(), &up(gpu, &x), &y, 2, out).unwrap();
        let rows = y.values().unwrap();
        assert!(rows.chunks(out + 3).all(|row| row[..2] == [0.0; 2] && row[out + 2] == 0.0));
        rows.chunks(out + 3).flat_map(|row| row[2..out + 2].to_vec()).collect()
    });
}
