use std::path::Path;

use model::Message;
use serde::{Deserialize, Serialize};
use store::lines::Appender;

use crate::{Error, Progress, Question, Subject, scoring};

/// How the score of a choice is made of its likelihoods; the choice with the highest is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// `log p(choice | question) / tokens`. Favours what is likely anywhere.
    PerToken,
    /// `(log p(choice | question) − log p(choice | neutral question)) / tokens`: how much the
    /// subject of the question raises the choice above its prior.
    ///
    /// **Source**: domain-conditional pointwise mutual information, arXiv 2104.08315,
    /// here per token and with a neutral question of the same form.
    Calibrated,
}

impl Rule {
    pub fn name(self) -> &'static str {
        match self {
            Rule::PerToken => "likelihood per token",
            Rule::Calibrated => "calibrated likelihood",
        }
    }
}

/// The likelihoods of one choice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceScore {
    /// `log p(choice | question)`, nats, summed over the tokens.
    pub given_question: f64,
    /// `log p(choice | neutral question)`, nats, summed over the tokens.
    pub given_neutral: f64,
    /// The choice's tokens with the end of the turn.
    pub tokens: usize,
}

impl ChoiceScore {
    /// Nats per token.
    pub fn by(&self, rule: Rule) -> f64 {
        let nats = match rule {
            Rule::PerToken => self.given_question,
            Rule::Calibrated => self.given_question - self.given_neutral,
        };
        nats / self.tokens as f64
    }
}

/// What a model made of a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    pub id: String,
    pub document: String,
    /// The index of the right choice.
    pub answer: usize,
    /// In the order of the question's choices.
    pub scores: Vec<ChoiceScore>,
}

impl Outcome {
    /// The index of the choice with the highest score, of equal ones the first.
    pub fn chosen(&self, rule: Rule) -> usize {
        let mut best = 0;
        for (index, score) in self.scores.iter().enumerate() {
            if score.by(rule) > self.scores[best].by(rule) {
                best = index;
            }
        }
        best
    }

    pub fn correct(&self, rule: Rule) -> bool {
        self.chosen(rule) == self.answer
    }
}

/// Asks the model every question.
///
/// A choice is scored as the whole answer to the question in the model's chat template: its text
/// as it stands in the question set, then the end of the turn. The end counts because one choice
/// may begin another (`G33` and `G33.1`); no capital or full stop is added, since in codes and
/// values both have meaning.
///
/// # Errors
/// [`Error::TooLong`], [`Error::EmptyChoice`], [`Error::NotFinite`], [`Error::Scoring`],
/// [`Error::Model`].
pub fn evaluate_choices(
    subject: Subject,
    questions: &[Question],
    progress: &dyn Fn(Progress),
) -> Result<Vec<Outcome>, Error> {
    let mut outcomes = Vec::with_capacity(questions.len());
    for question in questions {
        outcomes.push(answer(subject, question)?);
        progress(Progress { done: outcomes.len(), total: questions.len() });
    }
    Ok(outcomes)
}

/// As [`evaluate_choices`], keeping each outcome in the JSONL file at `path` as soon as it is
/// known; questions whose outcome an interrupted run left there are not asked again.
///
/// # Errors
/// Those of [`evaluate_choices`]; [`Error::Stale`] if the file's outcomes are of other questions;
/// [`Error::Store`].
pub fn resume_choices(
    path: &Path,
    subject: Subject,
    questions: &[Question],
    progress: &dyn Fn(Progress),
) -> Result<Vec<Outcome>, Error> {
    let (mut lines, mut outcomes) = Appender::resume::<Outcome>(path)?;
    check_prefix(path, &outcomes, questions)?;
    for question in &questions[outcomes.len()..] {
        let outcome = answer(subject, question)?;
        lines.append(std::slice::from_ref(&outcome))?;
        outcomes.push(outcome);
        progress(Progress { done: outcomes.len(), total: questions.len() });
    }
    lines.sync()?;
    Ok(outcomes)
}

