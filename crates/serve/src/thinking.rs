//! Models that think before they answer, between `<think>` and `</think>`.

use model::ChatTemplate;
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::app::Shared;
use crate::reply::token_bytes;

pub(crate) const OPEN: &str = "<think>";
pub(crate) const CLOSE: &str = "</think>";

/// Whether an answer has thoughts before its text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Thoughts {
    Never,
    /// The answer may begin with `<think>`.
    Possible,
    /// The prompt ends with `<think>`.
    Begun,
}

impl Thoughts {
    /// How the answer to this prompt begins.
    pub(crate) fn behind(app: &Shared, prompt: &[u32]) -> Self {
        if !thinks(&app.model().template) {
            return Thoughts::Never;
        }
        let last = &prompt[prompt.len().saturating_sub(12)..];
        let bytes: Vec<u8> = last.iter().flat_map(|&id| token_bytes(app, id)).collect();
        let end = String::from_utf8_lossy(&bytes);
        match end.trim_end() {
            end if end.ends_with(OPEN) => Thoughts::Begun,
            end if end.ends_with(CLOSE) => Thoughts::Never,
            _ => Thoughts::Possible,
        }
    }
}

/// How much a request wants the model to think.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Effort {
    /// As the template has it.
    #[default]
    Unsaid,
    Off,
    On,
    /// In the words of the template.
    Level(String),
}

impl Effort {
    /// An effort that this model can be asked for: all levels where its template knows them, else
    /// `none` and `medium`, which are off and on. A model that does not think takes `none`.
    pub(crate) fn read(
        app: &Shared,
        field: &str,
        effort: Option<String>,
    ) -> Result<Self, ApiError> {
        let template = &app.model().template;
        let Some(effort) = effort else { return Ok(Effort::Unsaid) };
        let allowed = match effort.as_str() {
            _ if template.uses("reasoning_effort") => return Ok(Effort::Level(effort)),
            "none" if template.uses("enable_thinking") => return Ok(Effort::Off),
            "medium" if template.uses("enable_thinking") => return Ok(Effort::On),
            _ if template.uses("enable_thinking") => "none and medium",
            "none" if !thinks(template) => return Ok(Effort::Unsaid),
            "medium" if thinks(template) => return Ok(Effort::Unsaid),
            _ if thinks(template) => "medium: this model always thinks",
            _ => "none: this model does not think",
        };
        let message = format!("{field} is {effort:?}, allowed is {allowed}");
        Err(ApiError::invalid(field, message).with_code("unsupported_parameter"))
    }

    /// The template's variables that say so.
    pub(crate) fn add_to(&self, variables: &mut Map<String, Value>) {
        match self {
            Effort::Unsaid => {}
            Effort::Off => drop(variables.insert("enable_thinking".into(), json!(false))),
            Effort::On => drop(variables.insert("enable_thinking".into(), json!(true))),
            Effort::Level(level) => {
                drop(variables.insert("reasoning_effort".into(), json!(level)));
            }
        }
    }
}

fn thinks(template: &ChatTemplate) -> bool {
    template.source().contains(CLOSE)
}
