//! Retention: which snapshots of a group stay, and why.
//!
//! This module decides and does not delete. It reads neither store nor clock: the caller gives the
//! civil time of each snapshot in the zone whose days people see, and what is known about it.
//!
//! The rules are those of restic. Each rule walks the snapshots from the newest to the oldest and
//! keeps the first one of each hour, day, week, month or year, until its number is reached. Only
//! sound snapshots count. An incomplete snapshot takes nobody's place, and neither does one from an
//! emptied source or with a wrong time.

use crate::id::SnapshotId;
use crate::snapshot::{CLOCK_TOLERANCE, Snapshot, Stamp};
use jiff::Span;
use jiff::civil::DateTime;
use serde::{Deserialize, Deserializer};
use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

/// Rules for the snapshots that stay. A snapshot stays if any of them keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Rules {
    /// Number of newest snapshots.
    pub last: Option<Number>,
    /// Number of hours, the newest snapshot of each.
    pub hourly: Option<Number>,
    /// Number of days, the newest snapshot of each.
    pub daily: Option<Number>,
    /// Number of weeks, which begin on Monday, the newest snapshot of each.
    pub weekly: Option<Number>,
    /// Number of months, the newest snapshot of each.
    pub monthly: Option<Number>,
    /// Number of years, the newest snapshot of each.
    pub yearly: Option<Number>,
    /// Period before the newest sound snapshot, of which all snapshots stay.
    pub within: Option<Period>,
    /// Tags whose snapshots stay. No snapshot has an empty tag, so none of them is empty.
    #[serde(deserialize_with = "tags")]
    pub tags: Vec<String>,
}

fn tags<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let tags = Vec::<String>::deserialize(from)?;
    match tags.iter().any(String::is_empty) {
        true => Err(serde::de::Error::custom("an empty tag keeps no snapshot; leave it out")),
        false => Ok(tags),
    }
}

/// A rule that keeps a number of snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// The newest ones.
    Last,
    /// One an hour.
    Hourly,
    /// One a day.
    Daily,
    /// One a week.
    Weekly,
    /// One a month.
    Monthly,
    /// One a year.
    Yearly,
}

impl Rule {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Last => "last",
            Rule::Hourly => "hourly",
            Rule::Daily => "daily",
            Rule::Weekly => "weekly",
            Rule::Monthly => "monthly",
            Rule::Yearly => "yearly",
        }
    }

    /// Returns a value that the snapshots of one hour, day, week, month or year share. `rank` is the
    /// number of newer snapshots.
    fn bucket(self, civil: DateTime, rank: usize) -> (i64, u8) {
        let year = i64::from(civil.year());
        let day = || i64::from(civil.date().day_of_year()) + year * 1000;
        match self {
            Rule::Last => (rank as i64, 0),
            Rule::Hourly => (day(), civil.hour().unsigned_abs()),
            Rule::Daily => (day(), 0),
            Rule::Weekly => {
                let week = civil.date().iso_week_date();
                (week.year().into(), week.week().unsigned_abs())
            }
            Rule::Monthly => (year, civil.month().unsigned_abs()),
            Rule::Yearly => (year, 0),
        }
    }
}

/// Number of snapshots that a rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// At most this many.
    Of(u32),
    /// As many as there are.
    Unlimited,
}

/// The text is not a number of snapshots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number of snapshots; write 7 or unlimited")]
pub struct WrongNumber(String);

impl FromStr for Number {
    type Err = WrongNumber;

    fn from_str(text: &str) -> Result<Number, WrongNumber> {
        match text {
            "unlimited" => Ok(Number::Unlimited),
            // `parse` accepts a plus sign.
            _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().map(Number::Of).map_err(|_| WrongNumber(text.to_owned()))
            }
            _ => Err(WrongNumber(text.to_owned())),
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Of(number) => number.fmt(f),
            Number::Unlimited => f.write_str("unlimited"),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Number, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a number of snapshots or \"unlimited\"")]
        enum Word {
            Number(u32),
            Text(String),
        }
        match Word::deserialize(from)? {
            Word::Number(number) => Ok(Number::Of(number)),
            Word::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// A period of the calendar, such as `1y6m14d12h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Period {
    /// Years.
    pub years: u16,
    /// Months.
    pub months: u16,
    /// Days.
    pub days: u16,
    /// Hours.
    pub hours: u16,
}

/// The text is not a period.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a period such as 30d, 12h or 1y6m (years, months, days, hours)")]
pub struct WrongPeriod(String);

impl Period {
    /// Returns true if it has no length.
    pub fn is_empty(self) -> bool {
        self == Period::default()
    }

    /// Returns the civil time that lies this period before `civil`. Months may be shorter: a month
    /// before 31 March is the last day of February.
    fn before(self, civil: DateTime) -> DateTime {
        let Period { years, months, days, hours } = self;
        let span = Span::new()
            .try_years(years)
            .and_then(|span| span.try_months(months))
            .and_then(|span| span.try_days(days))
            .and_then(|span| span.try_hours(hours));
        // Before the first year of the calendar.
        span.and_then(|span| civil.checked_sub(span)).unwrap_or(DateTime::MIN)
    }
}

