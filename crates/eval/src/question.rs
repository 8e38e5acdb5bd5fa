use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;

/// A multiple-choice question about a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub id: String,
    pub question: String,
    /// 2 to [`MAX_CHOICES`] different texts.
    pub choices: Vec<String>,
    /// The index of the right choice, from 0.
    pub answer: usize,
    /// The path of the document that states the answer; standard errors are clustered by it.
    pub document: String,
    /// The words of the question without which nobody could answer it: a code, a part number, the
    /// name of a function. Scores are calibrated by the same question without them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// As many as there are letters.
const MAX_CHOICES: usize = 26;

/// Reads a question set: one JSON object a line, blank lines are passed over.
///
/// # Errors
/// [`Error::Syntax`] for a line that is not a question, [`Error::Field`] for one that cannot be
/// answered, each naming file and line; [`Error::NoQuestions`]; [`Error::Io`].
pub fn read_questions(path: &Path) -> Result<Vec<Question>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
        action: "read",
        path: path.into(),
        source,
    })?;
    let mut questions = Vec::new();
    let mut lines_by_id: HashMap<String, usize> = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        if line.trim().is_empty() {
            continue;
        }
        let question: Question = serde_json::from_str(line).map_err(|e| Error::Syntax {
            path: path.into(),
            line: line_number,
            reason: e.to_string(),
        })?;
        let field =
            |(field, reason)| Error::Field { path: path.into(), line: line_number, field, reason };
        check(&question).map_err(field)?;
        if let Some(first) = lines_by_id.insert(question.id.clone(), line_number) {
            let reason =
                format!("{:?} is also the id of line {first}; ids must differ", question.id);
            return Err(field(("id", reason)));
        }
        questions.push(question);
    }
    if questions.is_empty() {
        return Err(Error::NoQuestions { path: path.into() });
    }
    Ok(questions)
}

fn check(question: &Question) -> Result<(), (&'static str, String)> {
    for (field, text) in
        [("id", &question.id), ("question", &question.question), ("document", &question.document)]
    {
        if text.trim().is_empty() {
            return Err((field, "is empty".into()));
        }
    }
    if question.subject.as_ref().is_some_and(|subject| subject.trim().is_empty()) {
        return Err(("subject", "is empty; leave it out instead".into()));
    }
    let choices = &question.choices;
    if choices.len() < 2 || choices.len() > MAX_CHOICES {
        return Err(("choices", format!("has {}, must have 2 to {MAX_CHOICES}", choices.len())));
    }
    for (index, choice) in choices.iter().enumerate() {
        if choice.trim().is_empty() {
            return Err(("choices", format!("choice {index} is empty")));
        }
        if let Some(twin) =
            choices[..index].iter().position(|earlier| earlier.trim() == choice.trim())
        {
            return Err((
                "choices",
                format!("choice {index} repeats choice {twin}, {:?}", choice.trim()),
            ));
        }
    }
    if question.answer >= choices.len() {
        let reason = format!(
            "is {}, must be 0 to {}, the index of a choice",
            question.answer,
            choices.len() - 1
        );
        return Err(("answer", reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Vec<Question>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.jsonl");
        std::fs::write(&path, text).unwrap();
        let shown = format!("{}/", folder.path().display());
        read_questions(&path).map_err(|e| e.to_string().replace(&shown, ""))
    }

    fn check_error(line: &str) -> String {
        read(line).unwrap_err()
    }

    const GOOD: &str = r#"{"id":"a","question":"Which plane?","choices":["XY","ZX"],"answer":1,"document":"g.html"}"#;

    #[test]
    fn reads_questions_with_and_without_subject() {
        let second =
            GOOD.replace("\"a\"", "\"b\"").replace("\"answer\"", "\"subject\":\"G18\",\"answer\"");
        let questions = read(&format!("{GOOD}\n\n{second}\n")).unwrap();
        assert_eq!(questions.len(), 2);
        assert_eq!(questions[0].subject, None);
        assert_eq!(questions[1].subject.as_deref(), Some("G18"));
        assert_eq!(questions[1].answer, 1);
    }

    #[test]
    fn errors_name_file_line_and_field() {
        assert_snapshot!(check_error(""), @"set.jsonl holds no questions; write one JSON object a line");
        assert_snapshot!(check_error(&format!("{GOOD}\n{{\"id\":\n")), @"set.jsonl, line 2: not a question: EOF while parsing a value at line 1 column 6");
        assert_snapshot!(check_error(&GOOD.replace("document", "page")), @"set.jsonl, line 1: not a question: unknown field `page`, expected one of `id`, `question`, `choices`, `answer`, `document`, `subject` at line 1 column 75");
        assert_snapshot!(check_error(&GOOD.replace(":1,", ":2,")), @"set.jsonl, line 1, field `answer`: is 2, must be 0 to 1, the index of a choice");
        assert_snapshot!(check_error(&GOOD.replace(",\"ZX\"", "")), @"set.jsonl, line 1, field `choices`: has 1, must have 2 to 26");
        assert_snapshot!(check_error(&GOOD.replace("\"ZX\"", "\" \"")), @"set.jsonl, line 1, field `choices`: choice 1 is empty");
        assert_snapshot!(check_error(&GOOD.replace("ZX", "XY ")), @r#"set.jsonl, line 1, field `choices`: choice 1 repeats choice 0, "XY""#);
        assert_snapshot!(check_error(&GOOD.replace("Which plane?", "")), @"set.jsonl, line 1, field `question`: is empty");
        assert_snapshot!(check_error(&format!("{GOOD}\n\n{GOOD}")), @r#"set.jsonl, line 3, field `id`: "a" is also the id of line 1; ids must differ"#);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_questions(Path::new("nowhere/set.jsonl")).unwrap_err().to_string();
        assert!(error.starts_with("read nowhere/set.jsonl: "), "{error}");
    }

    proptest! {
        #[test]
        fn a_written_question_is_read_back(
            question in "[^\\s]\\PC{0,40}",
            answer in 0..3usize,
            subject in proptest::option::of("[^\\s]\\PC{0,9}"),
        ) {
            let written = Question {
                id: "q".into(),
                question,
                choices: vec!["one".into(), "two".into(), "three".into()],
                answer,
                document: "d".into(),
                subject,
            };
            let line = serde_json::to_string(&written).unwrap();
            prop_assert_eq!(read(&line).unwrap(), vec![written]);
        }
    }
}
