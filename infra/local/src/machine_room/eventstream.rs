//! Messages of `application/vnd.amazon.eventstream`: length, headers, payload, two checksums (CRC-32, IEEE).
//! Source: Smithy specification, "Amazon Event Stream Specification". Header values here are strings (type 7) only.

/// One message.
#[must_use]
pub fn message(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for (name, value) in headers {
        encoded.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        encoded.extend_from_slice(name.as_bytes());
        encoded.push(7);
        encoded.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        encoded.extend_from_slice(value.as_bytes());
    }
    let total = 12 + encoded.len() + payload.len() + 4;
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(&u32::try_from(total).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&u32::try_from(encoded.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
    out.extend_from_slice(&encoded);
    out.extend_from_slice(payload);
    out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
    out
}

/// A `PayloadPart` of a SageMaker response stream.
#[must_use]
pub fn payload_part(bytes: &[u8]) -> Vec<u8> {
    let headers =
        [(":message-type", "event"), (":event-type", "PayloadPart"), (":content-type", "application/octet-stream")];
    message(&headers, bytes)
}

/// The exception that ends a stream whose container failed in the middle.
#[must_use]
pub fn model_stream_error(message_text: &str) -> Vec<u8> {
    let headers = [
        (":message-type", "exception"),
        (":exception-type", "ModelStreamError"),
        (":content-type", "application/json"),
    ];
    let body = serde_json::json!({"Message": message_text, "ErrorCode": "ModelInvocationFailed"}).to_string();
    message(&headers, body.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The empty message of the specification's test vectors.
    #[test]
    fn an_empty_message_is_the_specifications() {
        assert_eq!(hex::encode(message(&[], b"")), "000000100000000005c248eb7d98c8ff");
    }
}
