//! Alarms and forecasts of a month's budget.

use tunesmith_contract::{UnixTime, Usd};

/// Alarms go off when this share (per cent) of a budget is used.
pub const ALARM_PERCENTS: [u8; 3] = [50, 80, 100];

/// The alarm thresholds that `used` has reached, lowest first; none for a budget of zero.
#[must_use]
pub fn reached_percents(used: Usd, limit: Usd) -> Vec<u8> {
    let (used, limit) = (i128::from(used.micros()), i128::from(limit.micros()));
    ALARM_PERCENTS.into_iter().filter(|percent| limit > 0 && used * 100 >= limit * i128::from(*percent)).collect()
}

/// What the month will have cost at its end when it goes on as it began; `None` in its first day, when one run says
/// nothing.
#[must_use]
pub fn forecast(used: Usd, now: UnixTime) -> Option<Usd> {
    let day = now.0.div_euclid(86_400);
    let day_of = |day: i64| UnixTime(day * 86_400).month();
    let month = day_of(day);
    let before = (1..31).take_while(|back| day_of(day - back) == month).count() as i64;
    let after = (1..31).take_while(|ahead| day_of(day + ahead) == month).count() as i64;
    let elapsed = before * 86_400 + now.0.rem_euclid(86_400);
    if elapsed < 86_400 {
        return None;
    }
    let whole = (before + 1 + after) * 86_400;
    let micros = i128::from(used.micros()) * i128::from(whole) / i128::from(elapsed);
    Some(Usd::from_micros(i64::try_from(micros).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_go_off_at_half_four_fifths_and_all() {
        let limit = Usd::from_micros(1_000_000);
        for (used, reached) in
            [(499_999, vec![]), (500_000, vec![50]), (800_000, vec![50, 80]), (2_000_000, vec![50, 80, 100])]
        {
            assert_eq!(reached_percents(Usd::from_micros(used), limit), reached, "{used}");
        }
        assert!(reached_percents(Usd::from_micros(5), Usd::ZERO).is_empty());
    }

    #[test]
    fn a_month_goes_on_as_it_began() {
        // 2026-11-16T00:00:00Z: half of November
        let half = UnixTime(1_794_787_200);
        assert_eq!(half.month(), "2026-11");
        assert_eq!(forecast(Usd::from_micros(10), half), Some(Usd::from_micros(20)));
        // 2026-11-01T12:00:00Z: too early
        assert_eq!(forecast(Usd::from_micros(10), UnixTime(1_793_534_400)), None);
    }
}
