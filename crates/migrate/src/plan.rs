//! What would happen, worked out before anything does.

use std::fmt;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tranship_core::MigrationId;
use tranship_core::container::{ContainerSpec, RestartPolicy};
use tranship_core::engine::CreateRequest;
use tranship_core::image::ImageTransfer;
use tranship_core::node::{ContainerReport, Survey};

use crate::check;
use crate::health;
use crate::options::{ModeRequest, MoveOptions, OnSource};

/// How a container moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It runs there before it stops here.
    Stateless,
    /// It stops here before it starts there.
    Cold,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stateless => "stateless",
            Self::Cold => "cold",
        })
    }
}

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The migration does not begin.
    Conflict,
    /// It does, but a person should know.
    Warning,
    /// Good to know.
    Note,
}

/// Something that the comparison of both sides brought up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable code such as `port.taken`.
    pub code: String,
    /// How much it weighs.
    pub severity: Severity,
    /// What was found.
    pub message: String,
    /// What can be done about it.
    pub remedy: Option<String>,
}

/// What the plan expects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// Bytes that will travel.
    pub bytes: u64,
    /// Bytes of the whole image, as if nothing were there.
    pub image_bytes: u64,
    /// The byte counts are exact, not the engine's estimate.
    pub exact: bool,
    /// Milliseconds until the hand-over, by the rough rates of `Rates`.
    pub total_ms: u64,
    /// Milliseconds during which nobody serves.
    pub downtime_ms: u64,
}

/// One container's way from one node to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The migration.
    pub id: MigrationId,
    /// The source, as the user named it.
    pub source: String,
    /// The destination, as the user named it.
    pub destination: String,
    /// How it moves.
    pub mode: Mode,
    /// The options it was made with.
    pub options: MoveOptions,
    /// The image and what travels of it.
    pub transfer: ImageTransfer,
    /// How the container is made at the destination.
    pub create: CreateRequest,
    /// The restart policy that it has, and gets back there.
    pub restart_policy: RestartPolicy,
    /// Milliseconds within which it must prove itself there.
    pub health_timeout_ms: u64,
    /// Everything that the comparison brought up, worst first.
    pub findings: Vec<Finding>,
    /// What is expected.
    pub prediction: Prediction,
}

impl Plan {
    /// The findings that keep the migration from beginning.
    pub fn conflicts(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.severity == Severity::Conflict)
    }

    /// The container as the source describes it.
    #[must_use]
    pub fn spec(&self) -> &ContainerSpec {
        &self.create.spec
    }
}

/// Rough rates for predictions, in bytes per second and milliseconds. They are estimates to give a person an idea; what
/// a run really took is in its report.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// How fast an image travels and is taken in.
    pub image_bytes_per_second: u64,
    /// What a container's creation, start and proof cost beside its health check.
    pub fixed_ms: u64,
    /// What stopping and starting cost at least.
    pub switch_ms: u64,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            image_bytes_per_second: 100_000_000,
            fixed_ms: 1_500,
            switch_ms: 1_000,
        }
    }
}

/// What is planned together: the containers as the source reports them, with the migration that each will be.
pub struct PlanInput<'a> {
    /// The source, as the user named it.
    pub source: &'a str,
    /// The destination, as the user named it.
    pub destination: &'a str,
    /// The containers, each with the id that its migration gets.
    pub containers: &'a [(MigrationId, ContainerReport)],
    /// Facts about the source node.
    pub source_node: &'a tranship_core::node::NodeFacts,
    /// The destination's answer, arrivals in the order of the containers.
    pub survey: &'a Survey,
    /// What the user asked for.
    pub options: &'a MoveOptions,
}

/// Plans the move of some containers. Never fails: what stands in the way is in the findings.
#[must_use]
pub fn plan(input: &PlanInput<'_>) -> Vec<Plan> {
    let mut plans: Vec<Plan> = input
        .containers
        .iter()
        .enumerate()
        .map(|(index, (id, report))| plan_one(input, index, id, report))
        .collect();
    check::between_plans(&mut plans);
    for plan in &mut plans {
        plan.findings.sort_by_key(|f| f.severity);
    }
    plans
}