impl FromStr for Period {
    type Err = WrongPeriod;

    fn from_str(text: &str) -> Result<Period, WrongPeriod> {
        let wrong = || WrongPeriod(text.to_owned());
        let (mut period, mut rest, mut units) = (Period::default(), text, "ymdh");
        while !rest.is_empty() {
            let end = rest.bytes().position(|byte| !byte.is_ascii_digit()).ok_or_else(wrong)?;
            let unit = rest[end..].chars().next().ok_or_else(wrong)?;
            // Each unit at most once, the largest first.
            let at = units.find(unit).ok_or_else(wrong)?;
            units = &units[at + 1..];
            let number = rest[..end].parse().map_err(|_| wrong())?;
            match unit {
                'y' => period.years = number,
                'm' => period.months = number,
                'd' => period.days = number,
                _ => period.hours = number,
            }
            rest = &rest[end + 1..];
        }
        if period.is_empty() { Err(wrong()) } else { Ok(period) }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Period { years, months, days, hours } = *self;
        let all = [(years, 'y'), (months, 'm'), (days, 'd'), (hours, 'h')];
        all.into_iter()
            .filter(|(number, _)| *number > 0)
            .try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Period, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Rules {
    /// Returns true if no rule can keep a snapshot. Such rules decide about nothing.
    pub fn is_empty(&self) -> bool {
        let keeps_some =
            |(_, number): &(Rule, Option<Number>)| !matches!(number, Some(Number::Of(0)) | None);
        !self.numbers().iter().any(keeps_some)
            && self.within.is_none_or(Period::is_empty)
            && self.tags.is_empty()
    }

    /// Returns the rules that keep a number of snapshots.
    pub fn numbers(&self) -> [(Rule, Option<Number>); 6] {
        [
            (Rule::Last, self.last),
            (Rule::Hourly, self.hourly),
            (Rule::Daily, self.daily),
            (Rule::Weekly, self.weekly),
            (Rule::Monthly, self.monthly),
            (Rule::Yearly, self.yearly),
        ]
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = self.numbers().into_iter();
        let numbers =
            numbers.filter_map(|(rule, number)| Some(format!("{} {}", rule.name(), number?)));
        let within = self.within.iter().map(|period| format!("within {period}"));
        let tags = self.tags.iter().map(|tag| format!("tag {tag}"));
        f.write_str(&numbers.chain(within).chain(tags).collect::<Vec<_>>().join(", "))
    }
}

/// Reason why a snapshot counts for rules, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Soundness {
    /// It counts.
    Sound,
    /// Something that belongs to it could not be read.
    Incomplete,
    /// Its source had lost most of its files.
    Emptied,
    /// It is dated in the future.
    Future,
    /// Its times contradict each other, or those of its parent.
    WrongTime,
}

/// A snapshot about which rules decide.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Id of the snapshot.
    pub id: SnapshotId,
    /// Number of the series that it continues. A group may have several.
    pub series: usize,
    /// Start of the snapshot.
    pub start: Stamp,
    /// The start in the time zone whose days people see.
    pub civil: DateTime,
    /// Reason why it counts, or not.
    pub soundness: Soundness,
    /// Tags of the snapshot.
    pub tags: Vec<String>,
    /// True if some of its tags are unknown.
    pub has_unknown_tags: bool,
    /// True if it is pinned.
    pub is_pinned: bool,
}

/// Reason why a snapshot stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is pinned.
    Pinned,
    /// A rule with a number keeps it.
    Rule {
        /// The rule.
        rule: Rule,
        /// Its place among those that the rule keeps, from 1.
        place: usize,
        /// Number of the rule.
        of: Number,
        /// True if it stays because it is the oldest and the rule has places left.
        is_oldest: bool,
    },
    /// It is not older than this period before the newest sound snapshot.
    Within(Period),
    /// It is not older than this period before the second newest sound snapshot. The newest is alone
    /// in its own period, which may be the work of a clock that jumped ahead.
    WithinSecond(Period),
    /// It has this tag.
    Tag(String),
    /// Some of its tags are unknown, and a rule asks for tags.
    UnknownTags,
    /// It is the newest sound snapshot of its series.
    Newest,
    /// It is not sound, and no sound one of its series is newer.
    NothingNewer,
    /// It is dated in the future.
    Future,
    /// Its times contradict each other, or those of its parent.
    WrongTime,
    /// No rule was given.
    NoRules,
}

/// Decision about a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Index of the snapshot among the candidates.
    pub candidate: usize,
    /// Reasons why it stays. Without any, it goes.
    pub reasons: Vec<Reason>,
}

