//! The table. Items are `contract` types; keys are [`ItemKey`]s; a condition that does not hold is a value.

mod lease;

use std::collections::HashMap;

use aws_sdk_dynamodb::{
    Client,
    operation::transact_write_items::TransactWriteItemsError,
    types::{AttributeValue, ConditionCheck, Delete, Put, ReturnValue, TransactWriteItem, Update},
};
use serde::{Serialize, de::DeserializeOwned};
use tunesmith_contract::ledger::ItemKey;

use crate::{AwsError, Config, error::aws};

/// One DynamoDB table with the string keys `pk` and `sk`. Cheap to clone. Every read is strongly consistent.
#[derive(Debug, Clone)]
pub struct Table {
    client: Client,
    name: String,
}

/// Result of a conditional write.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a condition that did not hold means that nothing was written"]
pub enum Conditional<T> {
    /// Written; what the write returned.
    Done(T),
    /// The condition did not hold; nothing was written.
    ConditionFailed,
}

/// Result of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a transaction that was not done wrote nothing"]
pub enum Transacted {
    /// Everything was written.
    Done,
    /// Nothing was written: the conditions of these writes (by position) did not hold.
    ConditionFailed(Vec<usize>),
    /// Nothing was written: another write touched the same items at the same moment. Read again and try again.
    Conflict,
}

/// An item with its sort key, or why it cannot be read.
pub type Item<T> = (String, Result<T, AwsError>);

/// An update or condition expression with its names and values:
/// `Expression::new("#status = :reserved").name("#status", "status").value(":reserved", &RunStatus::Reserved)`.
#[derive(Debug, Clone, Default)]
pub struct Expression {
    text: String,
    names: HashMap<String, String>,
    values: HashMap<String, AttributeValue>,
    error: Option<String>,
}

impl Expression {
    /// An expression in DynamoDB's syntax.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// The item must not exist.
    #[must_use]
    pub fn absent() -> Self {
        Self::new("attribute_not_exists(pk)")
    }

    /// The item must exist.
    #[must_use]
    pub fn present() -> Self {
        Self::new("attribute_exists(pk)")
    }

    /// Defines `#placeholder`: needed for reserved words such as `status`, `limit`, `path`.
    #[must_use]
    pub fn name(mut self, placeholder: &str, attribute: &str) -> Self {
        self.names.insert(placeholder.to_owned(), attribute.to_owned());
        self
    }

    /// Defines `:placeholder`. A value that cannot be an attribute fails the call, not the builder.
    #[must_use]
    pub fn value<T: Serialize>(mut self, placeholder: &str, value: T) -> Self {
        match serde_dynamo::to_attribute_value(value) {
            Ok(value) => {
                self.values.insert(placeholder.to_owned(), value);
            }
            Err(error) => self.error = Some(format!("{placeholder}: {error}")),
        }
        self
    }

    fn check(&self, operation: &'static str) -> Result<(), AwsError> {
        self.error.as_ref().map_or(Ok(()), |error| Err(AwsError::malformed("dynamodb", operation, error)))
    }
}

/// One write of a transaction. Build it with [`Write::put`], [`Write::update`], [`Write::check`], [`Write::delete`].
#[derive(Debug, Clone)]
pub struct Write {
    kind: WriteKind,
    condition: Option<Expression>,
}

#[derive(Debug, Clone)]
enum WriteKind {
    Put(Result<HashMap<String, AttributeValue>, String>),
    Update(ItemKey, Expression),
    Delete(ItemKey),
    Check(ItemKey),
}

impl Write {
    /// Writes the whole item.
    pub fn put<T: Serialize>(key: &ItemKey, item: &T) -> Self {
        Self { kind: WriteKind::Put(to_item(key, item)), condition: None }
    }

    /// Changes attributes of an item (which is created when absent, unless a condition forbids).
    #[must_use]
    pub fn update(key: &ItemKey, update: Expression) -> Self {
        Self { kind: WriteKind::Update(key.clone(), update), condition: None }
    }

    /// Deletes an item.
    #[must_use]
    pub fn delete(key: &ItemKey) -> Self {
        Self { kind: WriteKind::Delete(key.clone()), condition: None }
    }

    /// Writes nothing, but the condition must hold.
    #[must_use]
    pub fn check(key: &ItemKey, condition: Expression) -> Self {
        Self { kind: WriteKind::Check(key.clone()), condition: Some(condition) }
    }

