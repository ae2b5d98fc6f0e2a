use super::*;
use crate::arbitrary::cases;
use crate::snapshot::example;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn civil(seconds: i64) -> DateTime {
    let time = jiff::Timestamp::from_second(seconds).expect("a time");
    jiff::tz::Offset::UTC.to_datetime(time)
}

fn seconds(text: &str) -> i64 {
    format!("{text}Z").parse::<jiff::Timestamp>().expect("a time").as_second()
}

fn candidate(number: u8, seconds: i64) -> Candidate {
    Candidate {
        id: SnapshotId::from_bytes([number; 32]),
        series: 0,
        start: Stamp { seconds, nanoseconds: 0 },
        civil: civil(seconds),
        soundness: Soundness::Sound,
        tags: Vec::new(),
        has_unknown_tags: false,
        is_pinned: false,
    }
}

/// Sound snapshots that began at these times.
fn at(times: &[&str]) -> Vec<Candidate> {
    times.iter().zip(0..).map(|(time, number)| candidate(number, seconds(time))).collect()
}

/// Indices of the candidates that stay, ascending.
fn staying(rules: &Rules, candidates: &[Candidate]) -> Vec<usize> {
    let decisions = decide(rules, candidates);
    assert_eq!(decisions.len(), candidates.len());
    let stay = decisions.iter().filter(|decision| decision.stays());
    let mut stay: Vec<usize> = stay.map(|decision| decision.candidate).collect();
    stay.sort_unstable();
    stay
}

fn reasons(rules: &Rules, candidates: &[Candidate], of: usize) -> Vec<Reason> {
    let mut decisions = decide(rules, candidates);
    let at = decisions.iter().position(|decision| decision.candidate == of).expect("decided");
    decisions.swap_remove(at).reasons
}

const fn of(number: u32) -> Option<Number> {
    Some(Number::Of(number))
}

fn period(text: &str) -> Period {
    text.parse().expect("a period")
}

fn last(number: u32) -> Rules {
    Rules { last: of(number), ..Rules::default() }
}

fn within(text: &str) -> Rules {
    Rules { within: Some(period(text)), ..Rules::default() }
}

