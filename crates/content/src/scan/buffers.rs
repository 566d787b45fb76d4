//! Large buffers that are used again: getting them from the kernel, page by page, costs as much as hashing what is read into them.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers that nobody uses.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

/// Buffers are made as long as a multiple of this, in bytes, so that one that was used for a segment does for the next.
const STEP: usize = 4 << 20;
/// Buffers that are kept, at most.
const KEPT: usize = 8;

/// A buffer in use. It goes back when the last slice of it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    used: usize,
    home: Arc<Buffers>,
}

impl Buffers {
    /// A buffer of this many bytes, whatever they are.
    pub(crate) fn take(self: &Arc<Self>, length: usize) -> Buffer {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = free.pop().unwrap_or_default();
        drop(free);
        if bytes.len() < length {
            // Zeros of a new allocation cost nothing until they are used.
            bytes = vec![0; length.next_multiple_of(STEP)];
        }
        Buffer {
            bytes,
            used: length,
            home: Arc::clone(self),
        }
    }
}

impl Buffer {
    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// All of it, for writing.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.used]
    }

    /// For slices that go their own ways.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.home.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}
