//! AWS Signature Version 4, header form, for the few calls the local cloud makes as the emulator's root user.
//! Source: AWS IAM User Guide, "Create a signed AWS API request". The AWS SDK lost: it takes minutes to compile, and this
//! crate is what a person waits for first.

use hmac::{Hmac, Mac};
use http::Method;
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, macros::format_description};

/// Access key and secret of a caller.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Credentials {
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret: String,
}

/// What is signed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// HTTP method.
    pub method: &'a Method,
    /// `host:port` as it is sent.
    pub host: &'a str,
    /// Path, percent-encoded as it is sent.
    pub path: &'a str,
    /// Query without the question mark, parameters in the order of their names, percent-encoded.
    pub query: &'a str,
    /// The body.
    pub body: &'a [u8],
    /// Service name of the credential scope.
    pub service: &'a str,
    /// Region of the credential scope.
    pub region: &'a str,
}

/// The headers that make `request` a signed one at `now`.
#[must_use]
pub fn sign(request: Request<'_>, credentials: &Credentials, now: OffsetDateTime) -> [(&'static str, String); 3] {
    let stamp = now.format(format_description!("[year][month][day]T[hour][minute][second]Z")).unwrap_or_default();
    let day = stamp.get(..8).unwrap_or_default();
    let body_hash = hex::encode(Sha256::digest(request.body));
    let canonical = format!(
        "{}\n{}\n{}\nhost:{}\nx-amz-content-sha256:{body_hash}\nx-amz-date:{stamp}\n\nhost;x-amz-content-sha256;x-amz-date\n{body_hash}",
        request.method, request.path, request.query, request.host
    );
    let scope = format!("{day}/{}/{}/aws4_request", request.region, request.service);
    let to_sign = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
    let mut key = mac(format!("AWS4{}", credentials.secret).as_bytes(), day.as_bytes());
    for part in [request.region, request.service, "aws4_request", &to_sign] {
        key = mac(&key, part.as_bytes());
    }
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={}",
        credentials.access_key,
        hex::encode(key)
    );
    [("authorization", authorization), ("x-amz-date", stamp), ("x-amz-content-sha256", body_hash)]
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    // HMAC takes keys of every length: the error cannot happen, and an empty signature would only be refused.
    Hmac::<Sha256>::new_from_slice(key)
        .map_or_else(|_| Vec::new(), |m| m.chain_update(data).finalize().into_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures are those of botocore 1.43.106 (`S3SigV4Auth` with `payload_signing_enabled`) for the same request.
    #[test]
    fn the_signature_is_botocores() {
        let request = Request {
            method: &Method::PUT,
            host: "127.0.0.1:4566",
            path: "/bucket/a%20b",
            query: "list-type=2&prefix=x%2Fy",
            body: b"hello",
            service: "s3",
            region: "us-east-1",
        };
        let credentials = Credentials { access_key: "root".into(), secret: "secret".into() };
        let now = OffsetDateTime::from_unix_timestamp(1_795_000_000).unwrap();
        let [(_, authorization), (_, stamp), _] = sign(request, &credentials, now);
        assert_eq!(stamp, "20261118T110640Z");
        assert!(
            authorization.ends_with("d0bcc261538ad43ee325fc28582e096443b4c1b3830ceb00057a7a46b9cdd4e5"),
            "{authorization}"
        );
    }
}
