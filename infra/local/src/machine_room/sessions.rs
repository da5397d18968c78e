//! Role sessions of machines and endpoints: opened with `AssumeRole` at the emulator, renewed before they expire.

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use super::Room;
use crate::{LocalError, client::STS};

/// Sessions are renewed this long before their end: the SDK refreshes five minutes before.
const EARLY: Duration = Duration::minutes(10);

/// Credentials of a machine or a container.
#[derive(Debug, Clone)]
pub struct Session {
    /// Access key id.
    pub access_key: String,
    /// The role.
    pub role_arn: String,
    secret: String,
    token: String,
    expires: OffsetDateTime,
    /// Random secret that a container must present; empty for machines, whose metadata service stands in front.
    pub authorization: String,
}

impl Session {
    /// As the container credentials endpoint and the instance metadata service answer.
    pub fn document(&self) -> Value {
        json!({
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": (self.expires - Duration::hours(1)).format(&Rfc3339).unwrap_or_default(),
            "AccessKeyId": self.access_key,
            "SecretAccessKey": self.secret,
            "Token": self.token,
            "Expiration": self.expires.format(&Rfc3339).unwrap_or_default(),
            "RoleArn": self.role_arn,
        })
    }
}

impl Room {
    /// The session of `holder`, opened or renewed when needed.
    ///
    /// # Errors
    /// When the role does not exist or the emulator does not answer.
    pub(super) async fn session(&self, holder: &str, role_arn: &str) -> Result<Session, LocalError> {
        let known = self.tables().sessions.get(holder).cloned();
        if let Some(session) = &known
            && session.expires - EARLY > OffsetDateTime::now_utc()
        {
            return Ok(session.clone());
        }
        let params = [("RoleArn", role_arn), ("RoleSessionName", holder), ("DurationSeconds", "3600")];
        let xml = self.emulator()?.query(STS, "AssumeRole", &params).await?;
        let text =
            |name: &str| xml.text(name).ok_or_else(|| LocalError::bad_answer("AssumeRole", format!("no {name}")));
        let expires = OffsetDateTime::parse(&text("Expiration")?, &Rfc3339)
            .map_err(|e| LocalError::bad_answer("AssumeRole", e.to_string()))?;
        let session = Session {
            access_key: text("AccessKeyId")?,
            role_arn: role_arn.to_owned(),
            secret: text("SecretAccessKey")?,
            token: text("SessionToken")?,
            expires,
            authorization: known.map_or_else(|| super::access::random_hex(16), |session| session.authorization),
        };
        self.tables().sessions.insert(holder.to_owned(), session.clone());
        Ok(session)
    }
}