fn check_prefix(path: &Path, outcomes: &[Outcome], questions: &[Question]) -> Result<(), Error> {
    let stale = |detail| Error::Stale { path: path.into(), what: "questions", detail };
    if outcomes.len() > questions.len() {
        return Err(stale(format!("{} outcomes of {} questions", outcomes.len(), questions.len())));
    }
    for (outcome, question) in outcomes.iter().zip(questions) {
        let same = outcome.id == question.id
            && outcome.document == question.document
            && outcome.answer == question.answer
            && outcome.scores.len() == question.choices.len();
        if !same {
            return Err(stale(format!("{:?} where {:?} is asked", outcome.id, question.id)));
        }
    }
    Ok(())
}

fn answer(subject: Subject, question: &Question) -> Result<Outcome, Error> {
    let given_question = likelihoods(subject, question, &question.question)?;
    let given_neutral = likelihoods(subject, question, &neutral_question(question))?;
    let scores = given_question
        .into_iter()
        .zip(given_neutral)
        .map(|((given_question, tokens), (given_neutral, _))| ChoiceScore {
            given_question,
            given_neutral,
            tokens,
        })
        .collect();
    Ok(Outcome {
        id: question.id.clone(),
        document: question.document.clone(),
        answer: question.answer,
        scores,
    })
}

/// The question with "this" for its subject, or, where the subject does not occur in it, "What is
/// the answer?": what a choice's prior likelihood is measured with.
pub fn neutral_question(question: &Question) -> String {
    let subject = question.subject.as_deref().unwrap_or_default();
    replace_words(&question.question, subject).unwrap_or_else(|| "What is the answer?".into())
}

/// Replaces `words` in `text` where they are not part of longer ones: `G33` is part of `G33.1`.
fn replace_words(text: &str, words: &str) -> Option<String> {
    if words.is_empty() {
        return None;
    }
    let mut replaced = String::new();
    let mut copied = 0;
    for (start, _) in text.match_indices(words) {
        let end = start + words.len();
        let mut after = text[end..].chars();
        let next = after.next();
        let goes_on = next.is_some_and(char::is_alphanumeric)
            || next == Some('.') && after.next().is_some_and(char::is_alphanumeric);
        if goes_on || text[..start].chars().next_back().is_some_and(char::is_alphanumeric) {
            continue;
        }
        replaced.push_str(&text[copied..start]);
        replaced.push_str("this");
        copied = end;
    }
    (copied > 0).then(|| replaced + &text[copied..])
}

/// Nats and tokens of every choice as the answer to `asked`.
fn likelihoods(
    subject: Subject,
    question: &Question,
    asked: &str,
) -> Result<Vec<(f64, usize)>, Error> {
    let (prefix, continuations) = tokenise(subject, question, asked)?;
    let longest = continuations.iter().map(Vec::len).max().unwrap_or_default();
    let limit = subject.model.config().context;
    if prefix.len() + longest > limit {
        return Err(Error::TooLong {
            id: question.id.clone(),
            tokens: prefix.len() + longest,
            limit,
        });
    }
    let scores = subject
        .scorer()
        .continuations(&prefix, &continuations, subject.experts)
        .map_err(scoring(&question.id))?;
    let mut sums = Vec::with_capacity(scores.len());
    for tokens in &scores {
        let nats: f64 = tokens.iter().map(|&nats| f64::from(nats)).sum();
        if !nats.is_finite() {
            return Err(Error::NotFinite { what: question.id.clone(), value: nats });
        }
        sums.push((nats, tokens.len()));
    }
    Ok(sums)
}

/// The tokens that all answers to `asked` share, and those each choice adds.
///
/// Prompt and choice are tokenised as one text, since a token may reach over the seam; such a
/// token then belongs to the choice, for all choices alike.
fn tokenise(
    subject: Subject,
    question: &Question,
    asked: &str,
) -> Result<(Vec<u32>, Vec<Vec<u32>>), Error> {
    let model = subject.model;
    let user = Message { role: "user".into(), content: asked.into() };
    let prompt = model.template.render(std::slice::from_ref(&user), true)?;
    let prompt_tokens = model.tokenizer.encode(&prompt)?;
    let mut shared = prompt_tokens.len();
    let mut answers = Vec::with_capacity(question.choices.len());
    for choice in &question.choices {
        let text = format!("{prompt}{}", choice.trim());
        let mut tokens = model.tokenizer.encode(&text)?;
        shared = tokens.iter().zip(&prompt_tokens[..shared]).take_while(|(a, b)| a == b).count();
        let said = Message { role: "assistant".into(), content: choice.trim().into() };
        tokens.extend(end_of_turn(subject, &text, &[user.clone(), said])?);
        answers.push(tokens);
    }
    for (choice, tokens) in answers.iter().enumerate() {
        if tokens.len() <= shared || shared == 0 {
            return Err(Error::EmptyChoice { id: question.id.clone(), choice });
        }
    }
    let continuations = answers.iter().map(|tokens| tokens[shared..].to_vec()).collect();
    Ok((prompt_tokens[..shared].to_vec(), continuations))
}