impl Decision {
    /// Returns true if the snapshot stays.
    pub fn stays(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// Returns true if the clock was set back during a snapshot, or between its parent and itself.
///
/// A backup reads the record of its parent after it began, so the parent had ended by then. Both ran
/// on one machine.
pub fn has_wrong_time(snapshot: &Snapshot, parent: Option<&Snapshot>) -> bool {
    let is_before = |a: Stamp, b: Stamp| a.seconds.saturating_add(CLOCK_TOLERANCE) < b.seconds;
    is_before(snapshot.end, snapshot.start)
        || parent.is_some_and(|parent| is_before(snapshot.start, parent.end.max(parent.start)))
}

/// Decides about the snapshots of one group. Returns the decisions from the newest snapshot to the
/// oldest.
///
/// - Each rule counts sound snapshots only. The oldest of them stays as well if a rule has places
///   left, so that a history grows to its full length.
/// - The newest sound snapshot of each series always stays.
/// - Snapshots that are not sound stay while no sound one of their series is newer. Others go, unless
///   a period, a tag or a pin keeps them.
/// - Snapshots with a wrong time stay, because nobody knows whose place they would take.
/// - Without rules, all stay.
pub fn decide(rules: &Rules, candidates: &[Candidate]) -> Vec<Decision> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_unstable_by_key(|&at| Reverse((candidates[at].start, candidates[at].id)));
    let mut decisions: Vec<Decision> =
        order.iter().map(|&candidate| Decision { candidate, reasons: Vec::new() }).collect();
    let has_no_rules = rules.is_empty();
    for decision in &mut decisions {
        let Candidate { is_pinned, soundness, .. } = candidates[decision.candidate];
        let wrong = match soundness {
            Soundness::Future => Some(Reason::Future),
            Soundness::WrongTime => Some(Reason::WrongTime),
            _ => None,
        };
        let pinned = is_pinned.then_some(Reason::Pinned);
        let without_rules = has_no_rules.then_some(Reason::NoRules);
        decision.reasons.extend(pinned.into_iter().chain(without_rules).chain(wrong));
    }
    if has_no_rules {
        return decisions;
    }
    let is_sound = |&at: &usize| candidates[order[at]].soundness == Soundness::Sound;
    // Places in `decisions`, newest first.
    let sound: Vec<usize> = (0..order.len()).filter(is_sound).collect();
    for (rule, number) in rules.numbers() {
        if let Some(number) = number {
            count(rule, number, &sound, candidates, &mut decisions);
        }
    }
    if let Some(period) = rules.within {
        within(period, &sound, candidates, &mut decisions);
    }
    for decision in &mut decisions {
        let Candidate { tags, has_unknown_tags, .. } = &candidates[decision.candidate];
        let kept = rules.tags.iter().filter(|tag| tags.contains(tag));
        decision.reasons.extend(kept.cloned().map(Reason::Tag));
        if *has_unknown_tags && !rules.tags.is_empty() {
            decision.reasons.push(Reason::UnknownTags);
        }
    }
    let mut have_sound = HashSet::new();
    for decision in &mut decisions {
        let Candidate { series, soundness, .. } = candidates[decision.candidate];
        let is_first = match soundness {
            Soundness::Sound => have_sound.insert(series),
            _ => !have_sound.contains(&series),
        };
        if is_first && !decision.stays() {
            let is_sound = soundness == Soundness::Sound;
            decision.reasons.push(if is_sound { Reason::Newest } else { Reason::NothingNewer });
        }
    }
    decisions
}

/// Keeps the first sound snapshot of each bucket of a rule.
fn count(
    rule: Rule,
    number: Number,
    sound: &[usize],
    candidates: &[Candidate],
    decisions: &mut [Decision],
) {
    let (mut place, mut last) = (0, None);
    for (rank, &at) in sound.iter().enumerate() {
        if matches!(number, Number::Of(number) if place >= number as usize) {
            return;
        }
        let decision = &mut decisions[at];
        let bucket = Some(rule.bucket(candidates[decision.candidate].civil, rank));
        let is_oldest = bucket == last;
        if !is_oldest || rank + 1 == sound.len() {
            (place, last) = (place + 1, bucket);
            decision.reasons.push(Reason::Rule { rule, place, of: number, is_oldest });
        }
    }
}

/// Keeps the snapshots of a period before the newest sound one.
fn within(period: Period, sound: &[usize], candidates: &[Candidate], decisions: &mut [Decision]) {
    let civil = |decision: &Decision| candidates[decision.candidate].civil;
    let Some(&newest) = sound.first() else { return };
    let begin = period.before(civil(&decisions[newest]));
    // A clock that jumped ahead must not empty the period at once.
    let second = sound.get(1).map(|&second| civil(&decisions[second]));
    let begin_second = second.filter(|second| *second <= begin).map(|second| period.before(second));
    for decision in decisions {
        let own = civil(decision);
        if own > begin {
            decision.reasons.push(Reason::Within(period));
        } else if begin_second.is_some_and(|begin| own > begin) {
            decision.reasons.push(Reason::WithinSecond(period));
        }
    }
}

#[cfg(test)]
mod tests;
