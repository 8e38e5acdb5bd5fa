//! A small random model with two experts goes through the whole evaluation.

use std::cell::Cell;
use std::path::Path;

use eval::{
    Department, Error, GateShare, HeldOutText, Progress, Question, Report, Rule, Subject, Writing,
};
use kernel::{Pool, Precision};
use model::{ExpertSet, Message, Model};

fn load() -> (Model, Pool) {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/granitemoeshared");
    (Model::load(&folder, Precision::F32).expect("the fixture loads"), Pool::new(2))
}

fn silent(_: Progress) {}

fn questions() -> Vec<Question> {
    let question = |index: usize, text: &str, choices: [&str; 3], subject: Option<&str>| Question {
        id: format!("q{index}"),
        question: text.into(),
        choices: choices.map(String::from).to_vec(),
        answer: index % 3,
        document: format!("{}.md", index / 2),
        subject: subject.map(Into::into),
    };
    vec![
        question(0, "What does G33 do?", ["Taps", "Dwells", "Probes"], Some("G33")),
        question(1, "Which code taps?", ["G33", "G33.1", "G4"], Some("taps")),
        question(
            2,
            "Where is the red switch?",
            ["On line 2", "In the office", "At the gate"],
            None,
        ),
        question(3, "How often?", ["Every 12 weeks", "Daily", "Größe 7"], None),
        question(4, "Who is called first?", ["Ms. Ito", "Mr. Ito", "Nobody"], None),
    ]
}

/// The likelihood of a whole answer, read off the whole conversation.
fn likelihood(subject: Subject, question: &str, choice: &str) -> f64 {
    let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let model = subject.model;
    let prompt = model.template.render(&[turn("user", question)], true).expect("renders");
    let whole = model
        .template
        .render(&[turn("user", question), turn("assistant", choice)], false)
        .expect("renders");
    let prompt_tokens = model.tokenizer.encode(&prompt).expect("encodes");
    let mut tokens = model.tokenizer.encode(&whole).expect("encodes");
    // The template puts a line break after the end of the turn.
    let end =
        tokens.iter().rposition(|&token| model.tokenizer.is_special(token)).expect("the turn ends");
    tokens.truncate(end + 1);
    let scorer = engine::Scorer { model, pool: subject.pool };
    let all = scorer.tokens(&tokens, subject.experts).expect("scores");
    all[prompt_tokens.len() - 1..].iter().map(|&nats| f64::from(nats)).sum()
}

#[test]
fn choices_score_as_the_whole_answer_does() {
    let (model, pool) = load();
    for experts in [ExpertSet::NONE, ExpertSet::single(1), ExpertSet::all(2)] {
        let subject = Subject { model: &model, pool: &pool, experts };
        for (outcome, question) in
            eval::evaluate_choices(subject, &questions(), &silent).unwrap().iter().zip(questions())
        {
            for (score, choice) in outcome.scores.iter().zip(&question.choices) {
                let expected = likelihood(subject, &question.question, choice);
                let neutral = likelihood(subject, &eval::neutral_question(&question), choice);
                // Batches of other sizes sum in another order: f32 rounding over some 20 tokens.
                assert!((score.given_question - expected).abs() < 1e-3, "{choice}: {expected}");
                assert!((score.given_neutral - neutral).abs() < 1e-3, "{choice}: {neutral}");
            }
        }
    }
}

