//! Records as callers see them.

use tranship_migrate::Plan;
use tranship_migrate::destination::ArrivalState;
use tranship_migrate::record::{ArrivalRecord, DepartureRecord};

use crate::api::{MigrationView, Role};

pub(crate) fn departure_view(record: &DepartureRecord) -> MigrationView {
    MigrationView {
        status: record.state.label().to_owned(),
        departure: Some(record.state),
        total_ms: record.total_ms,
        downtime_ms: record.downtime_ms,
        bytes_sent: record.bytes_sent,
        rounds: record.rounds.clone(),
        predicted_downtime_ms: record.predicted_downtime_ms,
        phases: record.phases.clone(),
        destination_container: record.destination_container.clone(),
        proved_healthy: record.proved_healthy,
        fault: record.fault.clone(),
        ..bare_view(&record.plan, Role::Source, record.begun_at_ms)
    }
}

pub(crate) fn arrival_view(record: &ArrivalRecord) -> MigrationView {
    let status = match record.state {
        ArrivalState::Adopted => "complete",
        ArrivalState::Discarded => "failed (rolled back)",
        ArrivalState::Receiving
        | ArrivalState::Prepared
        | ArrivalState::Started
        | ArrivalState::Discarding => "in-progress",
    };
    MigrationView {
        status: status.to_owned(),
        arrival: Some(record.state),
        destination_container: record.containers.get(&0).map(ToString::to_string),
        left_behind: record.left_behind.clone(),
        ..bare_view(&record.plan, Role::Destination, record.begun_at_ms)
    }
}

fn bare_view(plan: &Plan, role: Role, begun_at_ms: u64) -> MigrationView {
    MigrationView {
        id: plan.id.clone(),
        role,
        container: plan.spec().name.clone(),
        source: plan.source.clone(),
        destination: plan.destination.clone(),
        mode: plan.mode.to_string(),
        mode_reason: plan.mode_reason().map(str::to_owned),
        status: String::new(),
        departure: None,
        arrival: None,
        begun_at_ms,
        total_ms: 0,
        downtime_ms: None,
        bytes_sent: 0,
        rounds: Vec::new(),
        predicted_downtime_ms: None,
        image_bytes: plan.prediction.image_bytes,
        phases: Vec::new(),
        destination_container: None,
        proved_healthy: false,
        fault: None,
        left_behind: Vec::new(),
    }
}
