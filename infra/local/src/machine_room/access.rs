//! Random names and secrets.

use std::{fs::File, io::Read};

/// `bytes` random bytes as hexadecimal digits, from the kernel.
pub fn random_hex(bytes: usize) -> String {
    let mut buffer = vec![0_u8; bytes];
    if File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut buffer)).is_err() {
        tracing::error!("no /dev/urandom: secrets of this local cloud can be guessed");
    }
    hex::encode(buffer)
}
