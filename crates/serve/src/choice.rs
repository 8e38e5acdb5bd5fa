use engine::{Event, Finish, Prompt, Token};

use crate::generation::Job;
use crate::ids;
use crate::pieces::{Piece, Splitter};

/// What one choice has become so far.
pub(crate) struct Choice {
    pub(crate) parts: Vec<Part>,
    pub(crate) prompt: Prompt,
    pub(crate) tokens: Vec<Token>,
    pub(crate) finish: Option<Finish>,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// Tokens that came before the end of the thoughts.
    pub(crate) thought_tokens: usize,
    splitter: Splitter,
    /// `[experts]`, over the generated tokens.
    gate_sums: Vec<f64>,
}

/// A part of an answer, in the order in which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Thought(String),
    Text(String),
    Call { id: String, name: String, arguments: String },
}

impl Choice {
    pub(crate) fn of(job: &Job) -> Self {
        Choice {
            parts: Vec::new(),
            prompt: Prompt::default(),
            tokens: Vec::new(),
            finish: None,
            prompt_tokens: 0,
            completion_tokens: 0,
            thought_tokens: 0,
            splitter: Splitter::new(job.thoughts, job.calls),
            gate_sums: Vec::new(),
        }
    }

    /// Takes in an event, and gives what became certain with it. Tokens are kept only where `keep`
    /// is [`Keep::Tokens`].
    pub(crate) fn take(&mut self, event: Event, keep: Keep) -> Vec<Piece> {
        let pieces = match event {
            Event::Prompt(prompt) => {
                self.gate_sums = vec![0.0; prompt.gates.len()];
                self.prompt = prompt;
                Vec::new()
            }
            Event::Token(token) => {
                self.completion_tokens += 1;
                for (sum, &gate) in self.gate_sums.iter_mut().zip(&token.gates) {
                    *sum += f64::from(gate);
                }
                let pieces = self.splitter.push(&token.text);
                if pieces.iter().any(|piece| matches!(piece, Piece::Thought(_))) {
                    self.thought_tokens = self.completion_tokens;
                }
                if keep == Keep::Tokens {
                    self.tokens.push(token);
                }
                pieces
            }
            Event::Done { reason, text, prompt_tokens, .. } => {
                self.finish = Some(reason);
                self.prompt_tokens = prompt_tokens;
                let mut pieces = self.splitter.push(&text);
                pieces.extend(self.splitter.finish());
                if pieces.is_empty() && self.parts.is_empty() {
                    // An answer without text is an empty text.
                    self.parts.push(Part::Text(String::new()));
                }
                pieces
            }
            Event::Waiting | Event::Prefill { .. } | Event::Failed(_) => Vec::new(),
        };
        pieces.iter().for_each(|piece| self.add(piece));
        pieces
    }

    fn add(&mut self, piece: &Piece) {
        match (piece, self.parts.last_mut()) {
            (Piece::Thought(more), Some(Part::Thought(text)))
            | (Piece::Text(more), Some(Part::Text(text)))
            | (Piece::Arguments(more), Some(Part::Call { arguments: text, .. })) => {
                text.push_str(more);
            }
            (Piece::Thought(text), _) => self.parts.push(Part::Thought(text.clone())),
            // Arguments always follow their call.
            (Piece::Text(text) | Piece::Arguments(text), _) => {
                self.parts.push(Part::Text(text.clone()));
            }
            (Piece::Call(name), _) => {
                let id = format!("call_{:016x}", ids::unique());
                let (name, arguments) = (name.clone(), String::new());
                self.parts.push(Part::Call { id, name, arguments });
            }
        }
    }

    /// The text for the reader.
    pub(crate) fn text(&self) -> String {
        let texts = self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// What was thought; none where nothing was.
    pub(crate) fn thought(&self) -> Option<&str> {
        self.parts.iter().find_map(|part| match part {
            Part::Thought(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Id, name and arguments of each call.
    pub(crate) fn calls(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Call { id, name, arguments } => {
                Some((id.as_str(), name.as_str(), arguments.as_str()))
            }
            _ => None,
        })
    }

    /// `[experts]`: mean gate weights over the generated tokens, or over the prompt's where none
    /// was generated.
    pub(crate) fn mean_gates(&self) -> Vec<f64> {
        if self.completion_tokens == 0 {
            return self.prompt.gates.iter().map(|&gate| f64::from(gate)).collect();
        }
        let tokens = self.completion_tokens as f64;
        self.gate_sums.iter().map(|sum| sum / tokens).collect()
    }
}

/// Whether a choice keeps its tokens, or they have been sent on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Tokens,
    Counts,
}
