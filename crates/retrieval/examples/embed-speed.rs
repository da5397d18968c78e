//! Passages a second: `cargo run --example embed-speed -p tunesmith-retrieval -- <folder of the embedder> [passages]`.
#![allow(clippy::unwrap_used)]

use std::{path::Path, time::Instant};

use tunesmith_retrieval::{Embedder, EmbedderFiles};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap();
    let count: usize = arguments.next().map_or(64, |count| count.parse().unwrap());
    let embedder = Embedder::load(EmbedderFiles::read_folder(Path::new(&folder)).unwrap()).unwrap();
    // about 250 tokens each, as long as the index's passages are
    let texts: Vec<String> =
        (0..count).map(|i| (0..32).map(|j| format!("Ferry {i} leaves pier {j} at noon. ")).collect()).collect();
    for _ in 0..3 {
        let start = Instant::now();
        let vectors = embedder.embed(&texts).unwrap();
        println!("{:.1} passages/s", vectors.rows() as f64 / start.elapsed().as_secs_f64());
    }
}
