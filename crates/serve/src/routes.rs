use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures_util::StreamExt;
use model::ExpertSet;
use serde_json::{Map, Value, json};

use crate::api_error::{ApiError, in_anthropic_form};
use crate::app::{App, Shared};
use crate::choice::{Choice, Keep};
use crate::generation::{Job, Running};
use crate::keys::Caller;
use crate::parameters::Stream;
use crate::reply::{Form, Reply};
use crate::visit::{Visit, follow};
use crate::{chat, completions, embeddings, messages, metrics, openapi, responses, stream, tokens};

const PAGE: &str = include_str!("page.html");

/// The page holds all it needs, and sends requests only to this server.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
    script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

pub(crate) fn router(app: App) -> Router {
    let completing = |form| {
        post(move |State(app): State<App>, Extension(caller): Extension<Caller>, body: Body| {
            complete(app, caller, body, form)
        })
    };
    let converting = |convert: Convert| {
        post(move |State(app): State<App>, body: Body| convert_body(app, body, convert))
    };
    let anthropic = Router::new()
        .route("/v1/messages", completing(Form::Messages))
        .route("/v1/messages/count_tokens", converting(messages::count))
        .route_layer(from_fn_with_state(app.clone(), authorise))
        .route_layer(map_response(in_anthropic_form));
    let api = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        .route("/v1/chat/completions", completing(Form::Chat))
        .route("/v1/completions", completing(Form::Text))
        .route("/v1/responses", completing(Form::Responses))
        .route("/v1/embeddings", completing(Form::Embeddings))
        .route("/tokenize", converting(tokens::tokenize))
        .route("/detokenize", converting(tokens::detokenize))
        .route("/apply-template", converting(tokens::apply_template))
        .route_layer(from_fn_with_state(app.clone(), authorise))
        .merge(anthropic)
        .route_layer(from_fn_with_state(app.clone(), follow));
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics_page))
        .route("/openapi.json", get(document))
        .merge(api)
        .fallback(async |uri: Uri| ApiError::not_found(uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            ApiError::method(method.as_str(), uri.path())
        })
        .with_state(app)
}

/// Hands on to the handlers who asks, and which experts that key permits.
async fn authorise(
    State(app): State<App>,
    Extension(visit): Extension<Visit>,
    mut request: Request,
    next: Next,
) -> Response {
    if app.is_draining() {
        return ApiError::stopping().into_response();
    }
    let caller = app.keys.caller(request.headers(), visit);
    let caller = caller.and_then(|caller| {
        // Looking costs nothing.
        if request.method() == Method::POST {
            caller.use_request()?;
        }
        Ok(caller)
    });
    match caller {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
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

/// Needs no key, as `/health`: it tells how much is asked, not what.
async fn metrics_page(State(app): State<App>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::page(&app))
}

async fn document(State(app): State<App>) -> Json<Value> {
    Json(openapi::document(&app.model_name))
}

async fn models(State(app): State<App>, Extension(caller): Extension<Caller>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model_card(&app, caller.permitted)]}))
}

async fn model(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if name != app.model_name {
        return Err(ApiError::model_not_found(&name, &app.model_name));
    }
    Ok(Json(model_card(&app, caller.permitted)))
}

/// With the experts that the key permits; the names of others do not show.
fn model_card(app: &Shared, permitted: ExpertSet) -> Value {
    let experts: Vec<&String> = app.names_of(permitted).collect();
    let sources: Map<String, Value> = experts
        .iter()
        .filter_map(|name| Some((name.to_string(), json!(app.sources.get(*name)?))))
        .collect();
    json!({
        "id": app.model_name,
        "object": "model",
        "created": app.started,
        "owned_by": "artel",
        "artel": {
            "experts": experts,
            "context": app.model().config().context,
            "sources": sources,
        },
    })
}

async fn complete(app: App, caller: Caller, body: Body, form: Form) -> Result<Response, ApiError> {
    let body = receive(&app, body).await?;
    let read = match form {
        Form::Chat => chat::read,
        Form::Text => completions::read,
        Form::Embeddings => embeddings::read,
        Form::Responses => responses::read,
        Form::Messages => messages::read,
    };
    let job = {
        let (app, caller) = (app.clone(), caller.clone());
        aside(move || read(&app, &body, &caller)).await?
    };
    let running = Running::start(&app, &job, caller)?;
    let streamed = job.parameters.stream != Stream::No;
    let reply = Reply::new(app, job, form);
    if streamed {
        return Ok(stream::response(reply, running));
    }
    let choices = collect(&reply.job, running).await?;
    Ok(Json(reply.whole(&choices)).into_response())
}

/// An answer that needs no generation.
type Convert = fn(&Shared, &[u8]) -> Result<Value, ApiError>;

async fn convert_body(app: App, body: Body, convert: Convert) -> Result<Json<Value>, ApiError> {
    let body = receive(&app, body).await?;
    Ok(Json(aside(move || convert(&app, &body)).await?))
}

/// Long prompts take a while to encode; other connections must not wait for that.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::internal("reading the request failed"))?
}

async fn collect(job: &Job, mut running: Running) -> Result<Vec<Choice>, ApiError> {
    let mut choices: Vec<Choice> = (0..job.choices()).map(|_| Choice::of(job)).collect();
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