fn plan_one(input: &PlanInput<'_>, index: usize, id: &MigrationId, report: &ContainerReport) -> Plan {
    let spec = &report.spec;
    let options = input.options;
    let arrival = input.survey.arrivals.get(index).cloned().unwrap_or_default();
    let mode = match options.mode {
        ModeRequest::Cold => Mode::Cold,
        ModeRequest::Auto | ModeRequest::Stateless => Mode::Stateless,
    };

    let skip_layers = match (options.whole_image, arrival.image_held) {
        (true, _) => 0,
        (false, true) => spec.image.layers.len(),
        (false, false) => arrival.layers_held.min(spec.image.layers.len()),
    };
    let exact = !report.archive_bytes.is_empty();
    let whole = report.archive_bytes.first().copied().unwrap_or(spec.image.size);
    let bytes = if arrival.image_held && !options.whole_image {
        0
    } else {
        // Without exact sizes the share of the layers is the best guess there is.
        report.archive_bytes.get(skip_layers).copied().unwrap_or_else(|| {
            let layers = spec.image.layers.len().max(1) as u64;
            spec.image.size / layers * (layers - skip_layers as u64)
        })
    };
    let tag = tag_of(spec);
    let transfer = ImageTransfer {
        image: spec.image.clone(),
        tag,
        skip_layers,
        bytes: exact.then_some(bytes),
    };

    let create = CreateRequest {
        spec: spec.clone(),
        name: options.rename.clone().unwrap_or_else(|| spec.name.clone()),
        publish: options.publish.clone(),
        restart_policy: RestartPolicy::never(),
        empty_volumes: options.without_volumes,
        carried: BTreeMap::new(),
        drop_fixed_addresses: options.new_subnets,
    };
    let health_timeout_ms = options
        .health_timeout_ms
        .unwrap_or_else(|| health::default_timeout_ms(spec));
    let rates = Rates::default();
    let transfer_ms = bytes.saturating_mul(1000) / rates.image_bytes_per_second;
    let health_ms = spec
        .health_check
        .map_or(0, |h| h.interval_ms.min(health_timeout_ms));
    let prediction = Prediction {
        bytes,
        image_bytes: whole,
        exact,
        total_ms: rates
            .fixed_ms
            .saturating_add(transfer_ms)
            .saturating_add(health_ms),
        downtime_ms: match mode {
            Mode::Stateless => 0,
            Mode::Cold => rates.switch_ms,
        },
    };

    let mut plan = Plan {
        id: id.clone(),
        source: input.source.to_owned(),
        destination: input.destination.to_owned(),
        mode,
        options: options.clone(),
        transfer,
        create,
        restart_policy: spec.restart_policy.clone(),
        health_timeout_ms,
        findings: Vec::new(),
        prediction,
    };
    plan.findings = check::findings(&plan, report, &arrival, input.source_node, input.survey);
    if plan.options.on_source == OnSource::Keep && plan.mode != Mode::Stateless {
        plan.findings.push(Finding {
            code: "plan.keep".into(),
            severity: Severity::Conflict,
            message: "--on-source keep would leave two instances, which only stateless mode allows".into(),
            remedy: Some("use --mode stateless, or --on-source stop".into()),
        });
    }
    plan
}

/// The tag that travels: the reference that the container was made from, if it is a tag of its image still. A reference
/// that is an id or a digest, or a tag that points elsewhere by now, makes no tag.
fn tag_of(spec: &ContainerSpec) -> Option<String> {
    let reference = &spec.image_reference;
    if reference.contains('@') || reference.starts_with("sha256:") {
        return None;
    }
    let last = reference.rsplit('/').next().unwrap_or(reference);
    let full = if last.contains(':') {
        reference.clone()
    } else {
        format!("{reference}:latest")
    };
    spec.image
        .tags
        .iter()
        .find(|tag| normal(tag) == normal(&full))
        .cloned()
}

/// Docker shortens `docker.io/library/x:y` to `x:y`; Podman does not.
fn normal(tag: &str) -> &str {
    let tag = tag.strip_prefix("docker.io/").unwrap_or(tag);
    tag.strip_prefix("library/").unwrap_or(tag)
}
