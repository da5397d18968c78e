//! Memory is what it is predicted to be: every allocation of this test program is counted.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tunesmith_model::adapters::AdapterConfig;
use tunesmith_model::rng::Rng;
use tunesmith_model::{Adapter, Batch, Decoder, Quantization, Recompute};

/// Bytes that are allocated now, and the most that were since the last reset.
struct Counting;

static NOW: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

fn count(bytes: usize) {
    let now = NOW.fetch_add(bytes as u64, SeqCst) + bytes as u64;
    PEAK.fetch_max(now, SeqCst);
}

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        NOW.fetch_sub(layout.size() as u64, SeqCst);
        count(size);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size() as u64, SeqCst);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The tests of this file count the same bytes: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Result, bytes that it added, and the most that were added meanwhile.
fn measured<R>(job: impl FnOnce() -> R) -> (R, u64, u64) {
    let before = NOW.load(SeqCst);
    PEAK.store(before, SeqCst);
    let result = job();
    (result, NOW.load(SeqCst).saturating_sub(before), PEAK.load(SeqCst) - before)
}

const CONFIG: &str = r#"{
    "model_type": "llama", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu"
}"#;

/// A model of random bf16 weights.
fn write_model(folder: &Path) {
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    let mut rng = Rng::new(1, 1);
    let mut tensors =
        vec![("model.embed_tokens.weight".to_owned(), vec![512, 256]), ("model.norm.weight".into(), vec![256])];
    for layer in 0..6 {
        for (name, shape) in [
            ("input_layernorm", vec![256]),
            ("post_attention_layernorm", vec![256]),
            ("self_attn.q_proj", vec![256, 256]),
            ("self_attn.k_proj", vec![128, 256]),
            ("self_attn.v_proj", vec![128, 256]),
            ("self_attn.o_proj", vec![256, 256]),
            ("mlp.gate_proj", vec![768, 256]),
            ("mlp.up_proj", vec![768, 256]),
            ("mlp.down_proj", vec![256, 768]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| {
            let value = |_| bf16::from_f32((rng.uniform() - 0.5) * 0.2).to_le_bytes();
            (0..shape.iter().product::<usize>()).flat_map(value).collect()
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

#[test]
fn a_model_takes_the_memory_predicted_and_loading_it_no_more_than_one_tensor_beside() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let mut sizes = Vec::new();
    for quantization in [Quantization::None, Quantization::Q8_0, Quantization::Q4K, Quantization::Nf4] {
        let (model, held, peak) = measured(|| Decoder::load_quantised(folder.path(), quantization).unwrap());
        let (weights, beside) = (model.config().weight_bytes(quantization), model.config().loading_bytes(quantization));
        // the rotary table, names and headers
        let small = 600_000;
        println!("{quantization:?}: {held} bytes, {weights} predicted; at most {peak}, predicted {}", weights + beside);
        assert!(held >= weights && held <= weights + small, "{quantization:?}: {held} bytes held, {weights} predicted");
        assert!(peak <= weights + beside + small, "{quantization:?}: {peak} bytes, predicted {weights} + {beside}");
        sizes.push(held);
    }
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
    assert!(sizes[3] * 4 < sizes[0], "{sizes:?}");
}

#[test]
fn a_step_takes_the_memory_predicted_and_less_with_recomputed_layers() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let model = Decoder::load_quantised(folder.path(), Quantization::Nf4).unwrap();
    let ids: Vec<u32> = (0..512).map(|i| i * 7 % 512).collect();
    let batch = Batch::new(ids.clone(), ids, vec![128; 4]).unwrap();
    // one thread: on a busy machine others join in when they come to it, and their buffers would be counted with a later step
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for config in [AdapterConfig::lora(8, 16.0), AdapterConfig::ia3(model.config().modules())] {
        let adapter = Adapter::new(config.clone(), &model, 1).unwrap();
        let step =
            |recompute| pool.install(|| model.loss_and_gradients(&batch, &adapter, 1.0, recompute).unwrap().nll());
        // buffers of the thread pool, the scratch for dequantised rows
        step(Recompute::Nothing);
        let mut peaks = Vec::new();
        for recompute in [Recompute::Nothing, Recompute::Layers] {
            let predicted = model.config().activation_bytes(&config, 512, recompute);
            let (_, _, peak) = measured(|| step(recompute));
            let ratio = peak as f64 / predicted as f64;
            println!("{recompute:?}: {peak} bytes, predicted {predicted}: {ratio:.3}");
            assert!((0.9..=1.1).contains(&ratio), "{recompute:?}: {peak} bytes, predicted {predicted}");
            peaks.push(peak);
        }
        assert!(peaks[1] * 2 < peaks[0], "{peaks:?}");
        let (_, _, peak) = measured(|| pool.install(|| model.row_losses(&batch, Some(&adapter)).unwrap()));
        let predicted = model.config().forward_bytes(&config, 512);
        println!("forward: {peak} bytes, predicted {predicted}");
        assert!(peak <= predicted + predicted / 10, "forward: {peak} bytes, predicted {predicted}");
    }
}
