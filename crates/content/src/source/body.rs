//! Operations on their way into frames.

use bytes::Bytes;

use super::wire::{Frame, Queue};
use crate::entry::{ChunkId, Entry};
use crate::frame::FrameError;
use crate::message::{DELTA, Operation, put_data_head, put_whole};

/// A frame is sent when it has this many bytes.
const ENOUGH: usize = 512 << 10;
/// A frame is sent before it would have more than this.
const MOST: usize = 3 << 20;
/// Chunks from this many bytes on go to the frame from where they are.
const APART: usize = 16 << 10;

/// The frame that is being filled.
#[derive(Default)]
pub(super) struct Body {
    parts: Vec<Bytes>,
    open: Vec<u8>,
    length: usize,
}

impl Body {
    /// Adds an operation.
    pub(super) fn put(&mut self, operation: &Operation, queue: &Queue) -> Result<(), FrameError> {
        if let Operation::Data { id, bytes } = operation
            && bytes.len() >= APART
        {
            self.make_room(bytes.len(), queue)?;
            put_data_head(&mut self.open, id, bytes.len());
            self.seal();
            self.length += bytes.len();
            self.parts.push(bytes.clone());
            return self.send_if_enough(queue);
        }
        let before = self.open.len();
        operation.put(&mut self.open);
        let added = self.open.len() - before;
        if before + self.length > 0 && self.length + self.open.len() > MOST {
            // It goes to a frame of its own.
            let own = self.open.split_off(before);
            self.send(queue)?;
            self.open = own;
        }
        debug_assert!(added > 0);
        self.send_if_enough(queue)
    }

    /// Adds a small file.
    pub(super) fn whole(
        &mut self,
        entry: &Entry,
        id: &ChunkId,
        bytes: &[u8],
        queue: &Queue,
    ) -> Result<(), FrameError> {
        self.make_room(bytes.len(), queue)?;
        put_whole(&mut self.open, entry, id, bytes);
        self.send_if_enough(queue)
    }

    /// Sends what there is.
    pub(super) fn send(&mut self, queue: &Queue) -> Result<(), FrameError> {
        self.seal();
        if self.parts.is_empty() {
            return Ok(());
        }
        self.length = 0;
        queue.push(Frame {
            kind: DELTA,
            parts: std::mem::take(&mut self.parts),
        })
    }

    fn make_room(&mut self, more: usize, queue: &Queue) -> Result<(), FrameError> {
        if self.length + self.open.len() > 0 && self.length + self.open.len() + more > MOST {
            self.send(queue)?;
        }
        Ok(())
    }

    fn send_if_enough(&mut self, queue: &Queue) -> Result<(), FrameError> {
        if self.length + self.open.len() >= ENOUGH {
            self.send(queue)?;
        }
        Ok(())
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            let open = std::mem::take(&mut self.open);
            self.length += open.len();
            self.parts.push(open.into());
        }
        if self.open.capacity() == 0 {
            self.open.reserve(4096);
        }
    }
}
