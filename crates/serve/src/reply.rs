use engine::{Finish, Token};
use serde_json::{Map, Value, json};

use crate::app::{App, Shared};
use crate::choice::Choice;
use crate::generation::Job;
use crate::ids;
use crate::{chat, completions, embeddings, messages, responses};

/// The forms of answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    Chat,
    Text,
    Embeddings,
    Responses,
    Messages,
}

/// What all parts of one answer share.
pub(crate) struct Reply {
    pub(crate) app: App,
    pub(crate) job: Job,
    pub(crate) form: Form,
    pub(crate) id: String,
    pub(crate) created: u64,
}

impl Reply {
    pub(crate) fn new(app: App, job: Job, form: Form) -> Self {
        let prefix = match form {
            Form::Chat => "chatcmpl",
            Form::Text => "cmpl",
            Form::Embeddings => "embd",
            Form::Responses => "resp",
            Form::Messages => "msg",
        };
        let id = format!("{prefix}-{:016x}", ids::unique());
        Reply { app, job, form, id, created: ids::now() }
    }

    /// The whole answer at once.
    pub(crate) fn whole(&self, choices: &[Choice]) -> Value {
        type Of = fn(&Reply, usize, &Choice) -> Value;
        let (object, of): (&str, Of) = match self.form {
            Form::Chat => ("chat.completion", chat::choice),
            Form::Text => ("text_completion", completions::choice),
            Form::Embeddings => return embeddings::whole(self, choices),
            Form::Responses => return responses::whole(self, &choices[0]),
            Form::Messages => return messages::whole(self, &choices[0]),
        };
        let list = choices.iter().enumerate().map(|(index, choice)| of(self, index, choice));
        let mut answer = self.envelope(object, list.collect());
        answer["usage"] = self.usage(choices);
        answer["artel"] = self.all_gates(choices);
        answer
    }

    /// A part of a streamed answer, of the forms that have choices.
    pub(crate) fn chunk(&self, choices: Vec<Value>) -> Value {
        let object =
            if self.form == Form::Chat { "chat.completion.chunk" } else { "text_completion" };
        self.envelope(object, choices)
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.app.model_name,
            "choices": choices,
        })
    }

    pub(crate) fn usage(&self, choices: &[Choice]) -> Value {
        // A prompt counts once, however many choices it has.
        let prompt: usize =
            choices.iter().step_by(self.job.parameters.n).map(|choice| choice.prompt_tokens).sum();
        let reused: usize =
            choices.iter().step_by(self.job.parameters.n).map(|choice| choice.prompt.reused).sum();
        let completion: usize = choices.iter().map(|choice| choice.completion_tokens).sum();
        let thought: usize = choices.iter().map(|choice| choice.thought_tokens).sum();
        let mut usage = json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": reused},
        });
        if thought > 0 {
            usage["completion_tokens_details"] = json!({"reasoning_tokens": thought});
        }
        usage
    }

    /// `{"experts": {name: mean gate weight}}` of a choice.
    pub(crate) fn gates(&self, choice: &Choice) -> Value {
        json!({"experts": self.named(&choice.mean_gates())})
    }

    /// The mean over the choices.
    pub(crate) fn all_gates(&self, choices: &[Choice]) -> Value {
        let mut sums = vec![0.0; self.app.expert_names().len()];
        for choice in choices {
            for (sum, gate) in sums.iter_mut().zip(choice.mean_gates()) {
                *sum += gate / choices.len() as f64;
            }
        }
        json!({"experts": self.named(&sums)})
    }

    /// The gate weights of each of the tokens.
    pub(crate) fn token_gates(&self, tokens: &[Token]) -> Value {
        let gates = tokens.iter().map(|token| {
            let gates: Vec<f64> = token.gates.iter().map(|&gate| f64::from(gate)).collect();
            let text = String::from_utf8_lossy(&token_bytes(&self.app, token.id)).into_owned();
            json!({"token": text, "experts": self.named(&gates)})
        });
        gates.collect()
    }

    /// Gate weights with the names of the experts that the request uses: others do not show.
    fn named(&self, gates: &[f64]) -> Map<String, Value> {
        let experts = self.job.experts();
        let named = self.app.expert_names().iter().zip(gates).enumerate();
        named
            .filter(|(index, _)| experts.contains(*index))
            // Four digits: more would be noise.
            .map(|(_, (name, gate))| (name.clone(), json!((gate * 1e4).round() / 1e4)))
            .collect()
    }
}

pub(crate) fn finish_reason(choice: &Choice) -> Value {
    match choice.finish {
        None => Value::Null,
        Some(Finish::Stop) if choice.calls().next().is_some() => json!("tool_calls"),
        Some(Finish::Stop | Finish::StopString(_)) => json!("stop"),
        Some(Finish::Length) => json!("length"),
    }
}

pub(crate) fn token_bytes(app: &Shared, id: u32) -> Vec<u8> {
    app.model().tokenizer.token_bytes(id)
}
