use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::ChoiceScore;

fn close(value: f64, expected: f64, tolerance: f64) {
    assert!((value - expected).abs() <= tolerance, "{value} is not {expected} within {tolerance}");
}

/// An outcome of two choices that is right or wrong under both rules.
fn outcome(id: &str, document: &str, correct: bool) -> Outcome {
    let likely = ChoiceScore { given_question: -1.0, given_neutral: -2.0, tokens: 1 };
    let unlikely = ChoiceScore { given_question: -3.0, given_neutral: -2.0, tokens: 1 };
    let scores = if correct { vec![likely, unlikely] } else { vec![unlikely, likely] };
    Outcome { id: id.into(), document: document.into(), answer: 0, scores }
}

/// Pairs `(document, right before, right after)`.
fn pairs(items: &[(&str, bool, bool)]) -> Comparison {
    let side = |take: fn(&(&str, bool, bool)) -> bool| -> Vec<Outcome> {
        items
            .iter()
            .enumerate()
            .map(|(i, item)| outcome(&format!("q{i}"), item.0, take(item)))
            .collect()
    };
    compare(&side(|item| item.1), &side(|item| item.2), Rule::Calibrated).unwrap()
}

#[test]
fn student_quantiles_are_those_of_the_tables() {
    // Tables give 4 decimals; the bisection is far finer.
    for (degrees, expected) in [
        (1, 12.7062),
        (2, 4.3027),
        (3, 3.1824),
        (4, 2.7764),
        (5, 2.5706),
        (10, 2.2281),
        (30, 2.0423),
        (120, 1.9799),
        (100_000, 1.9600),
    ] {
        close(student_quantile(degrees), expected, 5e-5);
    }
}

#[test]
fn wilson_intervals_are_those_of_the_formula() {
    // Worked by hand for 8 of 10: (0.8 + 0.19207 ± 1.96·√(0.016 + 0.0096)) / 1.38415.
    let some = wilson(8, 10);
    close(some.interval.low, 0.4902, 5e-5);
    close(some.interval.high, 0.9433, 5e-5);
    let none = wilson(0, 20);
    close(none.interval.low, 0.0, 0.0);
    close(none.interval.high, 0.1611, 5e-5);
    assert_eq!(wilson(0, 0).interval, Interval { low: 0.0, high: 1.0 });
}

#[test]
fn the_clustered_interval_is_that_worked_by_hand() {
    // Differences: a: 1 1 0, b: 1 0, c: 0 −1 0. n = 8, mean 2/8 = 0.25.
    // Residual sums of the documents: 2 − 0.75 = 1.25, 1 − 0.5 = 0.5, −1 − 0.75 = −1.75.
    // Squares: 1.5625 + 0.25 + 3.0625 = 4.875; × 3/2 = 7.3125; √ = 2.70416; / 8 = 0.338020.
    let comparison = pairs(&[
        ("a", false, true),
        ("a", false, true),
        ("a", true, true),
        ("b", false, true),
        ("b", false, false),
        ("c", true, true),
        ("c", true, false),
        ("c", false, false),
    ]);
    let difference = comparison.difference;
    close(difference.value, 0.25, 1e-12);
    close(difference.standard_error, 0.338_020, 5e-7);
    let interval = difference.interval.unwrap();
    // t(2) = 4.302653.
    close(interval.low, 0.25 - 4.302_653 * 0.338_020, 5e-6);
    close(interval.high, 0.25 + 4.302_653 * 0.338_020, 5e-6);
    assert_eq!((comparison.gained, comparison.lost), (3, 1));
    assert_eq!((comparison.before.correct, comparison.after.correct), (3, 5));
    assert_eq!(comparison.verdict, Verdict::NotShown);
}

#[test]
fn with_one_question_a_document_it_is_the_paired_t_test() {
    // Differences 1 1 0 −1 1 0: mean 1/3, s² = (2·... )/5 = (4 − 6/9)/5 = 2/3, s/√6 = 1/3.
    let documents = ["a", "b", "c", "d", "e", "f"];
    let differences = [1, 1, 0, -1, 1, 0];
    let items: Vec<(&str, bool, bool)> =
        documents.iter().zip(differences).map(|(d, x)| (*d, x == -1, x == 1)).collect();
    let difference = pairs(&items).difference;
    close(difference.value, 1.0 / 3.0, 1e-12);
    close(difference.standard_error, 1.0 / 3.0, 1e-12);
}

#[test]
fn the_standard_error_agrees_with_a_bootstrap_over_documents() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    // 60 documents of 1 to 9 questions whose differences share their document's luck.
    let clusters: Vec<Share> = (0..60)
        .map(|_| {
            let luck: f64 = random.random_range(-0.4..0.6);
            let count = random.random_range(1..10);
            let sum = (0..count).map(|_| f64::from(i8::from(random.random_bool(0.5)))).sum::<f64>();
            Share { sum: 0.5 * sum + luck * f64::from(count), weight: f64::from(count) }
        })
        .collect();
    let estimate = ratio(&clusters);
    let draws = 4000;
    let means: Vec<f64> = (0..draws)
        .map(|_| {
            let drawn: Vec<Share> = (0..clusters.len())
                .map(|_| clusters[random.random_range(0..clusters.len())])
                .collect();
            ratio(&drawn).value
        })
        .collect();
    let centre = means.iter().sum::<f64>() / f64::from(draws);
    let variance = means.iter().map(|m| (m - centre).powi(2)).sum::<f64>() / f64::from(draws - 1);
    // 4000 draws know a standard deviation to 1.1 %; the linearisation and √(60/59) add to it.
    close(estimate.standard_error / variance.sqrt(), 1.0, 0.06);
    // The coin flips alone, without the luck their document shares, would give far less.
    let independent = 0.25 / clusters.iter().map(|c| c.weight).sum::<f64>().sqrt();
    assert!(estimate.standard_error > 1.3 * independent);
}

