//! DNS over a stream: each message behind its length, a big-endian `u16` (RFC 1035 §4.2.2, RFC 7766).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Resolver;
use crate::answer::Transport;

/// Queries of one connection that are looked up at once; further ones are not read meanwhile.
const MAX_PENDING: usize = 16;
/// How long the guest may be silent, or leave an answer unread (RFC 7766 §6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);

/// Serves one connection until the guest closes it, is silent for too long, or does not read. Answers come as
/// they are found (RFC 7766 §6.2.1.1), and those still owed when the guest has closed its side are sent.
pub(crate) async fn serve(resolver: &Resolver, stream: UnixStream) {
    let (mut from_guest, to_guest) = stream.into_split();
    let to_guest = Arc::new(Mutex::new(to_guest));
    let mut pending = JoinSet::new();
    loop {
        let query = {
            let next = timeout(IDLE, read_message(&mut from_guest));
            tokio::pin!(next);
            loop {
                tokio::select! {
                    query = &mut next, if pending.len() < MAX_PENDING => break query,
                    Some(answered) = pending.join_next() => if !matches!(answered, Ok(Ok(()))) { return },
                }
            }
        };
        let Ok(Ok(query)) = query else { break };
        let (resolver, to_guest) = (resolver.clone(), to_guest.clone());
        pending.spawn(async move {
            match resolver.answer(&query, Transport::Tcp).await {
                Some(answer) => timeout(IDLE, write_message(&mut *to_guest.lock().await, &answer)).await?,
                None => Ok(()),
            }
        });
    }
    while let Some(Ok(Ok(()))) = pending.join_next().await {}
}

/// Reads one message.
///
/// # Errors
/// As the stream gives them; its end is `UnexpectedEof`.
pub(crate) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut message = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes one message.
///
/// # Errors
/// As the stream gives them; `InvalidInput` for a message over 65,535 bytes.
pub(crate) async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // In one write: some peers read a length alone as a message of its own.
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
