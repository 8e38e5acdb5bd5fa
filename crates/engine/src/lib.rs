//! Running a model: generation for many requests at once, scoring of given text, and teachers.
//!
//! [`Engine`] owns a worker thread that steps every running request in one batch; [`Scorer`]
//! gives log-probabilities of given tokens; [`Teacher`] answers chats with a local engine or with
//! an OpenAI-compatible endpoint.

mod engine;
mod worker;

mod ledger;
mod prefixes;

mod chat;
mod constraint;
mod further;
mod lookup;
mod request;
mod sampler;
mod sequence;
mod text;

mod endpoint;
mod logprobs;
mod score;
mod teacher;

pub use chat::{chat_prompt, prompt_of};
pub use constraint::Constraint;
pub use endpoint::Endpoint;
pub use engine::Engine;
pub use request::{
    Answers, Completion, Event, Finish, Flow, Limits, Load, Prompt, PromptToken, Request, Sampling,
    Token,
};
pub use score::{Beside, Scorer};
pub use teacher::Teacher;

/// Why a request was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] model::Error),
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    #[error("the prompt has {tokens} tokens, the model's context holds {context}{}", room(*.reserve))]
    Context { tokens: usize, context: usize, reserve: usize },
    #[error("token {token} is outside the vocabulary of {vocab} tokens")]
    Token { token: u32, vocab: usize },
    #[error("one model has {own} tokens, the other {other}: they cannot be compared")]
    Vocabulary { own: usize, other: usize },
    #[error("{parameter} is {value}, allowed is {allowed}")]
    Sampling { parameter: &'static str, value: String, allowed: &'static str },
    #[error("the grammar cannot be used: {problem}")]
    Grammar { problem: String },
    #[error("{field} contains {token:?}, which the model reads as a mark of its own, not as text")]
    Mark { field: String, token: String },
    #[error("a stop string is empty")]
    EmptyStop,
    #[error(
        "the request needs room for {needed} tokens (prompt + max_tokens), \
         the memory for keys and values holds {limit}"
    )]
    KvLimit { needed: usize, limit: usize },
    #[error("{limit} requests are waiting already: try again later")]
    QueueFull { limit: usize },
    #[error("the engine was stopped")]
    Stopped,
    #[error("generation failed: {0}")]
    Failed(String),
    #[error("{url:?} is not the address of an endpoint: {problem}")]
    EndpointUrl { url: String, problem: &'static str },
    #[error("{url} gave no answer after {attempts} attempts: {problem}")]
    Endpoint { url: String, attempts: usize, problem: String },
    #[error("{url} answered with status {status}: {message}")]
    EndpointStatus { url: String, status: u16, message: String },
    #[error("{url} answered something else than a chat completion: {problem}")]
    EndpointAnswer { url: String, problem: String },
}

fn room(reserve: usize) -> String {
    match reserve {
        0 => String::new(),
        1 => ", of which one is for the answer".to_owned(),
        _ => format!(", of which {reserve} are for the answer"),
    }
}
