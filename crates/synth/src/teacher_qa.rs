//! The recipes with a teacher: its instructions, and reading what it answers.

use std::collections::HashSet;

use model::Message;

use crate::example::{Body, Example, Origin, Verdict, short_hash};
use crate::facts::Passage;
use crate::verify::{Triple, normalise, refusal, rewriting_refusal};

/// A teacher: messages and a token limit in, its answer or a reason out.
pub(crate) type Ask<'a> = &'a dyn Fn(&[Message], usize) -> Result<String, String>;

/// Tokens that a teacher may spend on one question with answer and quote.
const TOKENS_PER_TRIPLE: usize = 120;

/// Question–answer pairs of a passage, refused ones too.
///
/// # Errors
/// What the teacher says of its failure.
pub(crate) fn questions(
    passage: &Passage,
    count: usize,
    teacher: &str,
    ask: Ask,
    known: &mut HashSet<String>,
) -> Result<Vec<Example>, String> {
    let answer = ask(&question_prompt(passage, count), count * TOKENS_PER_TRIPLE)?;
    let mut examples = Vec::new();
    for triple in parse(&answer).into_iter().take(count) {
        let verdict = match refusal(&triple, passage.text, known) {
            Some(reason) => Verdict::Refused(reason),
            None => Verdict::Accepted,
        };
        if verdict == Verdict::Accepted {
            known.insert(normalise(&triple.question));
        }
        let fact = short_hash(&[passage.chunk, &normalise(&triple.quote)]);
        let origin = origin(passage, "qa", teacher, &fact);
        let body = Body::exchange(&triple.question, &triple.answer);
        examples.push(Example::new(origin, body, Some(triple.quote), verdict));
    }
    Ok(examples)
}

/// The passage in the teacher's words.
///
/// # Errors
/// What the teacher says of its failure.
pub(crate) fn rephrasing(passage: &Passage, teacher: &str, ask: Ask) -> Result<Example, String> {
    let tokens = passage.text.len() / 2 + 64;
    let rewritten = ask(&rephrase_prompt(passage), tokens)?.trim().to_owned();
    let verdict = match rewriting_refusal(&rewritten, passage.text) {
        Some(reason) => Verdict::Refused(reason),
        None => Verdict::Accepted,
    };
    let fact = short_hash(&[passage.chunk, "whole"]);
    let origin = origin(passage, "rephrase", teacher, &fact);
    let evidence = Some(passage.text.to_owned());
    Ok(Example::new(origin, Body::Text(rewritten), evidence, verdict))
}

fn origin<'a>(
    passage: &Passage<'a>,
    recipe: &'a str,
    teacher: &'a str,
    fact: &'a str,
) -> Origin<'a> {
    Origin { document: passage.document, chunk: passage.chunk, recipe, teacher, fact }
}

fn question_prompt(passage: &Passage, count: usize) -> Vec<Message> {
    let system = "You write questions and answers about a company's documents. Each question \
                  names what it is about and can be understood without the document. Each answer \
                  is short and uses only the document. Each quote is copied from the document word \
                  for word and contains the answer.";
    let user = format!(
        "Document: {}\n\n{}\n\nWrite up to {count} questions on different facts of this document. \
         Use exactly this form for each, with an empty line between them:\n\n\
         Q: <question>\nA: <answer>\nE: <quote of at least 5 words>",
        heading(passage),
        passage.text
    );
    vec![message("system", system), message("user", &user)]
}

fn rephrase_prompt(passage: &Passage) -> Vec<Message> {
    let system = "You rewrite passages of a company's documents in other words. You keep every \
                  fact, number, code and name, and add nothing.";
    let user = format!("Rewrite this passage from “{}”:\n\n{}", heading(passage), passage.text);
    vec![message("system", system), message("user", &user)]
}

fn heading(passage: &Passage) -> String {
    let mut parts = vec![passage.title];
    parts.extend(passage.section.iter().map(String::as_str));
    parts.retain(|part| !part.is_empty());
    parts.dedup();
    parts.join(" > ")
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

/// Reads `Q:`, `A:`, `E:` lines, forgiving numbers, bold marks, full words and quotation marks.
/// Lines without a mark go on with the one before.
fn parse(answer: &str) -> Vec<Triple> {
    let mut triples: Vec<Triple> = Vec::new();
    let mut field = None;
    for line in answer.lines() {
        let line = line.trim();
        match mark(line) {
            Some(('q', rest)) => {
                triples.push(Triple { question: rest, ..Triple::default() });
                field = Some('q');
            }
            Some((kind, rest)) if !triples.is_empty() => {
                let triple = triples.last_mut().expect("not empty");
                let slot = if kind == 'a' { &mut triple.answer } else { &mut triple.quote };
                *slot = rest;
                field = Some(kind);
            }
            Some(_) => {}
            None if line.is_empty() => field = None,
            None => {
                if let (Some(kind), Some(triple)) = (field, triples.last_mut()) {
                    let slot = match kind {
                        'q' => &mut triple.question,
                        'a' => &mut triple.answer,
                        _ => &mut triple.quote,
                    };
                    slot.push(' ');
                    slot.push_str(line);
                }
            }
        }
    }
    for triple in &mut triples {
        let quoted: &[char] = &['"', '“', '”', ' ', '\''];
        triple.quote = triple.quote.trim_matches(quoted).to_owned();
    }
    triples
}

fn mark(line: &str) -> Option<(char, String)> {
    let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || "*#-.) ".contains(c));
    let (name, rest) = line.split_once(':')?;
    let name = name.trim_matches(|c: char| !c.is_alphabetic()).to_lowercase();
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let kind = match name {
        "q" | "question" => 'q',
        "a" | "answer" => 'a',
        "e" | "evidence" | "quote" => 'e',
        _ => return None,
    };
    Some((kind, rest.trim().trim_start_matches("**").trim_end_matches("**").trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_leniently() {
        let found = parse(
            "Here are the questions:\n\n1. **Q:** How often is it\ncleaned?\nA: Every 14 days.\n\
             E: \"cleaned every 14 days\"\n\nQuestion 2: Who?\nAnswer: Ms. Lind\n",
        );
        insta::assert_debug_snapshot!(found, @r#"
        [
            Triple {
                question: "How often is it cleaned?",
                answer: "Every 14 days.",
                quote: "cleaned every 14 days",
            },
            Triple {
                question: "Who?",
                answer: "Ms. Lind",
                quote: "",
            },
        ]
        "#);
        assert_eq!(parse("I cannot do that: no."), []);
    }
}
