//! Frames on a byte stream: `length u32 LE | kind u8 | flags u8 | body`, the length counting what follows it. With flag 1 the
//! body is `plain length u32 LE | one zstd frame`.
//!
//! What a peer sends is hostile: no more than [`MAX_FRAME`] is ever kept, the window of zstd is at most 8 MiB, and a frame
//! has to give exactly as many bytes as it declares. How long a peer may take is for whoever owns the stream to say.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tranship_core::fault::{Explain, FaultKind};

use crate::encoding::DecodeError;
use crate::message::{MAX_FRAME, Message};

/// Bytes before the body.
const HEAD: usize = 6;
/// Flag: the body is compressed.
const ZSTD: u8 = 1;
/// Base-2 logarithm of the largest window that is accepted.
const WINDOW_LOG: u32 = 23;
/// Bytes that are asked for at once: what a declared length makes us keep grows with what arrives.
const STEP: usize = 1 << 20;

/// What can go wrong with a conversation.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream broke or ended.
    #[error("the connection to the other side broke")]
    Stream(#[source] io::Error),
    /// It ended between frames, before the conversation did.
    #[error("the other side closed the connection before the round was over")]
    Closed,
    /// A frame whose length, flags or compression are wrong.
    #[error("the other side sent a frame that {0}")]
    Frame(&'static str),
    /// A frame whose body is not what its kind says.
    #[error("the other side sent a message that is not valid: {0}")]
    Message(#[source] DecodeError),
}

impl Explain for FrameError {
    fn code(&self) -> &'static str {
        match self {
            Self::Stream(_) | Self::Closed => "content.link-lost",
            Self::Frame(_) => "content.bad-frame",
            Self::Message(DecodeError::Path { .. }) => "content.bad-path",
            Self::Message(_) => "content.bad-message",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Stream(_) | Self::Closed => {
                Some("run it again: what arrived is kept and not sent a second time".into())
            }
            Self::Frame(_) | Self::Message(_) => None,
        }
    }

    fn kind(&self) -> FaultKind {
        FaultKind::Environment
    }
}

/// Reads frames.
pub struct FrameReader<R> {
    stream: R,
    taken: u64,
    inflate: Option<zstd::bulk::Decompressor<'static>>,
}

impl<R: Read> FrameReader<R> {
    /// Reads frames from `stream`, which need not be buffered: two reads make a frame.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            taken: 0,
            inflate: None,
        }
    }

    /// Bytes taken from the stream so far.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The next message that is not `Alive`.
    ///
    /// # Errors
    /// The stream broke, or what came is not a message.
    pub fn message(&mut self) -> Result<Message, FrameError> {
        loop {
            let (kind, body) = self.frame()?;
            match Message::decode(kind, body).map_err(FrameError::Message)? {
                Message::Alive => {}
                message => return Ok(message),
            }
        }
    }

    /// The next frame: its kind and plain body.
    ///
    /// # Errors
    /// The stream broke, or what came is not a frame.
    pub fn frame(&mut self) -> Result<(u8, Bytes), FrameError> {
        let mut head = [0; HEAD];
        self.fill(&mut head, true)?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let (kind, flags) = (head[4], head[5]);
        let compressed = match flags {
            0 => false,
            ZSTD => true,
            _ => return Err(FrameError::Frame("has unknown flags")),
        };
        let Some(length) = length.checked_sub(2) else {
            return Err(FrameError::Frame("is too short"));
        };
        if length > MAX_FRAME + if compressed { 4 } else { 0 } {
            return Err(FrameError::Frame("is too long"));
        }
        let mut body = Vec::new();
        while body.len() < length {
            let at = body.len();
            // Doubling: never more than twice of what has arrived.
            let next = length.min((at * 2).max(STEP));
            body.reserve_exact(next - at);
            body.resize(next, 0);
            self.fill(&mut body[at..], false)?;
        }
        if compressed {
            body = self.inflate(&body)?;
        }
        Ok((kind, Bytes::from(body)))
    }

    fn fill(&mut self, buffer: &mut [u8], first: bool) -> Result<(), FrameError> {
        let mut at = 0;
        while at < buffer.len() {
            match self.stream.read(&mut buffer[at..]) {
                Ok(0) if first && at == 0 => return Err(FrameError::Closed),
                Ok(0) => return Err(FrameError::Stream(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => at += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(FrameError::Stream(error)),
            }
        }
        self.taken += buffer.len() as u64;
        Ok(())
    }

    fn inflate(&mut self, body: &[u8]) -> Result<Vec<u8>, FrameError> {
        let Some((head, packed)) = body.split_first_chunk::<4>() else {
            return Err(FrameError::Frame("is too short"));
        };
        let plain = u32::from_le_bytes(*head) as usize;
        if plain > MAX_FRAME {
            return Err(FrameError::Frame("would be too long when decompressed"));
        }
        let inflate = match &mut self.inflate {
            Some(inflate) => inflate,
            none => {
                let mut new = zstd::bulk::Decompressor::new().map_err(FrameError::Stream)?;
                new.window_log_max(WINDOW_LOG).map_err(FrameError::Stream)?;
                none.insert(new)
            }
        };
        let out = inflate
            .decompress(packed, plain)
            .map_err(|_| FrameError::Frame("does not decompress to what it declares"))?;
        if out.len() != plain {
            return Err(FrameError::Frame("does not decompress to what it declares"));
        }
        Ok(out)
    }
}

/// Writes frames.
pub struct FrameWriter<W> {
    stream: W,
    written: u64,
    deflate: Option<(i32, zstd::bulk::Compressor<'static>)>,
    packed: Vec<u8>,
}

impl<W: Write> FrameWriter<W> {
    /// Writes frames to `stream`, which need not be buffered.
    pub fn new(stream: W) -> Self {
        Self {
            stream,
            written: 0,
            deflate: None,
            packed: Vec::new(),
        }
    }

    /// Bytes given to the stream so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes a message as it is and flushes.
    ///
    /// # Errors
    /// The stream broke.
    pub fn message(&mut self, message: &Message) -> Result<(), FrameError> {
        self.parts(message.kind(), &[&message.body()])?;
        self.flush()
    }

    /// Writes a frame whose body is these parts one after the other, uncompressed, without copying them together.
    ///
    /// # Errors
    /// The stream broke, or the parts are more than [`MAX_FRAME`].
    pub fn parts(&mut self, kind: u8, parts: &[&[u8]]) -> Result<(), FrameError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.head(kind, 0, length, MAX_FRAME)?;
        for part in parts {
            self.put(part)?;
        }
        Ok(())
    }

    /// Writes a frame compressed at a zstd level, or as it is if that is hardly longer. Returns the bytes on the stream.
    ///
    /// # Errors
    /// The stream broke, or the body is more than [`MAX_FRAME`].
    pub fn compressed(&mut self, kind: u8, body: &[u8], level: i32) -> Result<u64, FrameError> {
        let before = self.written;
        let mut packed = std::mem::take(&mut self.packed);
        packed.clear();
        packed.reserve(zstd::zstd_safe::compress_bound(body.len()));
        let deflate = match &mut self.deflate {
            Some((at, deflate)) if *at == level => deflate,
            other => {
                let new = zstd::bulk::Compressor::new(level).map_err(FrameError::Stream)?;
                &mut other.insert((level, new)).1
            }
        };
        let length = deflate
            .compress_to_buffer(body, &mut packed)
            .map_err(FrameError::Stream)?;
        if length + 4 < body.len() - body.len() / 32 {
            self.head(kind, ZSTD, length + 4, MAX_FRAME + 4)?;
            self.put(&(body.len() as u32).to_le_bytes())?;
            self.put(&packed)?;
        } else {
            self.parts(kind, &[body])?;
        }
        self.packed = packed;
        Ok(self.written - before)
    }

    /// Flushes the stream.
    ///
    /// # Errors
    /// The stream broke.
    pub fn flush(&mut self) -> Result<(), FrameError> {
        self.stream.flush().map_err(FrameError::Stream)
    }

    fn head(&mut self, kind: u8, flags: u8, length: usize, most: usize) -> Result<(), FrameError> {
        if length > most {
            return Err(FrameError::Frame("would be too long"));
        }
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&(length as u32 + 2).to_le_bytes());
        head[4] = kind;
        head[5] = flags;
        self.put(&head)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        self.stream.write_all(bytes).map_err(FrameError::Stream)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}