    /// Only when this holds.
    #[must_use]
    pub fn when(mut self, condition: Expression) -> Self {
        self.condition = Some(condition);
        self
    }

    fn into_request(self, table: &str) -> Result<TransactWriteItem, AwsError> {
        const OPERATION: &str = "TransactWriteItems";
        let malformed = |error: &dyn std::fmt::Display| AwsError::malformed("dynamodb", OPERATION, error);
        let condition = self.condition.unwrap_or_default();
        condition.check(OPERATION)?;
        let text = (!condition.text.is_empty()).then_some(condition.text);
        let names = (!condition.names.is_empty()).then_some(condition.names);
        let values = (!condition.values.is_empty()).then_some(condition.values);
        let item = TransactWriteItem::builder();
        let item = match self.kind {
            WriteKind::Put(fields) => item.put(
                Put::builder()
                    .table_name(table)
                    .set_item(Some(fields.map_err(|error| malformed(&error))?))
                    .set_condition_expression(text)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .build()
                    .map_err(|error| malformed(&error))?,
            ),
            WriteKind::Update(key, update) => {
                update.check(OPERATION)?;
                let (names, values) = (merge(names, update.names), merge(values, update.values));
                item.update(
                    Update::builder()
                        .table_name(table)
                        .set_key(Some(key_item(&key)))
                        .update_expression(update.text)
                        .set_condition_expression(text)
                        .set_expression_attribute_names(names)
                        .set_expression_attribute_values(values)
                        .build()
                        .map_err(|error| malformed(&error))?,
                )
            }
            WriteKind::Delete(key) => item.delete(
                Delete::builder()
                    .table_name(table)
                    .set_key(Some(key_item(&key)))
                    .set_condition_expression(text)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .build()
                    .map_err(|error| malformed(&error))?,
            ),
            WriteKind::Check(key) => item.condition_check(
                ConditionCheck::builder()
                    .table_name(table)
                    .set_key(Some(key_item(&key)))
                    .set_condition_expression(text)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .build()
                    .map_err(|error| malformed(&error))?,
            ),
        };
        Ok(item.build())
    }
}

impl Table {
    /// A client for the table of this name.
    #[must_use]
    pub fn new(config: &Config, name: impl Into<String>) -> Self {
        Self { client: Client::new(config), name: name.into() }
    }

    /// The item, or `None`.
    pub async fn get<T: DeserializeOwned>(&self, key: &ItemKey) -> Result<Option<T>, AwsError> {
        let found = self
            .client
            .get_item()
            .table_name(&self.name)
            .set_key(Some(key_item(key)))
            .consistent_read(true)
            .send()
            .await
            .map_err(aws!("dynamodb", "GetItem"))?;
        found.item.map(|item| from_item("GetItem", item)).transpose()
    }

    /// Writes the whole item, whatever was there.
    pub async fn put<T: Serialize>(&self, key: &ItemKey, item: &T) -> Result<(), AwsError> {
        self.put_request(key, item)?.send().await.map_err(aws!("dynamodb", "PutItem"))?;
        Ok(())
    }

    /// Writes the whole item when the condition holds.
    pub async fn put_if<T: Serialize>(
        &self,
        key: &ItemKey,
        item: &T,
        condition: Expression,
    ) -> Result<Conditional<()>, AwsError> {
        condition.check("PutItem")?;
        let sent = self
            .put_request(key, item)?
            .condition_expression(condition.text)
            .set_expression_attribute_names(filled(condition.names))
            .set_expression_attribute_values(filled(condition.values))
            .send()
            .await;
        match sent {
            Ok(_) => Ok(Conditional::Done(())),
            Err(error) => condition_is_value(aws!("dynamodb", "PutItem")(error)),
        }
    }

