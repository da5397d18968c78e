//! Who calls, and whether IAM lets them.
//!
//! The caller is known by the access key of the request: sessions the machine room opened itself (machines, endpoints), and
//! the sessions the emulator gives to functions, whose keys follow from function and role
//! (ministack 1.5.33, `core/lambda_runtime.py`, `execution_credentials`). Policies are the emulator's: `SimulatePrincipalPolicy`
//! decides, with the resource and the condition keys of the request. The signature itself is not verified here: the listener
//! is on loopback.

use http::HeaderMap;
use sha2::{Digest, Sha256};

use super::Room;
use crate::{LocalError, client::IAM};

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The account itself: a deployer, a person.
    Root,
    /// A role, by its ARN.
    Role(String),
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No credentials, or unknown ones.
    #[error("the security token included in the request is invalid")]
    Unknown,
    /// The role's policies do not allow it.
    #[error(
        "User: {role} is not authorized to perform: {action} on resource: {resource} because no identity-based policy allows the {action} action"
    )]
    NotAllowed {
        /// Role ARN.
        role: String,
        /// IAM action.
        action: String,
        /// Resource ARN.
        resource: String,
    },
    /// The emulator could not be asked.
    #[error("policies could not be evaluated: {0}")]
    Unavailable(String),
}

/// One permission that a request needs.
#[derive(Debug, Clone)]
pub struct Need {
    /// IAM action, e.g. `ec2:RunInstances`.
    pub action: &'static str,
    /// Resource ARN.
    pub resource: String,
    /// Condition keys with their values.
    pub context: Vec<(String, String)>,
}

impl Need {
    /// A permission without condition keys.
    pub fn new(action: &'static str, resource: impl Into<String>) -> Self {
        Self { action, resource: resource.into(), context: Vec::new() }
    }
}

/// The access key in an `Authorization` header of Signature Version 4.
fn access_key(headers: &HeaderMap) -> Option<&str> {
    let header = headers.get("authorization")?.to_str().ok()?;
    header.split_once("Credential=")?.1.split('/').next()
}

/// The key of the session that the emulator opens for a function.
fn function_key(function_arn: &str, role_arn: &str) -> String {
    let digest = hex::encode(Sha256::digest(format!("{function_arn}:{role_arn}")));
    format!("ASIA{}", digest.get(..16).unwrap_or_default().to_uppercase())
}

impl Room {
    /// Who sent a request with these headers.
    ///
    /// # Errors
    /// [`Denied::Unknown`], or the emulator does not answer.
    pub(super) async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Denied> {
        let key = access_key(headers).ok_or(Denied::Unknown)?;
        if key == self.0.root.access_key {
            return Ok(Caller::Root);
        }
        if let Some(role) = self.known_role(key) {
            return Ok(Caller::Role(role));
        }
        let emulator = self.emulator().map_err(|e| Denied::Unavailable(e.to_string()))?;
        let functions = emulator.functions().await.map_err(|e| Denied::Unavailable(e.to_string()))?;
        let mut tables = self.tables();
        for (_, arn, role) in functions {
            tables.function_keys.insert(function_key(&arn, &role), role);
        }
        drop(tables);
        self.known_role(key).map(Caller::Role).ok_or(Denied::Unknown)
    }

    fn known_role(&self, key: &str) -> Option<String> {
        let tables = self.tables();
        let session = tables.sessions.values().find(|session| session.access_key == key);
        session.map(|session| session.role_arn.clone()).or_else(|| tables.function_keys.get(key).cloned())
    }

    /// Checks every permission.
    ///
    /// # Errors
    /// The first one that is missing.
    pub(super) async fn allow(&self, headers: &HeaderMap, needs: &[Need]) -> Result<Caller, Denied> {
        let caller = self.caller(headers).await?;
        let Caller::Role(role) = &caller else { return Ok(caller) };
        let emulator = self.emulator().map_err(|e| Denied::Unavailable(e.to_string()))?;
        for need in needs {
            let mut params = vec![
                ("PolicySourceArn".to_owned(), role.clone()),
                ("ActionNames.member.1".to_owned(), need.action.to_owned()),
                ("ResourceArns.member.1".to_owned(), need.resource.clone()),
            ];
            for (n, (key, value)) in need.context.iter().enumerate() {
                let entry = format!("ContextEntries.member.{}", n + 1);
                params.push((format!("{entry}.ContextKeyName"), key.clone()));
                params.push((format!("{entry}.ContextKeyType"), "string".to_owned()));
                params.push((format!("{entry}.ContextKeyValues.member.1"), value.clone()));
            }
            let params: Vec<(&str, &str)> = params.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let answer = emulator.query(IAM, "SimulatePrincipalPolicy", &params).await;
            let decision = answer.map(|xml| xml.text("EvalDecision").unwrap_or_default());
            match decision {
                Ok(decision) if decision == "allowed" => {}
                Ok(_) | Err(LocalError::Refused { .. }) => {
                    tracing::warn!(role, action = need.action, resource = need.resource, "denied");
                    return Err(Denied::NotAllowed {
                        role: role.clone(),
                        action: need.action.to_owned(),
                        resource: need.resource.clone(),
                    });
                }
                Err(error) => return Err(Denied::Unavailable(error.to_string())),
            }
        }
        Ok(caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen with ministack 1.5.33 for function `f` of account 123456789012 and role `b-R-7231E7DD0F5CC`.
    #[test]
    fn the_key_of_a_function_is_the_emulators() {
        let function = "arn:aws:lambda:us-east-1:123456789012:function:f";
        let role = "arn:aws:iam::123456789012:role/b-R-7231E7DD0F5CC";
        assert_eq!(function_key(function, role), "ASIAABD70E7B453EA66E");
    }

    #[test]
    fn the_access_key_is_read_from_the_credential_scope() {
        let mut headers = HeaderMap::new();
        let value =
            "AWS4-HMAC-SHA256 Credential=AKID/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0";
        headers.insert("authorization", value.parse().unwrap());
        assert_eq!(access_key(&headers), Some("AKID"));
        assert_eq!(access_key(&HeaderMap::new()), None);
    }
}
