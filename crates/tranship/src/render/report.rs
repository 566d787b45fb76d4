//! What a migration was, for people: a summary and a timeline.

use tranship_agent::api::{MigrationView, Role};

use super::{bytes, duration_ms, table};
use crate::failure::one_line;
use crate::ui::{Style, Ui};

const BAR: usize = 24;

/// The summary of a migration that is over.
pub fn summary(ui: &Ui, view: &MigrationView) -> Vec<String> {
    let mut lines = Vec::new();
    let head = format!(
        "{}: {} → {}  {}",
        view.container, view.source, view.destination, view.status
    );
    let style = if view.fault.is_none() {
        Style::Good
    } else {
        Style::Bad
    };
    lines.push(ui.paint(style, &head));
    let downtime = match (view.downtime_ms, view.mode.as_str()) {
        (Some(ms), _) => duration_ms(ms),
        (None, _) => "none".to_owned(),
    };
    let whole = view.image_bytes + view.rounds.last().map_or(0, |r| r.bytes);
    let predicted = view
        .predicted_downtime_ms
        .map_or_else(String::new, |ms| format!(" (expected {})", duration_ms(ms)));
    let share = if whole > 0 {
        format!(
            "{} of {} ({:.1} %)",
            bytes(view.bytes_sent),
            bytes(whole),
            view.bytes_sent as f64 * 100.0 / whole as f64
        )
    } else {
        bytes(view.bytes_sent)
    };
    lines.push(format!(
        "  total {}, downtime {downtime}{predicted}, sent {share}",
        duration_ms(view.total_ms)
    ));
    lines.extend(timeline(view));
    lines.extend(rounds(view));
    if let Some(id) = &view.destination_container {
        let proof = if view.proved_healthy {
            "its health check passed"
        } else {
            "it stays up (no health check defined)"
        };
        lines.push(format!(
            "  runs there as {} ({proof})",
            id.get(..12).unwrap_or(id)
        ));
    }
    lines
}

/// What each round of copying found and sent.
fn rounds(view: &MigrationView) -> Vec<String> {
    let mut rows = Vec::new();
    for (index, round) in view.rounds.iter().enumerate() {
        let name = if round.frozen {
            "  frozen".to_owned()
        } else {
            format!("  round {}", index + 1)
        };
        rows.push(vec![
            name,
            format!("{} of {} entries differ", round.changed_entries, round.entries),
            format!("{} new", bytes(round.literal_bytes)),
            format!("{} sent", bytes(round.wire_bytes)),
            duration_ms(round.took_ms),
        ]);
    }
    table(&rows)
}

/// Where the time went, one line a phase.
pub fn timeline(view: &MigrationView) -> Vec<String> {
    let total = view
        .phases
        .iter()
        .map(|p| p.begun_ms + p.took_ms)
        .max()
        .unwrap_or(0)
        .max(1);
    let rows: Vec<Vec<String>> = view
        .phases
        .iter()
        .map(|p| {
            let from = usize::try_from(p.begun_ms * BAR as u64 / total)
                .unwrap_or(0)
                .min(BAR - 1);
            let length = usize::try_from(p.took_ms * BAR as u64 / total)
                .unwrap_or(0)
                .clamp(1, BAR - from);
            let bar = format!(
                "{}{}{}",
                "·".repeat(from),
                "█".repeat(length),
                "·".repeat(BAR - from - length)
            );
            let moved = if p.bytes > 0 {
                bytes(p.bytes)
            } else {
                String::new()
            };
            vec![
                format!("  {}", p.phase.label()),
                bar,
                duration_ms(p.took_ms),
                moved,
            ]
        })
        .collect();
    table(&rows)
}

/// One migration in detail, as one of its nodes sees it.
pub fn detail(ui: &Ui, node: &str, view: &MigrationView) -> Vec<String> {
    let role = match view.role {
        Role::Source => "source",
        Role::Destination => "destination",
    };
    let mut rows = vec![
        vec![format!("  {role}"), node.to_owned()],
        vec!["  status".into(), view.status.clone()],
    ];
    if let Some(state) = view.arrival {
        rows.push(vec!["  holds".into(), arrival_words(state).to_owned()]);
    }
    if view.role == Role::Source {
        rows.push(vec!["  mode".into(), view.mode.clone()]);
        if view.total_ms > 0 {
            rows.push(vec!["  took".into(), duration_ms(view.total_ms)]);
        }
        rows.push(vec![
            "  sent".into(),
            format!(
                "{} of {}",
                bytes(view.bytes_sent),
                bytes(view.image_bytes + view.rounds.last().map_or(0, |r| r.bytes))
            ),
        ]);
    }
    if let Some(fault) = &view.fault {
        rows.push(vec![
            "  failure".into(),
            format!("[{}] {}", fault.code, one_line(&fault.to_string())),
        ]);
        if let Some(hint) = &fault.hint {
            rows.push(vec!["  hint".into(), one_line(hint)]);
        }
    }
    for left in &view.left_behind {
        rows.push(vec!["  left behind".into(), one_line(left)]);
    }
    let mut lines = vec![ui.paint(Style::Bold, &format!("{} {}", view.id, view.container))];
    lines.extend(table(&rows));
    lines.extend(timeline(view));
    lines.extend(rounds(view));
    lines
}

fn arrival_words(state: tranship_migrate::destination::ArrivalState) -> &'static str {
    use tranship_migrate::destination::ArrivalState as S;
    match state {
        S::Receiving => "things arrive; nothing runs here",
        S::Prepared => "everything is here; nothing runs here",
        S::Started => "the container was told to start here; the source has not handed over yet",
        S::Adopted => "the container belongs here",
        S::Discarding => "it is being taken away, and never runs here again",
        S::Discarded => "everything was undone; nothing runs here",
    }
}
