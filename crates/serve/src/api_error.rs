use std::time::Duration;

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::allowance::UsedUp;

/// An error in the form of OpenAI's API, or of Anthropic's where its API is spoken.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which to try again.
    retry_after: u64,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into(), param: None, code: None, retry_after: 1 }
    }

    /// The request is wrong at `param`.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        ApiError { param: Some(param.into()), ..error }
    }

    pub(crate) fn json(message: String) -> Self {
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        ApiError { code: Some("invalid_json"), ..error }
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        ApiError { code: Some(code), ..self }
    }

    pub(crate) fn unauthorised(message: &str) -> Self {
        ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key")
    }

    pub(crate) fn host() -> Self {
        let message = "without keys this server answers only requests to and from localhost: \
                       address it so, or configure keys";
        ApiError::new(StatusCode::FORBIDDEN, message).with_code("host_not_allowed")
    }

    pub(crate) fn forbidden(expert: &str) -> Self {
        let message = format!("this key does not permit the expert {expert:?}");
        let error = ApiError::new(StatusCode::FORBIDDEN, message).with_code("expert_not_permitted");
        ApiError { param: Some("experts".into()), ..error }
    }

    pub(crate) fn model_not_found(asked: &str, served: &str) -> Self {
        let message = format!("the model {asked:?} is not served here; {served:?} is");
        let error = ApiError::new(StatusCode::NOT_FOUND, message).with_code("model_not_found");
        ApiError { param: Some("model".into()), ..error }
    }

    pub(crate) fn not_found(path: &str) -> Self {
        ApiError::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}"))
            .with_code("unknown_url")
    }

    pub(crate) fn method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).with_code("method_not_allowed")
    }

    pub(crate) fn body_too_large(limit: usize) -> Self {
        let message = format!("the request body is larger than the limit of {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).with_code("body_too_large")
    }

    pub(crate) fn body(problem: &str) -> Self {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, format!("the request body {problem}"))
    }

    pub(crate) fn stopping() -> Self {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping")
            .with_code("stopping")
    }

    /// The key's allowance of requests or tokens is used up.
    pub(crate) fn used_up(used: UsedUp) -> Self {
        let UsedUp { what, per_minute, wait } = used;
        let message = format!("this key's limit of {per_minute} {what} a minute is used up");
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message);
        // Rounded up: a moment too early would be refused again.
        ApiError { retry_after: wait.as_secs() + 1, ..error }.with_code("rate_limit_exceeded")
    }

    pub(crate) fn answer_time(limit: Duration) -> Self {
        let message = format!("the answer was not complete within the limit of {limit:?}");
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, message).with_code("time_limit")
    }

    pub(crate) fn slow_reader(limit: usize) -> Self {
        let message = format!("{limit} tokens waited unread: the client reads too slowly");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).with_code("slow_reader")
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// An error of the engine; `prompt` is the field that holds the prompt.
    pub(crate) fn of_engine(error: engine::Error, prompt: &str) -> Self {
        use engine::Error as E;
        let message = error.to_string();
        match error {
            E::Context { .. } => {
                ApiError::invalid(prompt, message).with_code("context_length_exceeded")
            }
            E::EmptyPrompt | E::Model(_) | E::Grammar { .. } => ApiError::invalid(prompt, message),
            E::Mark { ref field, .. } => ApiError::invalid(field.clone(), message),
            E::Token { .. } => ApiError::invalid(prompt, message).with_code("unknown_token"),
            E::Sampling { parameter, .. } => ApiError::invalid(parameter, message),
            E::EmptyStop => ApiError::invalid("stop", message),
            E::KvLimit { .. } => {
                ApiError::invalid("max_tokens", message).with_code("capacity_exceeded")
            }
            E::QueueFull { .. } => {
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).with_code("queue_full")
            }
            E::Stopped => ApiError::stopping(),
            _ => ApiError::internal(message),
        }
    }

    pub(crate) fn body_json(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {
            "message": self.message,
            "type": kind,
            "param": self.param,
            "code": self.code,
        }})
    }

    /// As Anthropic's API says it.
    pub(crate) fn anthropic_json(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }

    fn response(self, body: Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, self.retry_after.into());
            }
            _ => {}
        }
        // For `in_anthropic_form`.
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.body_json();
        self.response(body)
    }
}

/// Says errors in the form of Anthropic's API.
pub(crate) async fn in_anthropic_form(mut response: Response) -> Response {
    match response.extensions_mut().remove::<ApiError>() {
        Some(error) => {
            let body = error.anthropic_json();
            error.response(body)
        }
        None => response,
    }
}