#[test]
fn better_is_refused_where_the_interval_includes_zero() {
    let check = |value, reach, clusters, direction, expected| {
        let interval = Some(Interval { low: value - reach, high: value + reach });
        let estimate = Estimate { value, standard_error: reach / 2.0, interval, clusters };
        assert_eq!(estimate.verdict(direction), expected, "{value} ± {reach}");
    };
    let (higher, lower) = (Direction::HigherIsBetter, Direction::LowerIsBetter);
    check(0.2, 0.1, 9, higher, Verdict::Better);
    check(0.2, 0.2, 9, higher, Verdict::NotShown);
    check(0.2, 0.3, 9, higher, Verdict::NotShown);
    check(-0.2, 0.1, 9, higher, Verdict::Worse);
    check(-0.2, 0.1, 9, lower, Verdict::Better);
    check(0.2, 0.1, 9, lower, Verdict::Worse);
    check(0.0, 0.0, 9, higher, Verdict::NotShown);
    // No spread: only enough documents make it evidence.
    check(0.2, 0.0, 5, higher, Verdict::NotShown);
    check(0.2, 0.0, 6, higher, Verdict::Better);
}

#[test]
fn one_document_shows_nothing() {
    let comparison = pairs(&[("a", false, true), ("a", false, true), ("a", false, true)]);
    assert_eq!(comparison.difference.interval, None);
    assert_eq!(comparison.verdict, Verdict::NotShown);
    assert_eq!(ratio(&[]).interval, None);
}

#[test]
fn bits_are_compared_over_all_bytes() {
    let score = |document: &str, bytes, bits: f64| DocumentScore {
        document: document.into(),
        bytes,
        tokens: 10,
        nats: bits * std::f64::consts::LN_2,
    };
    let before = [score("a", 100, 200.0), score("b", 300, 300.0)];
    let after = [score("a", 100, 150.0), score("b", 300, 210.0)];
    let change = compare_bits(&before, &after).unwrap();
    close(change.before, 500.0 / 400.0, 1e-12);
    close(change.after, 360.0 / 400.0, 1e-12);
    // Sums −50 and −90 over 400 bytes: −0.35; residuals −50 + 35 = −15 and −90 + 105 = 15;
    // √(450 · 2) / 400 = 0.075.
    close(change.difference.value, -0.35, 1e-12);
    close(change.difference.standard_error, 0.075, 1e-12);
    assert_eq!(change.verdict, Verdict::NotShown);
}

#[test]
fn what_is_not_paired_is_refused() {
    let check = |before: &[Outcome], after: &[Outcome]| {
        compare(before, after, Rule::PerToken).unwrap_err().to_string()
    };
    let one = [outcome("q1", "a", true)];
    insta::assert_snapshot!(check(&one, &[]), @"before and after cannot be compared: 1 outcomes before, 0 after");
    insta::assert_snapshot!(check(&one, &[outcome("q2", "a", true)]), @r#"before and after cannot be compared: question "q1" has no outcome after"#);
    insta::assert_snapshot!(check(&one, &[outcome("q1", "b", true)]), @r#"before and after cannot be compared: question "q1" was changed in between"#);
    let score = |bytes| [DocumentScore { document: "a".into(), bytes, tokens: 1, nats: 1.0 }];
    let error = compare_bits(&score(3), &score(4)).unwrap_err().to_string();
    insta::assert_snapshot!(error, @r#"before and after cannot be compared: document "a" (3 bytes) before, "a" (4 bytes) after"#);
}

proptest! {
    #[test]
    fn the_estimate_does_not_depend_on_order_and_swaps_sign(
        mut clusters in proptest::collection::vec((-5.0..5.0f64, 1.0..9.0f64), 2..12),
    ) {
        let shares = |items: &[(f64, f64)], sign: f64| -> Vec<Share> {
            items.iter().map(|&(sum, weight)| Share { sum: sign * sum, weight }).collect()
        };
        let forwards = ratio(&shares(&clusters, 1.0));
        let swapped = ratio(&shares(&clusters, -1.0));
        clusters.reverse();
        let backwards = ratio(&shares(&clusters, 1.0));
        // Sums in another order differ by rounding only.
        prop_assert!((forwards.value - backwards.value).abs() < 1e-12);
        prop_assert!((forwards.standard_error - backwards.standard_error).abs() < 1e-12);
        prop_assert!((forwards.value + swapped.value).abs() < 1e-12);
    }
}
