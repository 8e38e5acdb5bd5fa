//! What the text of an answer is made of: thoughts, text for the reader, and calls of tools.

use serde_json::Value;

use crate::thinking::{self, Thoughts};
use crate::tools;

/// A part of an answer that has just become certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Thought(String),
    Text(String),
    /// A call of the tool of this name begins.
    Call(String),
    /// More of the arguments of the last call.
    Arguments(String),
}

/// Splits an answer while it is written. What it gives does not depend on how the text is cut.
pub(crate) struct Splitter {
    state: State,
    /// Whether calls are looked for.
    calls: bool,
    /// Text that is not certain yet.
    rest: String,
    /// White space that shows only if something follows it.
    space: String,
    /// Whether text or a thought has begun to show; white space before it does not.
    begun: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Thoughts may begin here.
    Beginning,
    Thought,
    Text,
    /// Behind `<tool_call>`, before the arguments.
    Name,
    /// `depth` braces and brackets are open.
    Arguments {
        depth: usize,
        in_text: bool,
        escaped: bool,
    },
    /// Behind the arguments, before `</tool_call>`.
    End,
}

impl Splitter {
    pub(crate) fn new(thoughts: Thoughts, calls: bool) -> Self {
        let state = match thoughts {
            Thoughts::Never => State::Text,
            Thoughts::Possible => State::Beginning,
            Thoughts::Begun => State::Thought,
        };
        // An answer that is only text shows as it is.
        let begun = thoughts == Thoughts::Never && !calls;
        Splitter { state, calls, rest: String::new(), space: String::new(), begun }
    }

    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.rest.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// What is left, as nothing more comes.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let rest = std::mem::take(&mut self.rest);
        match self.state {
            State::Beginning | State::Text => self.show(&rest, Piece::Text, &mut pieces),
            State::Thought => self.show(&rest, Piece::Thought, &mut pieces),
            State::Name => {
                let text = format!("{}{rest}", tools::OPEN);
                self.show(&text, Piece::Text, &mut pieces);
            }
            State::Arguments { .. } | State::End => {}
        }
        pieces
    }

    /// Goes on as far as the next change of state; false where more text is needed.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match self.state {
            State::Beginning => self.begin(),
            State::Thought => self.until(thinking::CLOSE, State::Text, Piece::Thought, pieces),
            State::Text if self.calls => self.until(tools::OPEN, State::Name, Piece::Text, pieces),
            State::Text => {
                let text = std::mem::take(&mut self.rest);
                self.show(&text, Piece::Text, pieces);
                false
            }
            State::Name => self.name(pieces),
            State::Arguments { .. } => self.arguments(pieces),
            State::End => match self.rest.find(tools::CLOSE) {
                Some(at) => {
                    self.rest.drain(..at + tools::CLOSE.len());
                    self.enter(State::Text)
                }
                None => false,
            },
        }
    }

    fn begin(&mut self) -> bool {
        let text = self.rest.trim_start();
        if let Some(behind) = text.strip_prefix(thinking::OPEN) {
            self.rest = behind.to_owned();
            return self.enter(State::Thought);
        }
        !thinking::OPEN.starts_with(text) && self.enter(State::Text)
    }

    /// Shows what is before `mark`; behind it comes `next`.
    fn until(
        &mut self,
        mark: &str,
        next: State,
        piece: fn(String) -> Piece,
        pieces: &mut Vec<Piece>,
    ) -> bool {
        if let Some(at) = self.rest.find(mark) {
            let behind = self.rest.split_off(at + mark.len());
            let text = std::mem::replace(&mut self.rest, behind);
            self.show(&text[..at], piece, pieces);
            return self.enter(next);
        }
        // The end may be the mark's beginning.
        let possible = |length: &usize| self.rest.as_bytes().ends_with(&mark.as_bytes()[..*length]);
        let kept = (1..mark.len()).rev().find(possible).unwrap_or(0);
        let text: String = self.rest.drain(..self.rest.len() - kept).collect();
        self.show(&text, piece, pieces);
        false
    }

    /// Shows text, but white space at its ends only where other text is beside it, unless the
    /// answer is nothing but text.
    fn show(&mut self, text: &str, piece: fn(String) -> Piece, pieces: &mut Vec<Piece>) {
        let text = if self.begun { text } else { text.trim_start() };
        if text.is_empty() {
            return;
        }
        self.begun = true;
        let text = std::mem::take(&mut self.space) + text;
        let shown = match self.calls || self.state == State::Thought {
            true => text.trim_end().len(),
            false => text.len(),
        };
        self.space = text[shown..].to_owned();
        if shown > 0 {
            pieces.push(piece(text[..shown].to_owned()));
        }
    }

    fn name(&mut self, pieces: &mut Vec<Piece>) -> bool {
        const KEY: &str = "\"arguments\":";
        let Some(at) = self.rest.find(KEY) else { return false };
        let head: Option<Value> =
            serde_json::from_str(&format!("{}{KEY}null}}", &self.rest[..at])).ok();
        let name = head.as_ref().and_then(|head| head["name"].as_str());
        let Some(name) = name else {
            // No call after all: the text says so itself.
            let text = tools::OPEN.to_owned() + &std::mem::take(&mut self.rest);
            self.enter(State::Text);
            self.show(&text, Piece::Text, pieces);
            return false;
        };
        pieces.push(Piece::Call(name.to_owned()));
        self.rest.drain(..at + KEY.len());
        self.enter(State::Arguments { depth: 0, in_text: false, escaped: false })
    }

    fn arguments(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let State::Arguments { mut depth, mut in_text, mut escaped } = self.state else {
            return false;
        };
        if depth == 0 {
            self.rest = self.rest.trim_start().to_owned();
        }
        let mut end = None;
        for (at, byte) in self.rest.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                _ if in_text => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        end = Some(at + 1);
                        break;
                    }
                }
                _ => {}
            }
        }
        let text: String = self.rest.drain(..end.unwrap_or(self.rest.len())).collect();
        if !text.is_empty() {
            pieces.push(Piece::Arguments(text));
        }
        match end {
            Some(_) => self.enter(State::End),
            None => {
                self.state = State::Arguments { depth, in_text, escaped };
                false
            }
        }
    }

    /// Enters a state, in which white space at the beginning does not show.
    fn enter(&mut self, state: State) -> bool {
        self.state = state;
        self.begun = false;
        self.space.clear();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a text, neighbours of a kind joined: `t:` thoughts, `=` text, `name(…`.
    fn split(thoughts: Thoughts, calls: bool, parts: &[&str]) -> String {
        let mut splitter = Splitter::new(thoughts, calls);
        let mut pieces: Vec<Piece> = parts.iter().flat_map(|part| splitter.push(part)).collect();
        pieces.extend(splitter.finish());
        let mut text = String::new();
        let mut last = ' ';
        for piece in pieces {
            let (kind, piece) = match piece {
                Piece::Thought(piece) => ('t', piece),
                Piece::Text(piece) => ('=', piece),
                Piece::Call(name) => ('c', name),
                Piece::Arguments(piece) => ('(', piece),
            };
            if kind != last || kind == 'c' {
                text += &format!("|{kind}:");
            }
            text += &piece;
            last = kind;
        }
        text
    }

    /// Checks the pieces of a text, whole and cut everywhere.
    fn check(thoughts: Thoughts, calls: bool, text: &str, expected: &str) {
        assert_eq!(split(thoughts, calls, &[text]), expected);
        let cut: Vec<String> = text.chars().map(|character| character.to_string()).collect();
        let cut: Vec<&str> = cut.iter().map(String::as_str).collect();
        assert_eq!(split(thoughts, calls, &cut), expected, "cut into characters");
    }

    #[test]
    fn thoughts_come_first() {
        use Thoughts::{Begun, Never, Possible};
        check(Never, false, " <think>a</think>\n", "|=: <think>a</think>\n");
        check(Possible, false, "<think>\na b\n</think>\n\nc\n", "|t:a b|=:c\n");
        check(Possible, false, "\n<thin", "|=:<thin");
        check(Possible, false, "c <think>a</think>", "|=:c <think>a</think>");
        check(Begun, false, "a\n\nb</thinkx</think>c", "|t:a\n\nb</thinkx|=:c");
        check(Begun, false, "a </thi", "|t:a </thi");
    }

    #[test]
    fn calls_are_taken_out_of_the_text() {
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}]\\\"\", \"b\": [{}]}}\n</tool_call>";
        let arguments = "{\"a\": \"}]\\\"\", \"b\": [{}]}";
        let never = Thoughts::Never;
        check(never, true, call, &format!("|c:f|(:{arguments}"));
        let two = format!("One moment. \n{call}\n{call}\n");
        check(never, true, &two, &format!("|=:One moment.|c:f|(:{arguments}|c:f|(:{arguments}"));
        check(never, true, "a <tool_ca b\n", "|=:a <tool_ca b");
        check(never, true, "<tool_call>\n{\"na", "|=:<tool_call>\n{\"na");
        check(never, true, &call[..45], "|c:f|(:{\"a\": ");
        check(
            Thoughts::Possible,
            true,
            &format!("<think>x</think>{call}"),
            &format!("|t:x|c:f|(:{arguments}"),
        );
        check(never, false, call, &format!("|=:{call}"));
    }
}
