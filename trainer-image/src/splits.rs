//! Reading the splits of a dataset.

use tunesmith_contract::{documents, job::Location};

use crate::{
    blocking::blocking,
    error::{Result, TrainerError},
    store::Store,
};

/// Largest compressed split: ten times what fits on the largest machine that plans are made for.
const COMPRESSED: u64 = 256 << 20;
/// Largest split after unpacking: protects the machine's memory against a damaged or hostile file.
const UNPACKED: u64 = 2 << 30;

/// The lines of `{dataset}/{name}.jsonl.zst`.
pub async fn read(store: &Store, dataset: &Location, name: &str) -> Result<Vec<documents::Example>> {
    let location = dataset.join(&format!("{name}.jsonl.zst"));
    let bytes = store.get(&location, "split", COMPRESSED).await?;
    blocking(move || {
        tunesmith_documents::read_jsonl_zst(&bytes, UNPACKED)
            .map_err(|source| TrainerError::Dataset { location, source })
    })
    .await
}
