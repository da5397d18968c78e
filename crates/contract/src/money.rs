//! Money in whole micro-dollars: no rounding surprises, and arithmetic that refuses to overflow.

use std::{fmt, iter::Sum};

use serde::{Deserialize, Serialize};

use crate::time::Seconds;

/// An amount of US dollars in whole micro-dollars. On the wire: an integer, 1 USD = 1,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Usd(i64);

impl Usd {
    /// No money.
    pub const ZERO: Self = Self(0);

    /// From whole micro-dollars.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From dollars as people write them, rounded to the nearest micro-dollar; `None` when not finite or beyond ±9 × 10¹².
    #[must_use]
    pub fn from_dollars(dollars: f64) -> Option<Self> {
        let micros = (dollars * 1e6).round();
        (micros.is_finite() && micros.abs() < 9e18).then_some(Self(micros as i64))
    }

    /// Whole micro-dollars.
    #[must_use]
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Dollars, for display and ratios only.
    #[must_use]
    pub fn dollars(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Sum that stays at the limit instead of overflowing: a budget check then fails closed.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Difference that stays at the limit instead of overflowing.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The larger of the two.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }

    /// What `duration` costs at this price per hour, rounded up to a micro-dollar: the meter never under-reports.
    #[must_use]
    pub fn per_hour_for(self, duration: Seconds) -> Self {
        let exact = i128::from(self.0) * i128::from(duration.0);
        let up = exact.div_euclid(3600) + i128::from(exact.rem_euclid(3600) != 0);
        Self(i64::try_from(up).unwrap_or(i64::MAX))
    }
}

impl Sum for Usd {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::saturating_add)
    }
}

impl fmt::Display for Usd {
    /// `$12.34`; what would be lost below a cent is kept, without zeros at the end: `$0.288`, `$0.000042`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let micros = self.0.unsigned_abs();
        let (dollars, rest) = (micros / 1_000_000, micros % 1_000_000);
        let digits = if dollars > 0 { format!("{:04}", rest / 100) } else { format!("{rest:06}") };
        let (cents, below) = digits.split_at(2);
        write!(f, "{sign}${dollars}.{cents}{}", below.trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_keeps_small_amounts_visible() {
        for (micros, text) in [
            (0, "$0.00"),
            (1_250_000, "$1.25"),
            (42, "$0.000042"),
            (12_345_678, "$12.3456"),
            (288_000, "$0.288"),
            (-500_000, "-$0.50"),
        ] {
            assert_eq!(Usd::from_micros(micros).to_string(), text);
        }
    }

    #[test]
    fn a_price_per_hour_rounds_up_and_never_overflows() {
        assert_eq!(Usd::from_micros(3600).per_hour_for(Seconds(1)), Usd::from_micros(1));
        assert_eq!(Usd::from_micros(3601).per_hour_for(Seconds(1)), Usd::from_micros(2));
        assert_eq!(Usd::from_micros(i64::MAX).per_hour_for(Seconds(u64::MAX)), Usd::from_micros(i64::MAX));
    }

    #[test]
    fn dollars_that_are_no_amount_are_refused() {
        assert_eq!(Usd::from_dollars(f64::NAN), None);
        assert_eq!(Usd::from_dollars(1e300), None);
        assert_eq!(Usd::from_dollars(0.1), Some(Usd::from_micros(100_000)));
    }
}
