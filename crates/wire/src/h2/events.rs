//! Server-sent events with JSON in them.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tranship_core::Fault;

use super::body::{ByteStream, Place, parse};
use crate::error::WireError;

/// The longest event that is accepted.
const LONGEST: usize = 1 << 20;
/// The name of an event that is a [`Fault`] and ends the stream.
const FAULT: &str = "fault";

/// Events as they come in. A fault sent by the other end is the last item.
#[derive(Debug)]
pub struct Events<T> {
    bytes: ByteStream,
    place: Place,
    parser: Parser,
    ended: bool,
    // The events are made on the way out; none is held.
    kind: PhantomData<fn() -> T>,
}

impl<T> Events<T> {
    pub(super) fn new(bytes: ByteStream, place: Place) -> Self {
        Self {
            bytes,
            place,
            parser: Parser::default(),
            ended: false,
            kind: PhantomData,
        }
    }
}

impl<T: DeserializeOwned> Stream for Events<T> {
    type Item = Result<T, WireError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = loop {
            if let Some(raw) = self.parser.ready.pop_front() {
                break match raw.name.as_str() {
                    FAULT => match parse::<Fault>(raw.data.as_bytes(), &self.place) {
                        Ok(fault) => Some(Err(WireError::Remote(Box::new(fault)))),
                        Err(error) => Some(Err(error)),
                    },
                    _ => Some(parse(raw.data.as_bytes(), &self.place)),
                };
            }
            match ready!(self.bytes.poll_next_unpin(cx)) {
                None => break None,
                Some(Err(error)) => break Some(Err(error)),
                Some(Ok(bytes)) => {
                    if !self.parser.feed(&bytes) {
                        let what = self.place.what.clone();
                        break Some(Err(WireError::TooLarge { what, limit: LONGEST }));
                    }
                }
            }
        };
        self.ended = !matches!(item, Some(Ok(_)));
        Poll::Ready(item)
    }
}

/// One event in the form that goes over the wire.
pub(super) fn write<T: Serialize>(event: Result<&T, &Fault>) -> Result<Bytes, serde_json::Error> {
    let text = match event {
        Ok(event) => format!("data: {}\n\n", serde_json::to_string(event)?),
        Err(fault) => format!("event: {FAULT}\ndata: {}\n\n", serde_json::to_string(fault)?),
    };
    Ok(text.into())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Raw {
    name: String,
    data: String,
}

#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    event: Raw,
    has_data: bool,
    ready: VecDeque<Raw>,
}

impl Parser {
    /// Takes in more bytes; `false` once an event has become too long.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        let mut lines = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = lines.next() {
            if self.line.len() + self.event.data.len() + piece.len() > LONGEST {
                return false;
            }
            self.line.extend_from_slice(piece);
            if lines.peek().is_some() {
                let line = std::mem::take(&mut self.line);
                self.end_line(String::from_utf8_lossy(&line).trim_end_matches('\r'));
            }
        }
        true
    }

    fn end_line(&mut self, line: &str) {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                self.ready.push_back(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            // A comment, or a field that has no meaning here.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(name: &str, data: &str) -> Raw {
        Raw {
            name: name.into(),
            data: data.into(),
        }
    }

    #[test]
    fn events_are_found_wherever_the_bytes_are_cut() {
        let text =
            ": comment\ndata: 1\n\ndata: a\r\ndata: b\r\n\r\nevent: fault\ndata:{}\n\nid: 3\n\ndata: cut";
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            assert!(parser.feed(&text.as_bytes()[..cut]));
            assert!(parser.feed(&text.as_bytes()[cut..]));
            assert_eq!(parser.ready, [raw("", "1"), raw("", "a\nb"), raw("fault", "{}")]);
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 16];
        assert!((0..100).any(|_| !parser.feed(&piece)));
    }
}
