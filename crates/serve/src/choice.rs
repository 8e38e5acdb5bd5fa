use engine::{Event, Finish, Prompt, Token};

/// What one choice has become so far.
#[derive(Default)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) prompt: Prompt,
    pub(crate) tokens: Vec<Token>,
    pub(crate) finish: Option<Finish>,
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// `[experts]`, over the generated tokens.
    gate_sums: Vec<f64>,
}

impl Choice {
    /// Takes in an event; tokens are kept only where `keep` is [`Keep::Tokens`].
    pub(crate) fn take(&mut self, event: Event, keep: Keep) {
        match event {
            Event::Prompt(prompt) => {
                self.gate_sums = vec![0.0; prompt.gates.len()];
                self.prompt = prompt;
            }
            Event::Token(token) => {
                self.completion_tokens += 1;
                for (sum, &gate) in self.gate_sums.iter_mut().zip(&token.gates) {
                    *sum += f64::from(gate);
                }
                if keep == Keep::Tokens {
                    self.text.push_str(&token.text);
                    self.tokens.push(token);
                }
            }
            Event::Done { reason, text, prompt_tokens, .. } => {
                self.text.push_str(&text);
                self.finish = Some(reason);
                self.prompt_tokens = prompt_tokens;
            }
            Event::Waiting | Event::Prefill { .. } | Event::Failed(_) => {}
        }
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

/// Whether a choice keeps its text and tokens, or they have been sent on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Tokens,
    Counts,
}
