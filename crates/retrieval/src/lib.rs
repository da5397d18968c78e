//! Embedding, chunk index and hybrid search: what the gateway finds in a project's documents.
//!
//! Synchronous and free of network and clock: files come and go as bytes, so that the same code runs in Lambda, in the
//! trainer and in tests.

mod bert;
pub mod embedder;
pub mod index;
mod kernels;
mod keywords;
pub mod search;
mod vectors;
mod weights;

pub use embedder::{EMBEDDER_FILES, EMBEDDER_NAME, EmbedError, Embedder, EmbedderFiles};
pub use index::{
    CHUNKS_FILE, IndexError, IndexFiles, MANIFEST_FILE, NewIndex, VECTORS_FILE, build_index, chunk_text, index_id,
};
pub use search::{Hit, SearchIndex};
pub use vectors::Vectors;
pub use weights::WeightsError;
