use model::{ExpertSet, Message};

use crate::{Endpoint, Engine, Error, Request, Sampling, chat_prompt};

/// Who answers when examples are synthesised.
pub enum Teacher {
    /// A model in this process, with all its experts.
    Local(Engine),
    /// An OpenAI-compatible server.
    Endpoint(Endpoint),
}

impl Teacher {
    /// The model's name, for lineage.
    pub fn name(&self) -> String {
        match self {
            Teacher::Local(engine) => engine.model().name.clone(),
            Teacher::Endpoint(endpoint) => endpoint.model().to_owned(),
        }
    }

    /// The assistant's answer to the messages, of at most `max_tokens` tokens. Blocks; may be
    /// called from several threads at once, which a local engine answers in one batch.
    ///
    /// # Errors
    /// The request is refused, or generation or the connection fails for good.
    pub fn chat(
        &self,
        messages: &[Message],
        sampling: Sampling,
        max_tokens: usize,
    ) -> Result<String, Error> {
        match self {
            Teacher::Local(engine) => {
                let experts = engine.model().config().experts.as_ref();
                let request = Request {
                    prompt: chat_prompt(engine.model(), messages)?,
                    max_tokens,
                    sampling,
                    experts: ExpertSet::all(experts.map_or(0, |experts| experts.names.len())),
                    ..Request::default()
                };
                Ok(engine.generate(request)?.text)
            }
            Teacher::Endpoint(endpoint) => endpoint.chat(messages, &sampling, max_tokens),
        }
    }
}
