//! The service: it says hello to whom the policies let through.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::{Bytes as Body, Incoming};
use hyper::header::{RETRY_AFTER, USER_AGENT};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::policies::{HttpRequest, Policy, ask};

/// Serves connections until the listener fails.
pub async fn serve(listener: TcpListener, policy: Policy) -> io::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        let policy = policy.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&policy, &request, peer);
                async { Ok::<_, Infallible>(response) }
            });
            // A client that goes away is no concern of ours.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Asks the policies, which takes some tens of nanoseconds and never blocks, and answers.
fn answer(policy: &Policy, request: &Request<Incoming>, peer: SocketAddr) -> Response<Full<Body>> {
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let agent = request.headers().get(USER_AGENT).map_or(&b""[..], |v| v.as_bytes());
    let mut hasher = DefaultHasher::new();
    peer.ip().hash(&mut hasher);
    let method = match *request.method() {
        Method::GET => 1,
        Method::HEAD => 2,
        Method::POST => 3,
        _ => 0,
    };
    let mut asked = HttpRequest {
        path: path.into(),
        user_agent: agent.into(),
        client: hasher.finish(),
        method,
        status: 200,
        retry_after: 0,
    };
    let status = match ask(policy, &mut asked) {
        Ok(None) => StatusCode::OK,
        Ok(Some(status)) => StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let text = if status == StatusCode::OK { "hello\n" } else { "no\n" };
    let mut response = Response::new(Full::new(Body::from(text)));
    *response.status_mut() = status;
    if asked.retry_after != 0 {
        response.headers_mut().insert(RETRY_AFTER, asked.retry_after.into());
    }
    response
}