#[test]
fn an_interrupted_evaluation_goes_on_where_it_stopped() {
    let (model, pool) = load();
    let subject = Subject { model: &model, pool: &pool, experts: ExpertSet::all(2) };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("after.jsonl");
    let whole = eval::resume_choices(&path, subject, &questions(), &silent).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let second_end = text.match_indices('\n').nth(1).unwrap().0;
    std::fs::write(&path, &text[..second_end + 20]).unwrap();
    let asked = Cell::new(0);
    let count = |progress: Progress| {
        asked.set(asked.get() + 1);
        assert_eq!(progress.total, 5);
    };
    assert_eq!(eval::resume_choices(&path, subject, &questions(), &count).unwrap(), whole);
    assert_eq!(asked.get(), 3);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn a_question_longer_than_the_context_is_refused() {
    let (model, pool) = load();
    let subject = Subject { model: &model, pool: &pool, experts: ExpertSet::NONE };
    let mut long = questions();
    long[2].question = "why ".repeat(300);
    let error = eval::evaluate_choices(subject, &long, &silent).unwrap_err();
    assert!(matches!(&error, Error::TooLong { id, limit: 256, .. } if id == "q2"), "{error}");
}

#[test]
fn bits_per_byte_count_every_token_of_a_document_longer_than_the_context() {
    let (model, pool) = load();
    let subject = Subject { model: &model, pool: &pool, experts: ExpertSet::all(2) };
    let text = "The pump of line 2 is stopped by the red switch. ".repeat(40);
    let tokens = model.tokenizer.encode_plain(&text).unwrap();
    assert!(tokens.len() > 2 * model.config().context);
    let texts = [
        HeldOutText { document: "empty".into(), text: String::new() },
        HeldOutText { document: "long".into(), text: text.clone() },
    ];
    let scores = eval::bits_per_byte(subject, &texts, &silent).unwrap();
    assert_eq!(scores.len(), 1);
    assert_eq!(scores[0].tokens, tokens.len() - 1);
    assert_eq!(scores[0].bytes, text.len() - model.tokenizer.token_bytes(tokens[0]).len());
    // A random model of 300 tokens knows next to nothing: about ln 300 nats per token.
    let per_token = scores[0].nats / scores[0].tokens as f64;
    assert!((3.0..9.0).contains(&per_token), "{per_token}");
    let shares = eval::gate_shares(subject, &texts).unwrap();
    assert_eq!(shares.len(), 2);
    assert!(
        shares.iter().all(|&share| share > 0.0) && shares.iter().sum::<f64>() <= 1.0,
        "{shares:?}"
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bits.jsonl");
    assert_eq!(eval::resume_perplexity(&path, subject, &texts, &silent).unwrap(), scores);
    assert_eq!(eval::resume_perplexity(&path, subject, &texts, &silent).unwrap(), scores);
}

#[test]
fn the_base_writes_the_same_again_and_does_not_differ_from_itself() {
    let (model, pool) = load();
    let subject = Subject { model: &model, pool: &pool, experts: ExpertSet::all(2) };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.jsonl");
    let writing = Writing { texts: 10, max_tokens: 12, seed: 5 };
    let texts = eval::write_base_texts(&path, subject, writing, &silent).unwrap();
    assert_eq!(texts.len(), 10);
    assert!(texts.iter().all(|t| (1..=12).contains(&(t.tokens.len() - t.prompt_tokens))));
    // The last three are written again, in a batch of another size.
    let lines = std::fs::read_to_string(&path).unwrap();
    let kept: String = lines.lines().take(7).map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, kept).unwrap();
    assert_eq!(eval::write_base_texts(&path, subject, writing, &silent).unwrap(), texts);
    assert_eq!(eval::read_base_texts(&path).unwrap(), texts);

    let itself = eval::forgetting([subject.base(); 2], &texts, &silent).unwrap();
    // The same computation twice: the same bits.
    assert_eq!(itself.divergence.value, 0.0);
    let changed = eval::forgetting([subject.base(), subject], &texts, &silent).unwrap();
    assert!(changed.divergence.value > 1e-6, "{changed:?}");
    assert_eq!(
        changed.tokens,
        texts.iter().map(|t| t.tokens.len() - t.prompt_tokens).sum::<usize>()
    );

    let other = Writing { seed: 6, ..writing };
    let error = eval::write_base_texts(&path, subject, other, &silent).unwrap_err();
    assert!(matches!(error, Error::Stale { .. }), "{error}");
}

#[test]
fn a_report_holds_the_comparison_of_a_model_with_its_base() {
    let (model, pool) = load();
    let subject = Subject { model: &model, pool: &pool, experts: ExpertSet::all(2) };
    let questions = questions();
    let before = eval::evaluate_choices(subject.base(), &questions, &silent).unwrap();
    let after = eval::evaluate_choices(subject, &questions, &silent).unwrap();
    let mut department = Department::new("maintenance", &questions, &before, &after).unwrap();
    let texts: Vec<HeldOutText> = ["The pump stops.", "The valve is checked.", "The gate is shut."]
        .iter()
        .map(|text| HeldOutText { document: (*text).into(), text: (*text).into() })
        .collect();
    let bits = |subject| eval::bits_per_byte(subject, &texts, &silent).unwrap();
    department.bits_per_byte =
        Some(eval::compare_bits(&bits(subject.base()), &bits(subject)).unwrap());
    let shares = eval::gate_shares(subject, &texts).unwrap();
    let names = &model.config().experts.as_ref().unwrap().names;
    department.gates = names
        .iter()
        .zip(shares)
        .map(|(name, share)| GateShare { expert: name.clone(), share })
        .collect();
    let unchanged = eval::compare(&before, &before, Rule::Calibrated).unwrap();
    assert_eq!((unchanged.gained, unchanged.lost), (0, 0));
    department.others = Some(unchanged);
    let report = Report {
        title: "Evaluation".into(),
        before: "base".into(),
        after: "joined".into(),
        departments: vec![department],
        forgetting: None,
    };
    let page = report.html();
    assert!(page.contains("maintenance") && page.contains("<svg"));
    assert!(report.table().contains("unchanged"));
    assert_eq!(serde_json::from_str::<Report>(&report.json()).unwrap(), report);
}

#[test]
fn the_example_questions_are_whole_and_balanced() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/linuxcnc/questions/gcode.jsonl");
    let questions = eval::read_questions(&path).unwrap();
    for place in 0..4 {
        let share = questions.iter().filter(|q| q.answer == place).count();
        assert!(share.abs_diff(questions.len() / 4) <= 1, "{share} answers in place {place}");
    }
    for question in &questions {
        // Each names a subject that occurs in it, so that it can be calibrated in its own form.
        assert_ne!(eval::neutral_question(question), "What is the answer?", "{}", question.id);
    }
}
