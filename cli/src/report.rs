//! Formats numbers, times and paths for people and programs.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use store::entry::{Displayed, Entry, Time, is_deceptive};
use store::snapshot::Statistics;

/// Formats a number of bytes in binary units.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Formats a number of things. `one` is the name of one thing.
pub fn count(number: u64, one: &str) -> String {
    match (number, one.strip_suffix('y')) {
        (1, _) => format!("1 {one}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {one}s"),
    }
}

/// Returns the current time.
#[expect(clippy::disallowed_methods, reason = "the one place that asks the clock")]
pub fn now() -> Time {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Time { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() },
        // A clock before 1970 is wrong in any case.
        Err(_) => Time::default(),
    }
}

fn timestamp(time: Time) -> jiff::Timestamp {
    let nanoseconds = time.nanoseconds as i32;
    jiff::Timestamp::new(time.seconds, nanoseconds).unwrap_or(if time.seconds < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    })
}

/// Formats a time in the zone of this machine, to the second.
pub fn local_time(time: Time) -> String {
    timestamp(time).to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Returns the civil time in the zone of this machine.
pub fn civil_time(time: Time) -> jiff::civil::DateTime {
    timestamp(time).to_zoned(jiff::tz::TimeZone::system()).datetime()
}

/// Returns the first second of a day in the zone of this machine, and that of the next day, since
/// 1970.
pub fn seconds_of_day(day: jiff::civil::Date) -> Range<i64> {
    let zone = jiff::tz::TimeZone::system();
    // In a zone that skips midnight, a day begins later.
    let begin = |day: jiff::civil::Date| {
        day.to_zoned(zone.clone()).map_or(i64::MAX, |time| time.timestamp().as_second())
    };
    begin(day)..day.tomorrow().map_or(i64::MAX, begin)
}

/// Names the time zone of this machine.
pub fn zone() -> String {
    let zone = jiff::tz::TimeZone::system();
    match zone.iana_name() {
        Some(name) => name.to_owned(),
        None => timestamp(now()).to_zoned(zone).strftime("UTC%:z").to_string(),
    }
}

/// Formats a time for programs: RFC 3339, UTC, to the nanosecond.
pub fn utc_time(time: Time) -> String {
    timestamp(time).to_string()
}

/// Returns a path for programs: as it is, or escaped as in messages if it is not UTF-8.
pub fn path_text(path: &Path) -> String {
    path.to_str().map_or_else(|| path.displayed(), str::to_owned)
}

/// Makes a text safe to print on one line. Escapes characters that control a terminal, end a line
/// or reverse the order of text, whatever their source.
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(is_deceptive) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_deceptive(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    Cow::Owned(safe)
}

/// Formats kind and mode as `ls -l` does.
pub fn mode(entry: &Entry) -> String {
    let bit = |mask: u32, letter: char| if entry.mode & mask != 0 { letter } else { '-' };
    let special = |mask: u32, execute: u32, letter: char| match (
        entry.mode & mask != 0,
        entry.mode & execute != 0,
    ) {
        (true, true) => letter,
        (true, false) => letter.to_ascii_uppercase(),
        (false, true) => 'x',
        (false, false) => '-',
    };
    [
        entry.kind.letter(),
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        special(0o4000, 0o100, 's'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        special(0o2000, 0o010, 's'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        special(0o1000, 0o001, 't'),
    ]
    .iter()
    .collect()
}

/// Returns the names of user and group, or the number if there is no name.
pub fn owner(entry: &Entry) -> (String, String) {
    let name = |name: &Option<Vec<u8>>, number: u32| match name {
        Some(name) => String::from_utf8_lossy(name).into_owned(),
        None => number.to_string(),
    };
    (name(&entry.owner.user, entry.owner.uid), name(&entry.owner.group, entry.owner.gid))
}

/// Describes the bytes that backups found in the store; `None` if they found none.
pub fn reuse(statistics: &Statistics) -> Option<String> {
    let Statistics { bytes_read, found_by_chunk, found_by_extent, .. } = *statistics;
    (found_by_chunk + found_by_extent > 0).then(|| {
        format!(
            "read {}: {} found by chunk, {} by extent, {} stored",
            size(bytes_read),
            size(found_by_chunk),
            size(found_by_extent),
            size(statistics.added_stored_bytes)
        )
    })
}

/// Returns a warning about skipped snapshot records, or `None` if there are none.
pub fn skipped_records(records: u64) -> Option<String> {
    let text = format!(
        "skipped {}: unreadable, dated in the future or of a newer version; `forgekeep check` names them",
        count(records, "snapshot record")
    );
    (records > 0).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        for (text, wanted) in [
            ("plain ü 😀 \\", "plain ü 😀 \\"),
            ("\x1b[31mred\x1b[0m", "\\u{1b}[31mred\\u{1b}[0m"),
            ("one\nforgekeep: two\r\t", "one\\nforgekeep: two\\r\\t"),
            ("\u{9b}31m\u{7f}\0", "\\u{9b}31m\\u{7f}\\u{0}"),
            ("gpj.\u{202e}exe\u{2066}\u{2028}", "gpj.\\u{202e}exe\\u{2066}\\u{2028}"),
        ] {
            assert_eq!(shown(text), wanted);
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn days_follow_each_other_without_gaps() {
        let mut day = jiff::civil::date(2025, 1, 1);
        for _ in 0..800 {
            let next = day.tomorrow().expect("a day");
            let seconds = seconds_of_day(day);
            assert_eq!(seconds.end, seconds_of_day(next).start, "{day}");
            assert!(seconds.end - seconds.start > 20 * 3600, "{day}");
            for at in [seconds.start, seconds.end - 1] {
                let time = local_time(Time { seconds: at, nanoseconds: 0 });
                assert!(time.starts_with(&day.to_string()), "{time} {day}");
            }
            day = next;
        }
        assert!(!zone().is_empty());
        assert!(!seconds_of_day(jiff::civil::date(0, 1, 1)).is_empty());
        assert!(!seconds_of_day(jiff::civil::Date::MAX).contains(&0));
    }

    #[test]
    fn times_beyond_any_calendar_do_not_panic() {
        for seconds in [i64::MIN, -1, 0, i64::MAX] {
            let time = Time { seconds, nanoseconds: 999_999_999 };
            assert!(!utc_time(time).is_empty() && !local_time(time).is_empty());
        }
    }
}
