//! Server-sent events (WHATWG HTML, section 9.2), as far as the OpenAI API uses them: `data:` lines.

/// What ends an OpenAI stream.
pub const DONE: &str = "[DONE]";

/// One event that carries `data` (which holds no line break: JSON written on one line).
#[must_use]
pub fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

/// Takes a stream of bytes that ends anywhere, also inside a character, and gives the events' data.
#[derive(Debug, Default)]
pub struct EventReader {
    rest: Vec<u8>,
}

/// A line that does not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {0} bytes; the stream is not one of server-sent events")]
pub struct EventTooLong(usize);

/// Far more than one token, or one error, needs.
const MAX_EVENT_BYTES: usize = 1 << 20;

impl EventReader {
    /// Adds bytes; returns the data of the `data:` lines that are complete now.
    ///
    /// # Errors
    /// [`EventTooLong`] when a line does not end within 1 MiB.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, EventTooLong> {
        self.rest.extend_from_slice(bytes);
        let mut found = Vec::new();
        let mut start = 0;
        while let Some(length) = self.rest[start..].iter().position(|&b| b == b'\n') {
            found.extend(data(&self.rest[start..start + length]));
            start += length + 1;
        }
        self.rest.drain(..start);
        if self.rest.len() > MAX_EVENT_BYTES { Err(EventTooLong(MAX_EVENT_BYTES)) } else { Ok(found) }
    }
}

fn data(line: &[u8]) -> Option<String> {
    let value = line.strip_suffix(b"\r").unwrap_or(line).strip_prefix(b"data:")?;
    Some(String::from_utf8_lossy(value.strip_prefix(b" ").unwrap_or(value)).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_cut() {
        let stream = format!(": hello\r\n\r\n{}{}data:x\r\n\n{}", event("{\"a\":\"ä\"}"), event("2"), event(DONE));
        for size in 1..stream.len() {
            let mut reader = EventReader::default();
            let events: Vec<String> =
                stream.as_bytes().chunks(size).flat_map(|part| reader.push(part).unwrap()).collect();
            assert_eq!(events, ["{\"a\":\"ä\"}", "2", "x", DONE], "{size}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        assert!(EventReader::default().push(&vec![b'x'; MAX_EVENT_BYTES + 1]).is_err());
    }
}
