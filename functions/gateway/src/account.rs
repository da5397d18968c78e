//! API keys and what each may use: requests a minute, tokens a day.
//!
//! Both limits are conditional writes, so that requests at the same time cannot pass together where only one may. Tokens are
//! reserved before the answer (its most possible length and an estimate of the prompt) and corrected after it; a container
//! that dies in between has counted too much, never too little.

use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tunesmith_aws::{
    AwsError,
    dynamodb::{Conditional, Expression, Table},
};
use tunesmith_contract::{
    ProjectId, UnixTime,
    deployment::LiveRecord,
    ledger::{ApiKeyItem, ItemKey, UsageItem},
};
use tunesmith_serving::openai::ApiError;

const DAY: i64 = 86_400;

/// An accepted key.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    hash: String,
    key: ApiKeyItem,
}

impl Account {
    /// Looks a key up. The secret itself is never stored nor logged.
    pub async fn open(table: &Table, secret: &str) -> Result<Self, ApiError> {
        let hash = hex::encode(Sha256::digest(secret));
        let found: Option<ApiKeyItem> = table.get(&ItemKey::api_key(&hash)).await.map_err(|e| unreachable(&e))?;
        match found {
            Some(key) if key.enabled => Ok(Self { hash, key }),
            // the same words for both: a stranger does not learn that a key once was valid
            _ => Err(ApiError::unauthorized("this API key is not valid; ask the project's operator for one")),
        }
    }

    pub const fn project(&self) -> &ProjectId {
        &self.key.project
    }

    /// Counts one request and reserves `tokens`.
    pub async fn reserve(
        &self,
        table: &Table,
        live: &LiveRecord,
        tokens: u64,
        now: UnixTime,
    ) -> Result<Reservation, ApiError> {
        let limit = u64::from(live.requests_per_minute);
        let minute = ItemKey::usage(&self.hash, &window(now, Window::Minute));
        let counted = add(table, &minute, Counter::Requests, 1, limit, now.0 + 3600).await?;
        if !counted {
            let wait = 60 - now.0.rem_euclid(60);
            let message = format!(
                "more than {limit} requests in this minute; wait {wait} s, or raise \
                                   serving.requests_per_minute in project.toml"
            );
            return Err(ApiError::limited("rate_limit_exceeded", message, wait.unsigned_abs()));
        }
        let day = ItemKey::usage(&self.hash, &window(now, Window::Day));
        let (limit, ttl) = (live.tokens_per_day, now.0 + 3 * DAY);
        if !add(table, &day, Counter::Tokens, tokens, limit, ttl).await? {
            let wait = DAY - now.0.rem_euclid(DAY);
            let message = format!(
                "this request needs up to {tokens} tokens, more than is left of {limit} today; wait until \
                                   midnight UTC, ask for a smaller max_tokens, or raise serving.tokens_per_day in project.toml"
            );
            return Err(ApiError::limited("tokens_per_day_exceeded", message, wait.unsigned_abs()));
        }
        Ok(Reservation { day, tokens })
    }
}

/// Tokens counted before they were used.
#[derive(Debug)]
#[must_use = "what was not used is to be given back"]
pub(crate) struct Reservation {
    day: ItemKey,
    tokens: u64,
}

impl Reservation {
    /// Replaces the reserved tokens by those used. A failure is logged: too much stays counted.
    pub async fn settle(self, table: &Table, used: u64) {
        let difference = i128::from(used) - i128::from(self.tokens);
        if difference == 0 {
            return;
        }
        let update = Expression::new("ADD #counter :difference")
            .name("#counter", Counter::Tokens.attribute())
            .value(":difference", i64::try_from(difference).unwrap_or_default());
        let done: Result<Conditional<UsageItem>, _> = table.update(&self.day, update, None).await;
        if let Err(error) = done {
            tracing::error!(%error, reserved = self.tokens, used, "usage could not be settled; too much stays counted");
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counter {
    Requests,
    Tokens,
}

impl Counter {
    const fn attribute(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::Requests => Self::Tokens,
            Self::Tokens => Self::Requests,
        }
    }
}

/// Adds `amount` where the sum stays within `limit`; `false` where it would not.
async fn add(
    table: &Table,
    key: &ItemKey,
    counter: Counter,
    amount: u64,
    limit: u64,
    ttl: i64,
) -> Result<bool, ApiError> {
    let Some(at_most) = limit.checked_sub(amount) else { return Ok(false) };
    let update = Expression::new("SET #ttl = :ttl, #other = if_not_exists(#other, :zero) ADD #counter :amount")
        .name("#ttl", "ttl")
        .name("#other", counter.other().attribute())
        .name("#counter", counter.attribute())
        .value(":ttl", ttl)
        .value(":zero", 0)
        .value(":amount", amount);
    let fits = Expression::new("attribute_not_exists(#counter) OR #counter <= :at_most").value(":at_most", at_most);
    let done: Conditional<UsageItem> =
        table.update(key, update, Some(fits)).await.map_err(|error| unreachable(&error))?;
    Ok(matches!(done, Conditional::Done(_)))
}

/// The table did not answer: nobody is let through unchecked.
pub(crate) fn unreachable(error: &AwsError) -> ApiError {
    tracing::error!(%error, "the table did not answer");
    ApiError::unavailable("accounts_unavailable", "keys and limits cannot be checked now; try again", 5)
}

#[derive(Debug, Clone, Copy)]
enum Window {
    Minute,
    Day,
}

/// `YYYY-MM-DDTHH:MM` or `YYYY-MM-DD`, in UTC.
fn window(now: UnixTime, window: Window) -> String {
    let at = OffsetDateTime::from_unix_timestamp(now.0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let day = at.date();
    match window {
        Window::Minute => format!("{day}T{:02}:{:02}", at.hour(), at.minute()),
        Window::Day => day.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_minutes_and_days_in_utc() {
        for (now, minute, day) in [
            (0, "1970-01-01T00:00", "1970-01-01"),
            (1_795_996_799, "2026-11-29T23:59", "2026-11-29"),
            (951_782_400, "2000-02-29T00:00", "2000-02-29"),
        ] {
            assert_eq!(window(UnixTime(now), Window::Minute), minute);
            assert_eq!(window(UnixTime(now), Window::Day), day);
        }
    }
}
