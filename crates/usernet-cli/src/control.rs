//! The control socket: HTTP with JSON for people and programs, and the hand-over of TAP devices.
//!
//! ```text
//! GET    /v1/leases /v1/flows /v1/forwards /v1/drops /v1/ports
//! POST   /v1/forwards      {"rule": "tcp:127.0.0.1:8080-:80"}
//! DELETE /v1/forwards/ID
//! ```
//! What fails is answered with `{"error": "..."}`. A connection that begins with an opening brace is no
//! HTTP but the offer of a TAP device ([`crate::handover`]).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Result;
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustix::fs::Mode;
use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tracing::debug;
use usernet::link::tap::TapLink;
use usernet::{Error, ForwardRule, GuestConfig, Handle};

use crate::endpoint::Endpoint;
use crate::handover::{Answer, Incoming, Offer, line_of};
use crate::listen::{Acceptor, Listener};
use crate::paths::MadeFile;

/// A request for a new forward.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NewForward {
    pub(crate) rule: String,
}

/// Why a request was refused.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) error: String,
}

/// Binds the control socket, which only its owner may connect to.
///
/// # Errors
/// The path cannot be had.
pub(crate) fn bind(path: &Path) -> Result<(Listener, Option<MadeFile>)> {
    // The socket must not be open to others for even a moment. Nobody else makes files meanwhile:
    // there is one thread yet.
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = Listener::bind(&Endpoint::Unix(path.into()), "--control");
    rustix::process::umask(before);
    bound
}

/// Answers all that connect.
pub(crate) async fn answer(mut acceptor: Acceptor, handle: Handle) {
    let router = router(handle.clone());
    loop {
        let connection = acceptor.next().await;
        tokio::spawn(converse(connection, handle.clone(), router.clone()));
    }
}

async fn converse(connection: OwnedFd, handle: Handle, router: Router) {
    if let Err(error) = try_converse(connection, &handle, router).await {
        debug!("a control connection ended: {error:#}");
    }
}

async fn try_converse(connection: OwnedFd, handle: &Handle, router: Router) -> Result<()> {
    let stream = UnixStream::from_std(connection.into())?;
    if first_byte(&stream).await? == Some(b'{') {
        return host_guest(stream, handle).await;
    }
    let service = TowerToHyperService::new(router);
    Ok(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?)
}

/// Looks at the first byte without taking it.
async fn first_byte(stream: &UnixStream) -> io::Result<Option<u8>> {
    let mut byte = [0];
    let peek = || Ok(rustix::net::recv(stream, &mut byte, RecvFlags::PEEK)?);
    let (_, len) = stream.async_io(Interest::READABLE, peek).await?;
    Ok(Some(byte).filter(|_| len > 0).map(|[byte]| byte))
}

/// Plugs in the TAP device that is offered, until the connection ends.
async fn host_guest(mut stream: UnixStream, handle: &Handle) -> Result<()> {
    let mut incoming = Incoming::default();
    while !stream.async_io(Interest::READABLE, || incoming.receive(stream.as_fd())).await? {}

    let guest = incoming.offer().and_then(|(offer, queues)| plug_in(handle, &offer, queues));
    let (port, answer) = match guest {
        Ok((port, config)) => (Some(port), Answer::Welcome(config)),
        Err(error) => (None, Answer::Refused { error: format!("{error:#}") }),
    };
    let told = stream.write_all(&line_of(&answer)?).await;
    if let Some(port) = port {
        // Nothing more is said: what this waits for is the end, of the connection or of the link.
        tokio::select! {
            _ = stream.read_u8(), if told.is_ok() => {}
            _ = handle.detached(port) => {}
        }
        // It may have gone by itself.
        let _ = handle.detach(port);
    }
    Ok(told?)
}

/// Makes a TAP device a guest with a lease. `exec` without a daemon does the same.
///
/// # Errors
/// The descriptor is no fitting TAP device, or the network has no room.
pub(crate) fn plug_in(handle: &Handle, offer: &Offer, queues: Vec<OwnedFd>) -> Result<(u32, GuestConfig)> {
    let links = queues.into_iter().map(TapLink::from_fd).collect::<io::Result<Vec<_>>>()?;
    let port = handle.attach_queues(links, &offer.name)?;
    match handle.lease(port, offer.mac, offer.hostname.as_deref()) {
        Ok(config) => Ok((port, config)),
        Err(error) => {
            let _ = handle.detach(port);
            Err(error.into())
        }
    }
}

fn router(handle: Handle) -> Router {
    Router::new()
        .route("/v1/leases", get(|State(handle): State<Handle>| async move { json(handle.leases()) }))
        .route("/v1/flows", get(|State(handle): State<Handle>| async move { json(handle.flows()) }))
        .route("/v1/drops", get(|State(handle): State<Handle>| async move { json(handle.drops()) }))
        .route("/v1/ports", get(|State(handle): State<Handle>| async move { json(handle.ports()) }))
        .route(
            "/v1/forwards",
            get(|State(handle): State<Handle>| async move { json(handle.forwards()) }).post(add_forward),
        )
        .route("/v1/forwards/{id}", delete(remove_forward))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "there is no such path; try /v1/leases"))
        .method_not_allowed_fallback(async || {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
        })
        .with_state(handle)
}

/// The body is JSON whatever its type says: `curl -d` says that it is a form.
async fn add_forward(State(handle): State<Handle>, body: Bytes) -> Response {
    let request: NewForward = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            let why = format!("the body must be like {{\"rule\": \"tcp:127.0.0.1:8080-:80\"}}: {error}");
            return refuse(StatusCode::BAD_REQUEST, why);
        }
    };
    match request.rule.parse::<ForwardRule>() {
        Ok(rule) => match handle.add_forward(&rule) {
            Ok(forward) => (StatusCode::CREATED, Json(forward)).into_response(),
            Err(error) => failure(&error),
        },
        Err(error) => refuse(StatusCode::BAD_REQUEST, error),
    }
}

async fn remove_forward(State(handle): State<Handle>, UrlPath(id): UrlPath<String>) -> Response {
    let Ok(id) = id.parse() else {
        return refuse(StatusCode::BAD_REQUEST, format!("{id:?} is no forward's number"));
    };
    match handle.remove_forward(id) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => failure(&error),
    }
}

fn json<T: Serialize>(result: Result<T, Error>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => failure(&error),
    }
}

fn failure(error: &Error) -> Response {
    let status = match error {
        Error::NotFound(_) => StatusCode::NOT_FOUND,
        Error::Forward(_) => StatusCode::CONFLICT,
        Error::Config(_) => StatusCode::BAD_REQUEST,
        Error::Shutdown => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refuse(status, error)
}

fn refuse(status: StatusCode, error: impl ToString) -> Response {
    (status, Json(Refusal { error: error.to_string() })).into_response()
}
