//! Least progress of answers: whoever takes a byte a second holds no connection for ever.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How an answer comes forward.
#[derive(Debug, Default)]
pub(super) struct Pace {
    sent: AtomicU64,
    waits: AtomicBool,
}

impl Pace {
    /// Done when something has waited to be sent for `patience` and fewer than `least` bytes went meanwhile.
    pub(super) async fn stalled(&self, patience: Duration, least: u64) {
        loop {
            let (waited, before) = self.read();
            tokio::time::sleep(patience).await;
            let (waits, sent) = self.read();
            if waited && waits && sent - before < least {
                return;
            }
        }
    }

    fn read(&self) -> (bool, u64) {
        (self.waits.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.sent.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        self.waits.store(written.is_pending(), Ordering::Relaxed);
        written
    }
}

/// A connection whose pace is noted.
#[derive(Debug)]
pub(super) struct Paced {
    pub(super) stream: TcpStream,
    pub(super) pace: Arc<Pace>,
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.pace.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.pace.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    /// Is a client that reads `piece` bytes at a time, with a pause behind each, given up within ten times the patience?
    async fn is_given_up(piece: usize, pause: Duration) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let pace = Arc::new(Pace::default());
        let mut paced = Paced { stream, pace: pace.clone() };
        let write = async { while paced.write_all(&[7; 65536]).await.is_ok() {} };
        let read = async {
            let mut into = vec![0; piece];
            while client.read_exact(&mut into).await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            () = pace.stalled(PATIENCE, 65536) => true,
            () = tokio::time::sleep(10 * PATIENCE) => false,
            () = async { tokio::join!(write, read); } => unreachable!("both go on for ever"),
        }
    }

    #[tokio::test]
    async fn a_byte_at_a_time_is_given_up_and_a_reader_is_not() {
        assert!(is_given_up(1, Duration::from_millis(20)).await);
        assert!(!is_given_up(1 << 20, Duration::from_millis(1)).await);
    }
}