    /// Changes attributes and returns the whole new item. Creates the item when absent, unless the condition forbids.
    pub async fn update<T: DeserializeOwned>(
        &self,
        key: &ItemKey,
        update: Expression,
        condition: Option<Expression>,
    ) -> Result<Conditional<T>, AwsError> {
        let condition = condition.unwrap_or_default();
        condition.check("UpdateItem")?;
        update.check("UpdateItem")?;
        let sent = self
            .client
            .update_item()
            .table_name(&self.name)
            .set_key(Some(key_item(key)))
            .update_expression(update.text)
            .set_condition_expression((!condition.text.is_empty()).then_some(condition.text))
            .set_expression_attribute_names(merge(filled(condition.names), update.names))
            .set_expression_attribute_values(merge(filled(condition.values), update.values))
            .return_values(ReturnValue::AllNew)
            .send()
            .await;
        match sent {
            Ok(done) => Ok(Conditional::Done(from_item("UpdateItem", done.attributes.unwrap_or_default())?)),
            Err(error) => condition_is_value(aws!("dynamodb", "UpdateItem")(error)),
        }
    }

    /// Deletes an item when the condition holds: it is still the one that was looked at.
    pub async fn delete_if(&self, key: &ItemKey, condition: Expression) -> Result<Conditional<()>, AwsError> {
        condition.check("DeleteItem")?;
        let sent = self
            .client
            .delete_item()
            .table_name(&self.name)
            .set_key(Some(key_item(key)))
            .condition_expression(condition.text)
            .set_expression_attribute_names(filled(condition.names))
            .set_expression_attribute_values(filled(condition.values))
            .send()
            .await;
        match sent {
            Ok(_) => Ok(Conditional::Done(())),
            Err(error) => condition_is_value(aws!("dynamodb", "DeleteItem")(error)),
        }
    }

    /// Sets a number that only rises: a writer that is late, or repeated, changes nothing. Nothing happens without the item.
    pub async fn raise<T: Serialize>(&self, key: &ItemKey, attribute: &str, value: T) -> Result<(), AwsError> {
        let update = Expression::new("SET #number = :value").name("#number", attribute).value(":value", value);
        let rises = Expression::new("attribute_exists(pk) AND #number < :value");
        let _: Conditional<serde::de::IgnoredAny> = self.update(key, update, Some(rises)).await?;
        Ok(())
    }

    /// Every item of a partition whose sort key begins with the prefix (which may be empty), in sort key order, all pages.
    pub async fn query<T: DeserializeOwned>(&self, pk: &str, sk_prefix: &str) -> Result<Vec<T>, AwsError> {
        Ok(self.query_keyed(pk, sk_prefix).await?.into_iter().map(|(_, item)| item).collect())
    }

    /// The same, each item with its sort key.
    pub async fn query_keyed<T: DeserializeOwned>(
        &self,
        pk: &str,
        sk_prefix: &str,
    ) -> Result<Vec<(String, T)>, AwsError> {
        self.query_each::<T>(pk, sk_prefix).await?.into_iter().map(|(sk, item)| Ok((sk, item?))).collect()
    }

    /// The same, each item read by itself: for whoever looks after many things, and must not let one that cannot be read keep it
    /// from the others.
    pub async fn query_each<T: DeserializeOwned>(&self, pk: &str, sk_prefix: &str) -> Result<Vec<Item<T>>, AwsError> {
        let mut condition = Expression::new("pk = :pk").value(":pk", pk);
        if !sk_prefix.is_empty() {
            condition.text.push_str(" AND begins_with(sk, :sk)");
            condition = condition.value(":sk", sk_prefix);
        }
        condition.check("Query")?;
        let mut pages = self
            .client
            .query()
            .table_name(&self.name)
            .key_condition_expression(condition.text)
            .set_expression_attribute_values(Some(condition.values))
            .consistent_read(true)
            .into_paginator()
            .send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            for item in page.map_err(aws!("dynamodb", "Query"))?.items.unwrap_or_default() {
                let sk = item.get("sk").and_then(|sk| sk.as_s().ok()).cloned().unwrap_or_default();
                found.push((sk, from_item("Query", item)));
            }
        }
        Ok(found)
    }

    /// Writes all or nothing. `token` (at most 36 characters) makes a repeated request within ten minutes one request.
    pub async fn transact(&self, writes: Vec<Write>, token: Option<&str>) -> Result<Transacted, AwsError> {
        let mut request = self.client.transact_write_items().set_client_request_token(token.map(Into::into));
        for write in writes {
            request = request.transact_items(write.into_request(&self.name)?);
        }
        let Err(error) = request.send().await else { return Ok(Transacted::Done) };
        if let Some(TransactWriteItemsError::TransactionCanceledException(canceled)) = error.as_service_error() {
            let codes: Vec<&str> =
                canceled.cancellation_reasons().iter().map(|reason| reason.code().unwrap_or_default()).collect();
            if let Some(result) = read_reasons(&codes) {
                return Ok(result);
            }
        }
        Err(aws!("dynamodb", "TransactWriteItems")(error))
    }

    fn put_request<T: Serialize>(
        &self,
        key: &ItemKey,
        item: &T,
    ) -> Result<aws_sdk_dynamodb::operation::put_item::builders::PutItemFluentBuilder, AwsError> {
        let fields = to_item(key, item).map_err(|error| AwsError::malformed("dynamodb", "PutItem", error))?;
        Ok(self.client.put_item().table_name(&self.name).set_item(Some(fields)))
    }
}

