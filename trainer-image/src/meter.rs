//! What the machine costs, and when it must stop. Arithmetic only.

use tunesmith_contract::{Seconds, UnixTime, Usd, job::Control};

use crate::stop::StopReason;

/// Part of the allowed time that is kept for finishing a step, the checkpoint and its upload.
const RESERVE_PART: u64 = 10;
/// The most that is kept: what a spot notice allows as well.
const RESERVE_MOST: Seconds = Seconds(120);

/// What the machine has cost until `now`: by the second, since its launch.
#[must_use]
pub fn metered(control: &Control, now: UnixTime) -> Usd {
    control.price_per_hour.per_hour_for(now.since(control.launched_at))
}

/// How long the attempt may run, from the launch: until its time or its money is used up.
#[must_use]
pub fn allowed(control: &Control) -> Seconds {
    let price = i128::from(control.price_per_hour.micros());
    if price <= 0 {
        return control.max_time;
    }
    let affordable = i128::from(control.cap.micros().max(0)) * 3600 / price;
    Seconds(u64::try_from(affordable).unwrap_or(u64::MAX).min(control.max_time.0))
}

/// When the attempt must begin to stop, so that it has ended, checkpointed, before its limit.
#[must_use]
pub fn stop_at(control: &Control) -> UnixTime {
    let allowed = allowed(control);
    let reserve = (allowed.0 / RESERVE_PART).min(RESERVE_MOST.0);
    control.launched_at.after(Seconds(allowed.0 - reserve))
}

/// The reason to stop at `now`.
#[must_use]
pub fn cap_reached(control: &Control, now: UnixTime) -> StopReason {
    StopReason::CapReached {
        cap: control.cap,
        max_time: control.max_time,
        metered: metered(control, now),
        elapsed: now.since(control.launched_at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(price: i64, cap: i64, max_time: u64) -> Control {
        Control {
            attempt: "a".into(),
            task_token: "t".into(),
            table: "table".into(),
            price_per_hour: Usd::from_micros(price),
            cap: Usd::from_micros(cap),
            max_time: Seconds(max_time),
            launched_at: UnixTime(1_000),
            heartbeat_every: Seconds(30),
        }
    }

    #[test]
    fn the_machine_stops_before_its_money_or_its_time_is_used_up() {
        for (price, cap, max_time, at) in [
            (36_000, 36_000, 7_200, 1_000 + 3_600 - 120),
            (36_000, 1_000_000, 600, 1_000 + 540),
            (36_000, 0, 600, 1_000),
            (0, 0, 600, 1_540),
        ] {
            let control = control(price, cap, max_time);
            assert_eq!(stop_at(&control), UnixTime(at), "{control:?}");
            assert!(metered(&control, stop_at(&control)) <= control.cap);
        }
    }

    #[test]
    fn the_meter_runs_from_the_launch() {
        assert_eq!(metered(&control(3_600_000, 1, 1), UnixTime(1_090)), Usd::from_micros(90_000));
        assert_eq!(metered(&control(3_600_000, 1, 1), UnixTime(900)), Usd::ZERO);
    }
}
