//! Prices, quotes, ledger arithmetic, forecasts. Pure: no clock, no network; what is not known here (spot prices, quotas,
//! table items, the time) is passed in, and decisions come back as values that somebody else carries out.

mod endpoint;
mod forecast;
mod ledger;
mod prices;
mod quote;
mod shape;
mod workload;

pub use endpoint::{EndpointPrice, UnknownPrice};
pub use forecast::{ALARM_PERCENTS, forecast, reached_percents};
pub use ledger::{
    BudgetChange, LedgerError, Owner, ReserveInput, ReservePlan, SettleInput, SettlePlan, open_reservation,
    plan_reserve, plan_settle, with_limit,
};
pub use prices::{Machine, PriceTable, QuotaCodes};
pub use quote::{QuoteError, QuoteInput, Quoted, SpotOffer, candidates, quote};
pub use shape::{ModelShape, ShapeError};
pub use workload::{Workload, WorkloadInput, workload};
