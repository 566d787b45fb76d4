//! The events of one migration, kept so that a caller who comes late, or again, sees all of them in order.

use std::sync::Mutex;

use tokio::sync::watch;
use tranship_core::event::{Event, Reporter};

/// An append-only list of events that can be followed. Progress of one phase takes one place in it, so that a long
/// transfer does not grow it.
#[derive(Debug)]
pub struct EventLog {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Vec<Event>,
    /// Counts up with every change of the last place.
    revision: u64,
}

/// How far a follower has read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cursor {
    /// Events before this one were seen and cannot change any more.
    index: usize,
    revision: u64,
}

impl Default for EventLog {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl EventLog {
    /// What a follower has not seen yet; waits until there is something. `None` when the last event was seen.
    pub async fn next(&self, cursor: &mut Cursor) -> Option<Vec<Event>> {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(batch) = self.unseen(cursor) {
                return Some(batch);
            }
            if self.finished() {
                return None;
            }
            if changed.changed().await.is_err() {
                return None;
            }
        }
    }

    fn unseen(&self, cursor: &mut Cursor) -> Option<Vec<Event>> {
        let inner = self.inner.lock().ok()?;
        if inner.revision == cursor.revision {
            return None;
        }
        cursor.revision = inner.revision;
        let from = cursor.index.min(inner.events.len());
        let batch = inner.events.get(from..).unwrap_or_default().to_vec();
        // The last event may still be replaced by newer progress, and is then seen again.
        let last_is_final = !matches!(inner.events.last(), Some(Event::Progress { .. }));
        cursor.index = inner.events.len() - usize::from(!last_is_final && !inner.events.is_empty());
        Some(batch)
    }

    /// The most bytes that a progress report spoke of.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let Ok(inner) = self.inner.lock() else { return 0 };
        let moved = inner.events.iter().filter_map(|e| match e {
            Event::Progress { bytes, .. } => Some(*bytes),
            _ => None,
        });
        moved.max().unwrap_or(0)
    }

    fn finished(&self) -> bool {
        self.inner
            .lock()
            .is_ok_and(|inner| matches!(inner.events.last(), Some(Event::Finished { .. })))
    }
}

impl Reporter for EventLog {
    fn report(&self, event: Event) {
        let Ok(mut inner) = self.inner.lock() else { return };
        let replaces = match (inner.events.last(), &event) {
            (Some(Event::Progress { phase: last, .. }), Event::Progress { phase, .. }) => last == phase,
            _ => false,
        };
        if replaces {
            inner.events.pop();
        }
        inner.events.push(event);
        inner.revision += 1;
        let revision = inner.revision;
        drop(inner);
        self.changed.send_replace(revision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tranship_core::event::Phase;

    fn progress(bytes: u64) -> Event {
        Event::Progress {
            phase: Phase::Image,
            bytes,
            total: None,
        }
    }

    #[tokio::test]
    async fn a_late_follower_sees_everything_once_and_the_latest_progress() {
        let log = EventLog::default();
        log.report(Event::PhaseStarted { phase: Phase::Image });
        log.report(progress(1));
        let mut cursor = Cursor::default();
        assert_eq!(log.next(&mut cursor).await.unwrap().len(), 2);
        log.report(progress(2));
        log.report(progress(3));
        assert_eq!(log.next(&mut cursor).await.unwrap(), vec![progress(3)]);
        log.report(Event::Finished { fault: None });
        assert_eq!(
            log.next(&mut cursor).await.unwrap(),
            vec![progress(3), Event::Finished { fault: None }]
        );
        assert_eq!(log.next(&mut cursor).await, None);
        assert_eq!(
            log.next(&mut Cursor::default()).await.unwrap().len(),
            3,
            "and again from the beginning"
        );
    }
}
