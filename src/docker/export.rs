//! `docker save` as a stream that a thread of ours reads.

use std::io::{self, Read};
use std::thread;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::Docker;
use crate::model::Digest;

/// Chunks that may wait between the socket and the reader.
const CHUNKS_WAITING: usize = 16;

impl Docker {
    /// Runs `read` on the archive of the image; gives what came of it, and how the transfer ended.
    pub(super) fn export<T: Send>(
        &self,
        id: Digest,
        read: impl FnOnce(ChunkReader) -> T + Send,
    ) -> (thread::Result<T>, Result<(), bollard::errors::Error>) {
        let (sender, receiver) = mpsc::channel::<Bytes>(CHUNKS_WAITING);
        thread::scope(|scope| {
            let reader = scope.spawn(move || read(ChunkReader { receiver, chunk: Bytes::new() }));
            let sent = self.runtime.block_on(async {
                let id = id.to_string();
                let mut chunks = std::pin::pin!(self.client.export_image(&id));
                while let Some(chunk) = chunks.next().await {
                    // A reader that has seen enough hangs up.
                    if sender.send(chunk?).await.is_err() {
                        break;
                    }
                }
                drop(sender);
                Ok(())
            });
            (reader.join(), sent)
        })
    }
}

/// Makes a reader of the chunks that arrive from the socket.
pub(super) struct ChunkReader {
    receiver: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}
