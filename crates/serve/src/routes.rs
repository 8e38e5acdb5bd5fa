use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures_util::StreamExt;
use model::ExpertSet;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::app::{App, Shared};
use crate::choice::{Choice, Keep};
use crate::generation::{Job, Running};
use crate::parameters::Stream;
use crate::reply::{Form, Reply};
use crate::{chat, completions, stream};

const PAGE: &str = include_str!("page.html");

/// The page holds all it needs, and sends requests only to this server.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
    script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

pub(crate) fn router(app: App) -> Router {
    let api = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(text_completions))
        .route_layer(from_fn_with_state(app.clone(), authorise));
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .merge(api)
        .fallback(async |uri: Uri| ApiError::not_found(uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            ApiError::method(method.as_str(), uri.path())
        })
        .with_state(app)
}

/// Hands the experts that the request's key permits on to the handlers.
async fn authorise(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if app.is_draining() {
        return ApiError::stopping().into_response();
    }
    match app.keys.permitted(request.headers()) {
        Ok(permitted) => {
            request.extensions_mut().insert(permitted);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

async fn page() -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE)
}

/// Needs no key: gateways ask it. 503 while the server stops.
async fn health(State(app): State<App>) -> impl IntoResponse {
    let (status, name) = match app.is_draining() {
        false => (StatusCode::OK, "ok"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    let load = app.engine.load();
    let body = json!({"status": name, "running": load.running, "queued": load.queued});
    (status, Json(body))
}

async fn models(State(app): State<App>, Extension(permitted): Extension<ExpertSet>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model_card(&app, permitted)]}))
}

async fn model(
    State(app): State<App>,
    Extension(permitted): Extension<ExpertSet>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if name != app.model_name {
        return Err(ApiError::model_not_found(&name, &app.model_name));
    }
    Ok(Json(model_card(&app, permitted)))
}

/// With the experts that the key permits; the names of others do not show.
fn model_card(app: &Shared, permitted: ExpertSet) -> Value {
    let names = app.expert_names().iter().enumerate();
    let experts: Vec<&String> =
        names.filter(|(index, _)| permitted.contains(*index)).map(|(_, name)| name).collect();
    json!({
        "id": app.model_name,
        "object": "model",
        "created": app.started,
        "owned_by": "artel",
        "artel": {"experts": experts, "context": app.model().config().context},
    })
}

async fn chat_completions(
    State(app): State<App>,
    Extension(permitted): Extension<ExpertSet>,
    body: Body,
) -> Result<Response, ApiError> {
    complete(app, permitted, body, Form::Chat).await
}

async fn text_completions(
    State(app): State<App>,
    Extension(permitted): Extension<ExpertSet>,
    body: Body,
) -> Result<Response, ApiError> {
    complete(app, permitted, body, Form::Text).await
}

async fn complete(
    app: App,
    permitted: ExpertSet,
    body: Body,
    form: Form,
) -> Result<Response, ApiError> {
    let body = receive(&app, body).await?;
    // Long prompts take a while to encode; other connections must not wait for that.
    let reading = tokio::task::spawn_blocking({
        let app = app.clone();
        move || match form {
            Form::Chat => chat::read(&app, &body, permitted),
            Form::Text => completions::read(&app, &body, permitted),
        }
    });
    let job = reading.await.map_err(|_| ApiError::internal("reading the request failed"))??;
    let running = Running::start(&app, &job)?;
    let streamed = job.parameters.stream != Stream::No;
    let reply = Reply::new(app, job, form);
    if streamed {
        return Ok(stream::response(reply, running));
    }
    let choices = collect(&reply.job, running).await?;
    Ok(Json(reply.whole(&choices)).into_response())
}

async fn collect(job: &Job, mut running: Running) -> Result<Vec<Choice>, ApiError> {
    let mut choices: Vec<Choice> = (0..job.choices()).map(|_| Choice::default()).collect();
    while let Some(event) = running.next().await {
        let (index, event) = event?;
        choices[index].take(event, Keep::Tokens);
    }
    Ok(choices)
}

/// The request body, within the limits of size and time.
async fn receive(app: &Shared, body: Body) -> Result<Bytes, ApiError> {
    let limit = app.limits.body_bytes;
    let reading = async {
        let mut parts = body.into_data_stream();
        let mut bytes = Vec::new();
        while let Some(part) = parts.next().await {
            let part = part.map_err(|_| ApiError::body("broke off"))?;
            if bytes.len() + part.len() > limit {
                return Err(ApiError::body_too_large(limit));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(Bytes::from(bytes))
    };
    match tokio::time::timeout(app.limits.body_time, reading).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::body("did not arrive in time")),
    }
}
