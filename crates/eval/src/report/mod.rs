//! The report: a table for the terminal, a page that needs nothing but itself, and JSON.

mod page;
mod plot;
mod table;

use serde::{Deserialize, Serialize};

use crate::{Change, Comparison, Error, Forgetting, Outcome, Question, Rule, compare};

/// Everything an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub title: String,
    /// The model before: the base.
    pub before: String,
    /// The model after: with its experts.
    pub after: String,
    pub departments: Vec<Department>,
    /// On texts the base wrote itself, with all experts permitted.
    pub forgetting: Option<Forgetting>,
}

/// What was found for one department.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Department {
    pub name: String,
    /// The department's questions; none where it has no question set.
    pub calibrated: Option<Comparison>,
    /// The same outcomes by likelihood alone.
    pub per_token: Option<Comparison>,
    /// The department's held-out documents.
    pub bits_per_byte: Option<Change>,
    /// The questions of all other departments, with this department's expert alone.
    pub others: Option<Comparison>,
    /// On the department's held-out documents.
    #[serde(default)]
    pub gates: Vec<GateShare>,
    #[serde(default)]
    pub answers: Vec<Answer>,
}

/// The mean gate weight of one expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateShare {
    pub expert: String,
    pub share: f64,
}

/// One question with what was chosen before and after, by the calibrated rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    pub question: Question,
    pub before: Outcome,
    pub after: Outcome,
}

impl Department {
    /// A department with its questions compared; set the other fields afterwards.
    ///
    /// # Errors
    /// [`Error::Unpaired`] if the outcomes are not those of `questions`.
    pub fn new(
        name: &str,
        questions: &[Question],
        before: &[Outcome],
        after: &[Outcome],
    ) -> Result<Department, Error> {
        if questions.len() != before.len() {
            let reason = format!("{} questions, {} outcomes", questions.len(), before.len());
            return Err(Error::Unpaired { reason });
        }
        let by = |rule| match questions {
            [] => Ok(None),
            _ => compare(before, after, rule).map(Some),
        };
        let (calibrated, per_token) = (by(Rule::Calibrated)?, by(Rule::PerToken)?);
        let answers = questions
            .iter()
            .zip(before.iter().zip(after))
            .map(|(question, (before, after))| Answer {
                question: question.clone(),
                before: before.clone(),
                after: after.clone(),
            })
            .collect();
        let name = name.into();
        Ok(Department {
            name,
            calibrated,
            per_token,
            bits_per_byte: None,
            others: None,
            gates: Vec::new(),
            answers,
        })
    }
}

impl Report {
    /// The table for a terminal.
    pub fn table(&self) -> String {
        table::render(self)
    }

    /// `report.html`: one self-contained page.
    pub fn html(&self) -> String {
        page::render(self)
    }

    /// Everything, for other programs.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report is plain data with string keys") + "\n"
    }
}

/// `66.7 %`
fn percent(value: f64) -> String {
    format!("{:.1} %", 100.0 * value)
}

#[cfg(test)]
mod tests;