/// The token with which the template ends the assistant's turn, else the model's own end token.
fn end_of_turn(subject: Subject, answered: &str, turn: &[Message]) -> Result<Option<u32>, Error> {
    let model = subject.model;
    let rendered = model.template.render(turn, false)?;
    if let Some(rest) = rendered.strip_prefix(answered) {
        let first = model.tokenizer.encode(rest)?.first().copied();
        if let Some(token) = first.filter(|&token| model.tokenizer.is_special(token)) {
            return Ok(Some(token));
        }
    }
    Ok(model.config().eos.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: &str, subject: Option<&str>) -> Question {
        Question {
            id: "q".into(),
            question: text.into(),
            choices: vec!["a".into(), "b".into()],
            answer: 0,
            document: "d".into(),
            subject: subject.map(Into::into),
        }
    }

    #[test]
    fn the_neutral_question_lacks_the_subject() {
        let check = |text, subject, expected| {
            assert_eq!(neutral_question(&question(text, subject)), expected);
        };
        check("What does G33 do?", Some("G33"), "What does this do?");
        check("Is G33.1 like G33.", Some("G33"), "Is G33.1 like this.");
        check("What does G33.1 do?", Some("G33"), "What is the answer?");
        check("What does AG33 do?", Some("G33"), "What is the answer?");
        check("Which code taps rigidly?", Some("taps rigidly"), "Which code this?");
        check("Which code?", None, "What is the answer?");
        check("Größe von Ü1 und Ü1?", Some("Ü1"), "Größe von this und this?");
    }

    fn outcome(scores: &[(f64, f64, usize)], answer: usize) -> Outcome {
        let scores = scores
            .iter()
            .map(|&(given_question, given_neutral, tokens)| ChoiceScore {
                given_question,
                given_neutral,
                tokens,
            })
            .collect();
        Outcome { id: "q".into(), document: "d".into(), answer, scores }
    }

    #[test]
    fn rules_choose_by_likelihood_or_by_what_the_subject_adds() {
        // The first choice is likely anywhere, the second is raised by the question.
        let judged = outcome(&[(-2.0, -1.5, 2), (-6.0, -12.0, 3), (-5.0, -5.0, 1)], 1);
        assert_eq!(judged.chosen(Rule::PerToken), 0);
        assert_eq!(judged.chosen(Rule::Calibrated), 1);
        assert!(judged.correct(Rule::Calibrated) && !judged.correct(Rule::PerToken));
        assert_eq!(outcome(&[(-1.0, -1.0, 1), (-1.0, -1.0, 1)], 1).chosen(Rule::Calibrated), 0);
    }

    #[test]
    fn outcomes_of_other_questions_are_stale() {
        let path = Path::new("before.jsonl");
        let asked = [question("What does G33 do?", None)];
        let mut kept = outcome(&[(-1.0, -1.0, 1), (-1.0, -1.0, 1)], 0);
        assert!(check_prefix(path, std::slice::from_ref(&kept), &asked).is_ok());
        kept.answer = 1;
        let error =
            check_prefix(path, std::slice::from_ref(&kept), &asked).unwrap_err().to_string();
        insta::assert_snapshot!(error, @r#"before.jsonl holds results of other questions ("q" where "q" is asked); remove it and evaluate again"#);
        let error = check_prefix(path, &[kept], &[]).unwrap_err().to_string();
        insta::assert_snapshot!(error, @"before.jsonl holds results of other questions (1 outcomes of 0 questions); remove it and evaluate again");
    }
}