/// What the reasons of a cancelled transaction, one for each write, mean. A conflict anywhere makes the failed conditions
/// meaningless: they may have been judged against what is being replaced.
fn read_reasons(codes: &[&str]) -> Option<Transacted> {
    const PASSING: [&str; 3] = ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"];
    if codes.iter().any(|code| PASSING.contains(code)) {
        return Some(Transacted::Conflict);
    }
    let failed: Vec<usize> =
        codes.iter().enumerate().filter(|(_, code)| **code == "ConditionalCheckFailed").map(|(at, _)| at).collect();
    (!failed.is_empty()).then_some(Transacted::ConditionFailed(failed))
}

fn key_item(key: &ItemKey) -> HashMap<String, AttributeValue> {
    HashMap::from([
        ("pk".to_owned(), AttributeValue::S(key.pk.clone())),
        ("sk".to_owned(), AttributeValue::S(key.sk.clone())),
    ])
}

fn to_item<T: Serialize>(key: &ItemKey, item: &T) -> Result<HashMap<String, AttributeValue>, String> {
    let mut fields: HashMap<String, AttributeValue> =
        serde_dynamo::to_item(item).map_err(|error| format!("{}/{}: {error}", key.pk, key.sk))?;
    fields.extend(key_item(key));
    Ok(fields)
}

fn from_item<T: DeserializeOwned>(
    operation: &'static str,
    mut item: HashMap<String, AttributeValue>,
) -> Result<T, AwsError> {
    let (pk, sk) = (item.remove("pk"), item.remove("sk"));
    serde_dynamo::from_item(item)
        .map_err(|error| AwsError::malformed("dynamodb", operation, format_args!("item {pk:?} {sk:?}: {error}")))
}

fn condition_is_value<T>(error: AwsError) -> Result<Conditional<T>, AwsError> {
    if error.code == "ConditionalCheckFailedException" { Ok(Conditional::ConditionFailed) } else { Err(error) }
}

fn filled<V>(map: HashMap<String, V>) -> Option<HashMap<String, V>> {
    (!map.is_empty()).then_some(map)
}

fn merge<V>(first: Option<HashMap<String, V>>, second: HashMap<String, V>) -> Option<HashMap<String, V>> {
    let mut all = first.unwrap_or_default();
    all.extend(second);
    filled(all)
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{
        Usd,
        ledger::{BudgetItem, RunStatus},
    };

    use super::*;

    #[test]
    fn items_carry_their_keys_and_come_back_without_them() {
        let key = ItemKey::account_budget("2026-11");
        let item = BudgetItem { limit: Usd::from_micros(5), alarms_sent: vec![50], ..BudgetItem::default() };
        let fields = to_item(&key, &item).unwrap();
        assert_eq!(fields["sk"], AttributeValue::S("ACCOUNT".into()));
        assert_eq!(fields["limit"], AttributeValue::N("5".into()));
        assert_eq!(from_item::<BudgetItem>("GetItem", fields).unwrap(), item);
    }

    #[test]
    fn values_use_the_wire_names() {
        let expression = Expression::new("#s = :s").name("#s", "status").value(":s", RunStatus::GateRefused);
        assert_eq!(expression.values[":s"], AttributeValue::S("gate_refused".into()));
    }

    #[test]
    fn a_conflict_hides_failed_conditions() {
        assert_eq!(read_reasons(&["None", "ConditionalCheckFailed"]), Some(Transacted::ConditionFailed(vec![1])));
        assert_eq!(read_reasons(&["TransactionConflict", "ConditionalCheckFailed"]), Some(Transacted::Conflict));
        assert_eq!(read_reasons(&["None", "ValidationError"]), None);
    }
}
