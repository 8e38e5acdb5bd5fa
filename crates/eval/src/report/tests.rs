use insta::assert_snapshot;

use super::*;
use crate::{ChoiceScore, Estimate, Interval, Share, Verdict, ratio, wilson};

fn question(id: usize, document: &str) -> Question {
    Question {
        id: format!("q{id}"),
        question: "Is <b> \"bold\"?".into(),
        choices: vec!["yes & no".into(), "<script>alert(1)</script>".into()],
        answer: 0,
        document: document.into(),
        subject: None,
    }
}

fn outcome(question: &Question, correct: bool) -> Outcome {
    let likely = ChoiceScore { given_question: -1.0, given_neutral: -2.0, tokens: 1 };
    let unlikely = ChoiceScore { given_question: -3.0, given_neutral: -2.0, tokens: 1 };
    let scores = if correct { vec![likely, unlikely] } else { vec![unlikely, likely] };
    Outcome { id: question.id.clone(), document: question.document.clone(), answer: 0, scores }
}

/// Ten documents of two questions: the second is learnt in nine of them.
fn learnt() -> Department {
    let questions: Vec<Question> =
        (0..20).map(|i| question(i, &format!("document {}", i / 2))).collect();
    let side = |right: fn(usize) -> bool| -> Vec<Outcome> {
        questions.iter().enumerate().map(|(i, q)| outcome(q, right(i))).collect()
    };
    let (before, after) = (side(|i| i % 4 == 0), side(|i| i % 4 == 0 || i % 2 == 1 && i < 19));
    let mut department = Department::new("maintenance", &questions, &before, &after).unwrap();
    let shares = [
        Share { sum: -30.0, weight: 100.0 },
        Share { sum: -50.0, weight: 150.0 },
        Share { sum: -33.0, weight: 100.0 },
    ];
    let difference = ratio(&shares);
    let verdict = difference.verdict(crate::Direction::LowerIsBetter);
    department.bits_per_byte = Some(Change {
        bytes: 12_345,
        before: 1.5,
        after: 1.5 + difference.value,
        difference,
        verdict,
    });
    department.gates = vec![
        GateShare { expert: "maintenance".into(), share: 0.61 },
        GateShare { expert: "finance & law".into(), share: 0.02 },
    ];
    department
}

fn report() -> Report {
    let mut finance = Department::new("finance & law", &[], &[], &[]).unwrap();
    finance.others = learnt().calibrated.map(|c| Comparison {
        after: c.before,
        gained: 0,
        difference: Estimate {
            value: 0.0,
            standard_error: 0.0,
            interval: Some(Interval { low: 0.0, high: 0.0 }),
            clusters: 10,
        },
        verdict: Verdict::NotShown,
        ..c
    });
    let divergence = ratio(&[
        Share { sum: 4.0, weight: 100.0 },
        Share { sum: 5.0, weight: 110.0 },
        Share { sum: 4.2, weight: 90.0 },
    ]);
    Report {
        title: "Evaluation of <joined>".into(),
        before: "base".into(),
        after: "joined".into(),
        departments: vec![learnt(), finance],
        forgetting: Some(Forgetting { texts: 3, tokens: 300, divergence }),
    }
}

#[test]
fn the_table_shows_every_measure() {
    assert_snapshot!(report().table());
}

#[test]
fn the_table_leaves_out_what_was_not_measured() {
    let empty = Report { departments: Vec::new(), forgetting: None, ..report() };
    assert_snapshot!(empty.table());
    let mut single = report();
    single.departments.truncate(1);
    single.departments[0].gates.clear();
    single.departments[0].per_token = None;
    single.departments[0].bits_per_byte = None;
    let comparison = single.departments[0].calibrated.as_mut().unwrap();
    comparison.before = wilson(0, 3);
    comparison.difference = ratio(&[Share { sum: 1.0, weight: 3.0 }]);
    comparison.verdict = Verdict::NotShown;
    single.forgetting = None;
    assert_snapshot!(single.table());
}

#[test]
fn the_page_stands_alone_and_escapes_everything() {
    let page = report().html();
    for outside in ["http", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("<title>Evaluation of &lt;joined&gt;</title>"));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(page.contains("Is &lt;b&gt; &quot;bold&quot;?"));
    assert!(page.contains("prefers-color-scheme: dark"));
    assert_eq!(page.matches("<svg").count(), 4);
    for element in ["table", "svg", "figure", "details", "g", "tr", "main", "ul"] {
        let opened = page.matches(&format!("<{element} ")).count()
            + page.matches(&format!("<{element}>")).count();
        assert_eq!(opened, page.matches(&format!("</{element}>")).count(), "{element}");
    }
}

#[test]
fn the_json_is_read_back() {
    let report = report();
    assert_eq!(serde_json::from_str::<Report>(&report.json()).unwrap(), report);
}
