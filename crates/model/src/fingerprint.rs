//! By what a base model is recognised whose name and shape say nothing: some of its values.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 over name and first row of each projection of the layers, of embedding and head, and the last norm, as f32 before anything
/// is quantised: the same for every form of storage, and another one for weights of which any of these rows was trained further. Hexadecimal
/// in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

/// As many digits as people compare.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.get(..12).unwrap_or(&self.0))
    }
}

/// A fingerprint that is being taken, projection by projection in the order of loading.
#[derive(Default)]
pub(crate) struct Fingerprinter(Sha256);

impl Fingerprinter {
    pub(crate) fn add(&mut self, name: &str, row: &[f32]) {
        self.0.update(name.as_bytes());
        // no name holds a zero: what follows it is the row
        self.0.update([0u8]);
        row.iter().for_each(|value| self.0.update(value.to_le_bytes()));
    }

    pub(crate) fn finish(self) -> Fingerprint {
        Fingerprint(hex::encode(self.0.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, row: &[f32]) -> Fingerprint {
        let mut fingerprinter = Fingerprinter::default();
        fingerprinter.add(name, row);
        fingerprinter.finish()
    }

    #[test]
    fn one_value_or_one_name_makes_another_fingerprint() {
        let one = of("q_proj", &[1.0, 2.0]);
        assert_eq!(one, of("q_proj", &[1.0, 2.0]));
        assert_ne!(one, of("q_proj", &[1.0, 2.000_000_2]));
        assert_ne!(one, of("k_proj", &[1.0, 2.0]));
        assert_eq!(one.to_string().len(), 12);
        assert_eq!(serde_json::to_value(&one).unwrap().as_str().unwrap().len(), 64);
    }
}