#[test]
fn rules_keep_the_newest_of_each_part_of_the_calendar() {
    let nights = at(&[
        "2026-11-30T02:00:00", // Monday
        "2026-11-29T02:30:00",
        "2026-11-29T02:00:00",
        "2026-11-28T23:59:59",
        "2026-11-22T02:00:00",
        "2026-10-31T02:00:00",
        "2026-01-01T00:00:00",
        "2025-12-31T23:59:59", // of the same week
        "2024-02-29T02:00:00",
    ]);
    let rules = Rules::default;
    for (rules, stay) in [
        (last(1), &[0][..]),
        (last(3), &[0, 1, 2]),
        (last(99), &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (Rules { hourly: of(2), ..rules() }, &[0, 1]),
        (Rules { daily: of(3), ..rules() }, &[0, 1, 3]),
        (Rules { weekly: of(4), ..rules() }, &[0, 1, 4, 5]),
        (Rules { weekly: of(5), ..rules() }, &[0, 1, 4, 5, 6]),
        (Rules { monthly: of(3), ..rules() }, &[0, 5, 6]),
        (Rules { yearly: of(2), ..rules() }, &[0, 7]),
        (Rules { yearly: Some(Number::Unlimited), ..rules() }, &[0, 7, 8]),
        (Rules { daily: of(2), yearly: of(2), ..rules() }, &[0, 1, 7]),
        (within("1d"), &[0, 1]),
        (within("1d1h"), &[0, 1, 2]),
        (within("1m"), &[0, 1, 2, 3, 4, 5]),
        (within("30d"), &[0, 1, 2, 3, 4]),
        (within("1y"), &[0, 1, 2, 3, 4, 5, 6, 7]),
        (within("9999y"), &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ] {
        assert_eq!(staying(&rules, &nights), stay, "{rules:?}");
    }
    let rules = Rules { last: of(1), daily: of(5), yearly: of(9), ..rules() };
    let of_rule =
        |rule, place, of, is_oldest| Reason::Rule { rule, place, of: Number::Of(of), is_oldest };
    let newest = [
        of_rule(Rule::Last, 1, 1, false),
        of_rule(Rule::Daily, 1, 5, false),
        of_rule(Rule::Yearly, 1, 9, false),
    ];
    assert_eq!(reasons(&rules, &nights, 0), newest);
    assert_eq!(reasons(&rules, &nights, 3), [of_rule(Rule::Daily, 3, 5, false)]);
    assert_eq!(reasons(&rules, &nights, 2), []);
}

#[test]
fn the_oldest_stays_while_a_rule_has_places_left() {
    let nights = at(&["2026-03-03T02:00:00", "2026-03-02T02:00:00", "2026-03-01T02:00:00"]);
    let rules = Rules { monthly: of(2), ..Rules::default() };
    assert_eq!(staying(&rules, &nights), [0, 2]);
    let oldest = Reason::Rule { rule: Rule::Monthly, place: 2, of: Number::Of(2), is_oldest: true };
    assert_eq!(reasons(&rules, &nights, 2), [oldest]);
    let full = Rules { monthly: of(1), ..Rules::default() };
    assert_eq!(staying(&full, &nights), [0]);
}

#[test]
fn unsound_snapshots_take_nobody_s_place() {
    let mut nights = at(&[
        "2026-03-06T02:00:00",
        "2026-03-05T02:00:00",
        "2026-03-04T02:00:00",
        "2026-03-03T02:00:00",
        "2026-03-02T02:00:00",
    ]);
    nights[0].soundness = Soundness::Incomplete;
    nights[1].soundness = Soundness::Emptied;
    nights[3].soundness = Soundness::Incomplete;
    // The first two are newer than all sound ones, the fourth is not.
    assert_eq!(staying(&last(1), &nights), [0, 1, 2]);
    assert_eq!(staying(&last(2), &nights), [0, 1, 2, 4]);
    assert_eq!(reasons(&last(2), &nights, 1), [Reason::NothingNewer]);
    // A period, a tag and a pin keep it.
    assert_eq!(reasons(&within("36h"), &nights, 3), [Reason::Within(period("36h"))]);
    nights[3].tags = vec!["x".into()];
    let tagged = Rules { tags: vec!["y".into(), "x".into()], ..last(1) };
    assert_eq!(reasons(&tagged, &nights, 3), [Reason::Tag("x".into())]);
    assert_eq!(staying(&last(1), &nights), [0, 1, 2]);
    nights[3].is_pinned = true;
    assert_eq!(reasons(&last(1), &nights, 3), [Reason::Pinned]);
    // Without a sound one, none is replaced.
    for night in &mut nights {
        night.soundness = Soundness::Incomplete;
    }
    assert_eq!(staying(&last(1), &nights).len(), 5);
}

#[test]
fn a_clock_ahead_loses_nothing() {
    let mut nights = at(&["2036-03-03T02:00:00", "2026-03-02T02:00:00", "2026-03-01T02:00:00"]);
    // Its date has not come yet.
    nights[0].soundness = Soundness::Future;
    assert_eq!(reasons(&last(1), &nights, 0), [Reason::Future]);
    assert_eq!(staying(&last(2), &nights), [0, 1, 2]);
    // The clock that decides is ahead as well.
    nights[0].soundness = Soundness::Sound;
    let rules = within("7d");
    assert_eq!(staying(&rules, &nights), [0, 1, 2]);
    assert_eq!(reasons(&rules, &nights, 1), [Reason::WithinSecond(period("7d"))]);
    let three = Rules { daily: of(3), ..Rules::default() };
    assert_eq!(staying(&three, &nights), [0, 1, 2]);
}

#[test]
fn a_clock_set_back_is_found_by_the_parent() {
    let stamp = |seconds| Stamp { seconds, nanoseconds: 0 };
    let of = |start, end| Snapshot { start: stamp(start), end: stamp(end), ..example() };
    let parent = of(10_000, 20_000);
    for (start, end, is_wrong) in [
        (20_000, 21_000, false),
        (19_400, 21_000, false),
        (19_399, 21_000, true),
        (21_000, 20_400, false),
        (21_000, 20_399, true),
        (i64::MIN, i64::MAX, true),
        (i64::MAX, i64::MAX, false),
    ] {
        assert_eq!(has_wrong_time(&of(start, end), Some(&parent)), is_wrong, "{start} {end}");
    }
    assert!(!has_wrong_time(&of(5, 5), None) && has_wrong_time(&of(9_000, 5), None));
    let mut nights = at(&["2026-03-03T02:00:00", "2026-03-02T02:00:00", "2026-03-01T02:00:00"]);
    nights[1].soundness = Soundness::WrongTime;
    assert_eq!(staying(&last(1), &nights), [0, 1]);
    assert_eq!(staying(&last(2), &nights), [0, 1, 2]);
    assert_eq!(reasons(&last(2), &nights, 1), [Reason::WrongTime]);
}

#[test]
fn unknown_tags_protect_only_from_rules_about_tags() {
    let mut nights = at(&["2026-03-03T02:00:00", "2026-03-02T02:00:00"]);
    nights[1].has_unknown_tags = true;
    assert_eq!(staying(&last(1), &nights), [0]);
    let rules = Rules { tags: vec!["x".into()], ..last(1) };
    assert_eq!(reasons(&rules, &nights, 1), [Reason::UnknownTags]);
}

#[test]
fn the_newest_stays_and_empty_rules_delete_nothing() {
    let nights = at(&["2026-03-03T02:00:00", "2026-03-02T02:00:00"]);
    let only_tags = Rules { tags: vec!["x".into()], ..Rules::default() };
    assert_eq!(reasons(&only_tags, &nights, 0), [Reason::Newest]);
    assert_eq!(staying(&only_tags, &nights), [0]);
    for empty in [Rules::default(), last(0), Rules { within: Some(Period::default()), ..last(0) }] {
        assert!(empty.is_empty());
        assert_eq!(staying(&empty, &nights), [0, 1]);
    }
    assert!(!only_tags.is_empty() && !within("1h").is_empty() && !last(1).is_empty());
    assert_eq!(decide(&last(1), &[]), []);
}

#[test]
fn each_series_of_a_group_keeps_its_newest() {
    let mut nights = at(&[
        "2026-03-05T02:00:00",
        "2026-03-04T02:00:00",
        "2026-03-03T02:00:00",
        "2026-03-02T02:00:00",
    ]);
    for night in &mut nights[1..] {
        night.series = 1;
    }
    nights[1].soundness = Soundness::Incomplete;
    assert_eq!(staying(&last(1), &nights), [0, 1, 2]);
    assert_eq!(reasons(&last(1), &nights, 1), [Reason::NothingNewer]);
    assert_eq!(reasons(&last(1), &nights, 2), [Reason::Newest]);
}

#[test]
fn an_hour_that_comes_twice_is_one_hour() {
    // The clocks go back from 3 to 2 o'clock.
    let mut nights = at(&[
        "2026-10-25T02:30:00",
        "2026-10-25T01:30:00",
        "2026-10-25T00:30:00",
        "2026-10-24T23:30:00",
    ]);
    let local = ["2026-10-25T03:30", "2026-10-25T02:30", "2026-10-25T02:30", "2026-10-25T01:30"];
    for (night, local) in nights.iter_mut().zip(local) {
        night.civil = local.parse().expect("a civil time");
    }
    assert_eq!(staying(&Rules { hourly: of(3), ..Rules::default() }, &nights), [0, 1, 3]);
    assert_eq!(staying(&Rules { daily: of(1), ..Rules::default() }, &nights), [0]);
}

#[test]
fn numbers_and_periods_are_parsed() {
    assert_eq!("7".parse(), Ok(Number::Of(7)));
    assert_eq!("unlimited".parse(), Ok(Number::Unlimited));
    for wrong in ["", "-1", "+1", "all", "4294967296", "7d"] {
        assert!(wrong.parse::<Number>().is_err(), "{wrong}");
    }
    for text in ["1y5m7d2h", "30d", "12h", "2y", "1m1h"] {
        assert_eq!(period(text).to_string(), text);
    }
    assert_eq!(period("1y12h"), Period { years: 1, hours: 12, ..Period::default() });
    for wrong in ["", "d", "7", "1h1d", "1d1d", "0d", "-1d", "1w", "1.5d", "99999d", "1dü", "ü"] {
        assert!(wrong.parse::<Period>().is_err(), "{wrong}");
    }
}

#[test]
fn rules_are_read_and_shown() {
    let text = r#"{"last": 7, "yearly": "unlimited", "within": "7d", "tags": ["a", "b"]}"#;
    let rules: Rules = serde_json::from_str(text).expect("reads");
    assert_eq!(rules.to_string(), "last 7, yearly unlimited, within 7d, tag a, tag b");
    assert_eq!(serde_json::from_str::<Rules>("{}").expect("reads"), Rules::default());
    let numbers = [r#"{"lst": 7}"#, r#"{"last": -1}"#, r#"{"last": "all"}"#];
    for wrong in numbers.into_iter().chain([r#"{"within": "7w"}"#, r#"{"tags": ["a", ""]}"#]) {
        assert!(serde_json::from_str::<Rules>(wrong).is_err(), "{wrong}");
    }
}

/// Decides about one snapshot at a time, as the documentation describes the rules.
fn model(rules: &Rules, candidates: &[Candidate]) -> Vec<usize> {
    let position = |candidate: &Candidate| (candidate.start, candidate.id);
    let sound = || candidates.iter().filter(|other| other.soundness == Soundness::Sound);
    let newer = |than: &Candidate| {
        let than = position(than);
        sound().filter(move |other| position(other) > than)
    };
    let stays = |own: &Candidate| {
        let is_sound = own.soundness == Soundness::Sound;
        let by_number = |(rule, number): (Rule, Option<Number>)| {
            let places = match number {
                None => return false,
                Some(Number::Of(places)) => places as usize,
                Some(Number::Unlimited) => usize::MAX,
            };
            let bucket = |other: &Candidate| {
                let date = other.civil.date();
                match rule {
                    Rule::Last => format!("{:?}", other.id),
                    Rule::Hourly => other.civil.strftime("%Y-%m-%d %H").to_string(),
                    Rule::Daily => date.to_string(),
                    Rule::Weekly => date.strftime("%G %V").to_string(),
                    Rule::Monthly => date.strftime("%Y-%m").to_string(),
                    Rule::Yearly => date.year().to_string(),
                }
            };
            let before: BTreeSet<String> = newer(own).map(bucket).collect();
            let is_first = !before.contains(&bucket(own));
            let is_oldest = sound().all(|other| position(other) >= position(own));
            is_sound && (is_first || is_oldest) && before.len() < places
        };
        let by_period = || {
            let mut all: Vec<&Candidate> = sound().collect();
            all.sort_by_key(|other| Reverse(position(other)));
            let (Some(period), Some(newest)) = (rules.within, all.first()) else { return false };
            let begin = period.before(newest.civil);
            let is_alone = all[1..].iter().all(|other| other.civil <= begin);
            own.civil > begin
                || is_alone
                    && all.get(1).is_some_and(|second| own.civil > period.before(second.civil))
        };
        let by_tag = || rules.tags.iter().any(|tag| own.tags.contains(tag));
        let has_wrong_time = matches!(own.soundness, Soundness::Future | Soundness::WrongTime);
        rules.is_empty()
            || own.is_pinned
            || has_wrong_time
            || newer(own).all(|other| other.series != own.series)
            || rules.numbers().into_iter().any(by_number)
            || by_period()
            || by_tag()
    };
    (0..candidates.len()).filter(|&at| stays(&candidates[at])).collect()
}

fn rules() -> impl Strategy<Value = Rules> {
    let number = || {
        option::weighted(
            0.3,
            prop_oneof![9 => (0..9u32).prop_map(Number::Of), 1 => Just(Number::Unlimited)],
        )
    };
    let numbers = [number(), number(), number(), number(), number(), number()];
    let period =
        option::weighted(
            0.3,
            (0..2u16, 0..3u16, 0..40u16, 0..30u16)
                .prop_map(|(years, months, days, hours)| Period { years, months, days, hours }),
        );
    (numbers, period, vec("[ab]", 0..2)).prop_map(
        |([last, hourly, daily, weekly, monthly, yearly], within, tags)| Rules {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within,
            tags,
        },
    )
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let soundness = prop_oneof![
        12 => Just(Soundness::Sound),
        2 => Just(Soundness::Incomplete),
        1 => Just(Soundness::Emptied),
        1 => Just(Soundness::Future),
        1 => Just(Soundness::WrongTime),
    ];
    // Half an hour to twenty days apart, so that every rule has something to do.
    let gap = prop_oneof![1_800..100_000i64, 80_000..90_000i64, 80_000..1_728_000i64];
    let tags = prop_oneof![9 => Just(vec![]), 1 => vec("[ab]", 1..3)];
    let series = prop_oneof![8 => Just(0), 1 => 1..4usize];
    let one = (gap, soundness, tags, prop::bool::weighted(0.05), series);
    vec(one, 0..60).prop_map(|all| {
        let mut at = 1_700_000_000;
        let mut candidates = Vec::new();
        for ((gap, soundness, tags, is_pinned, series), number) in all.into_iter().zip(0..) {
            at += gap;
            candidates.push(Candidate {
                soundness,
                tags,
                is_pinned,
                series,
                ..candidate(number, at)
            });
        }
        candidates
    })
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn decisions_are_those_of_the_model(rules in rules(), candidates in candidates()) {
        prop_assert_eq!(staying(&rules, &candidates), model(&rules, &candidates));
    }

    #[test]
    fn the_order_of_the_candidates_does_not_matter(
        rules in rules(),
        candidates in candidates().prop_shuffle(),
    ) {
        prop_assert_eq!(staying(&rules, &candidates), model(&rules, &candidates));
    }

    #[test]
    fn unsound_snapshots_push_nothing_out(rules in rules(), candidates in candidates()) {
        let sound: Vec<Candidate> =
            candidates.iter().filter(|one| one.soundness == Soundness::Sound).cloned().collect();
        let ids = |all: &[Candidate]| -> BTreeSet<SnapshotId> {
            staying(&rules, all).into_iter().map(|at| all[at].id).collect()
        };
        let (alone, beside) = (ids(&sound), ids(&candidates));
        prop_assert!(sound.iter().all(|one| alone.contains(&one.id) == beside.contains(&one.id)));
    }

    #[test]
    fn a_sound_snapshot_stays(rules in rules(), candidates in candidates()) {
        let stay = staying(&rules, &candidates);
        let sound = |at: &usize| candidates[*at].soundness == Soundness::Sound;
        let has_one = (0..candidates.len()).any(|at| sound(&at));
        prop_assert_eq!(stay.iter().any(sound), has_one);
    }

    #[test]
    fn any_text_is_a_period_or_an_error(text in "\\PC{0,12}|[0-9ymdh]{0,9}") {
        if let Ok(period) = text.parse::<Period>() {
            prop_assert_eq!(period.to_string().parse(), Ok(period));
        }
    }
}
