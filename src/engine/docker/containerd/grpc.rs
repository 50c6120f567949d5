//! gRPC over a unix socket, as little of it as containerd needs: one question, one answer, one connection.
//!
//! A whole gRPC stack (tonic) would bring a second HTTP client and its features into every crate that we have.

use std::path::{Path, PathBuf};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;

/// Bytes before each message: a flag (compressed or not) and the length.
const PREFIX: usize = 5;

/// Longest answer that is taken.
const LONGEST: usize = 16 << 20;

/// `NOT_FOUND` in gRPC's list of codes.
const NOT_FOUND: u32 = 5;
/// `ALREADY_EXISTS`.
const ALREADY_EXISTS: u32 = 6;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    /// Nobody listens.
    #[error("connecting to {socket}")]
    Connect {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("asking containerd {method}")]
    Transport {
        /// What was asked.
        method: &'static str,
        /// Why.
        #[source]
        source: h2::Error,
    },
    /// It said no.
    #[error("containerd refuses {method}: {message} (code {code})")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// gRPC's code.
        code: u32,
        /// Its reason.
        message: String,
    },
    /// It said something else.
    #[error("containerd's answer to {method} has {problem}")]
    Answer {
        /// What was asked.
        method: &'static str,
        /// What is wrong with the answer.
        problem: String,
    },
}

impl GrpcError {
    /// True when the thing that was asked for is not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: NOT_FOUND, .. })
    }

    /// True when the thing that was to be made is there.
    pub(super) fn is_already_there(&self) -> bool {
        matches!(self, Self::Refused { code: ALREADY_EXISTS, .. })
    }
}

/// Asks `method` (`package.Service/Method`) in a containerd namespace.
pub(super) async fn ask<Q: Message, A: Message + Default>(
    socket: &Path,
    namespace: &str,
    method: &'static str,
    question: &Q,
) -> Result<A, GrpcError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| GrpcError::Connect { socket: socket.to_owned(), source })?;
    let broken = |source| GrpcError::Transport { method, source };
    let (client, connection) = h2::client::handshake(stream).await.map_err(broken)?;
    // Ends by itself when the client is dropped.
    tokio::spawn(connection);
    let (headers, body, trailers) =
        exchange(client, namespace, method, frame(question)).await.map_err(broken)?;
    let status = trailers.as_ref().filter(|trailers| trailers.contains_key(STATUS)).unwrap_or(&headers);
    let code = status.get(STATUS).and_then(|code| code.to_str().ok()?.parse().ok());
    let answer = |problem: &str| GrpcError::Answer { method, problem: problem.to_owned() };
    match code {
        Some(0) => {}
        Some(code) => {
            let message = status.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
            return Err(GrpcError::Refused { method, code, message: message.replace("%20", " ") });
        }
        None => return Err(answer("no status")),
    }
    let message = body.get(PREFIX..).ok_or_else(|| answer("no message"))?;
    A::decode(message).map_err(|error| answer(&error.to_string()))
}

const STATUS: &str = "grpc-status";

async fn exchange(
    client: SendRequest<Bytes>,
    namespace: &str,
    method: &'static str,
    question: Bytes,
) -> Result<(HeaderMap, BytesMut, Option<HeaderMap>), h2::Error> {
    let mut client = client.ready().await?;
    let request = Request::post(format!("http://localhost/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("containerd-namespace", namespace)
        .body(())
        .map_err(|_| h2::Error::from(h2::Reason::INTERNAL_ERROR))?;
    let (response, mut out) = client.send_request(request, false)?;
    out.send_data(question, true)?;
    let (head, mut stream) = response.await?.into_parts();
    let mut body = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        if body.len() + chunk.len() > LONGEST {
            return Err(h2::Reason::CANCEL.into());
        }
        body.extend_from_slice(&chunk);
    }
    let trailers = stream.trailers().await?;
    Ok((head.headers, body, trailers))
}

fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
}
