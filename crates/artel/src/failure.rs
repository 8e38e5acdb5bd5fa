//! How a failure is told: what went wrong, why, and what to do about it.

use std::fmt;

/// What to do about an error, attached with `.context(Hint::new(…))` and printed on its own line.
#[derive(Debug)]
pub(crate) struct Hint(String);

impl Hint {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Hint(text.into())
    }
}

/// Empty, so that a hint is no part of the chain of causes.
impl fmt::Display for Hint {
    fn fmt(&self, _: &mut fmt::Formatter) -> fmt::Result {
        Ok(())
    }
}

/// The text for stderr: `error:`, each cause that says something new, and `hint:`.
pub(crate) fn report(error: &anyhow::Error) -> String {
    let mut out = format!("error: {}\n", causes(error).join("\n  cause: "));
    if let Some(Hint(hint)) = error.downcast_ref::<Hint>() {
        out += &format!("hint: {hint}\n");
    }
    out
}

/// The causes without the hint, for a table.
pub(crate) fn in_one_line(error: &anyhow::Error) -> String {
    causes(error).join(": ")
}

fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Many library errors repeat their source in their own text.
        if !text.is_empty() && !said.iter().any(|earlier| earlier.contains(&text)) {
            said.push(text);
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn causes_are_told_once_and_the_hint_last() {
        let error = anyhow!("no such file")
            .context("open x: no such file")
            .context(Hint::new("make x"))
            .context("reading the documents");
        assert_eq!(
            report(&error),
            "error: reading the documents\n  cause: open x: no such file\nhint: make x\n"
        );
        let plain: anyhow::Result<()> = Err(anyhow!("a"));
        assert_eq!(report(&plain.context("b").unwrap_err()), "error: b\n  cause: a\n");
    }
}
