//! The memory of this machine, or of the container that the trainer runs in.

use std::path::Path;

/// Bytes of a megabyte.
pub const MB: u64 = 1 << 20;

/// What training may take when nobody says: nine tenths of the machine's memory or of the container's share, whichever is less.
/// The rest is for the system, the data and buffers. `None` where neither can be read.
#[must_use]
pub fn memory_limit() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    limit(
        read("/proc/meminfo").as_deref(),
        [read("/sys/fs/cgroup/memory.max"), read("/sys/fs/cgroup/memory/memory.limit_in_bytes")],
    )
}

fn limit(meminfo: Option<&str>, control_groups: [Option<String>; 2]) -> Option<u64> {
    let total = meminfo?.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024);
    // "max", or a number near 2⁶³, where there is no limit
    let shares = control_groups.iter().flatten().filter_map(|text| text.trim().parse::<u64>().ok());
    Some(shares.fold(total, u64::min) / 10 * 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_machine_and_container_counts() {
        let meminfo = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\n";
        let of = |v2: Option<&str>, v1: Option<&str>| limit(Some(meminfo), [v2.map(Into::into), v1.map(Into::into)]);
        let whole = 16_384_000_000 / 10 * 9;
        assert_eq!(of(None, None), Some(whole));
        assert_eq!(of(Some("max\n"), None), Some(whole));
        assert_eq!(of(None, Some("9223372036854771712\n")), Some(whole));
        assert_eq!(of(Some("1000000000\n"), None), Some(900_000_000));
        assert_eq!(limit(None, [Some("1000".into()), None]), None);
        assert_eq!(limit(Some("garbage"), [None, None]), None);
        assert!(!cfg!(target_os = "linux") || memory_limit().is_some_and(|bytes| bytes > 64 * MB));
    }
}
