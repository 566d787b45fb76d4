//! What would happen, worked out before anything does.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use tranship_core::MigrationId;
use tranship_core::container::{ContainerSpec, RestartPolicy};
use tranship_core::engine::CreateRequest;
use tranship_core::image::ImageTransfer;
use tranship_core::node::{ArrivalFacts, ContainerReport, Survey};

use crate::auto;
use crate::check;
use crate::elements::{self, ElementPlan, Target};
use crate::health;
use crate::images::{Choice, ImageWay};
use crate::options::{Hook, HookPlace, HookTime, ModeRequest, MoveOptions, OnSource};
use crate::order;

/// How a container moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It runs there before it stops here.
    Stateless,
    /// It stops here before it starts there.
    Cold,
    /// It is paused here before it starts there, afresh.
    Warm,
    /// It is paused here before its processes go on there, with what they have in memory.
    Live,
}

impl Mode {
    /// Whether the source stands still before the destination starts, so that its data is carried and never two run.
    #[must_use]
    pub fn is_stateful(self) -> bool {
        self != Self::Stateless
    }

    /// Whether the source is paused in the freeze, so that going back before the commit is no restart.
    #[must_use]
    pub fn pauses(self) -> bool {
        matches!(self, Self::Warm | Self::Live)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stateless => "stateless",
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::Live => "live",
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
    /// Bytes of volumes, layer and other elements, as far as the node could look.
    #[serde(default)]
    pub data_bytes: u64,
    /// The byte counts are exact, not the engine's estimate.
    pub exact: bool,
    /// Milliseconds until the hand-over, by the rough rates of `Rates`.
    pub total_ms: u64,
    /// Milliseconds during which nobody serves.
    pub downtime_ms: u64,
}

/// A command that will run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedHook {
    /// Which of the plan's containers.
    pub member: usize,
    /// The command.
    pub hook: Hook,
}

/// A container that moves along.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Its image and what travels of it.
    pub transfer: ImageTransfer,
    /// How its image gets there; in plans of earlier versions, as that of the container that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_way: Option<ImageWay>,
    /// How it is made at the destination.
    pub create: CreateRequest,
    /// The restart policy that it has, and gets back there.
    pub restart_policy: RestartPolicy,
    /// Milliseconds within which it must prove itself there.
    pub health_timeout_ms: u64,
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
    /// How the image gets there.
    #[serde(default)]
    pub image_way: ImageWay,
    /// How the container is made at the destination.
    pub create: CreateRequest,
    /// The restart policy that it has, and gets back there.
    pub restart_policy: RestartPolicy,
    /// Milliseconds within which it must prove itself there.
    pub health_timeout_ms: u64,
    /// Containers that move together with it, because they share its volumes; in the order in which they start.
    #[serde(default)]
    pub companions: Vec<Member>,
    /// Volumes, layers and other elements that come along, in the order in which they are made.
    #[serde(default)]
    pub elements: Vec<ElementPlan>,
    /// Dumps of memory follow each other, each with what was written since the one before, as far as the kernel tells.
    #[serde(default)]
    pub tracked_memory: bool,
    /// Commands of the user, each with the container that it belongs to.
    #[serde(default)]
    pub hooks: Vec<PlannedHook>,
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

    /// Why `auto` took the mode, if it chose between several that carry state.
    #[must_use]
    pub fn mode_reason(&self) -> Option<&str> {
        let reason = self.findings.iter().find(|f| f.code.starts_with("mode."));
        reason.map(|finding| finding.message.as_str())
    }

    /// The container as the source describes it.
    #[must_use]
    pub fn spec(&self) -> &ContainerSpec {
        &self.create.spec
    }

    /// The container that was asked for, then those that move along.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let mut members = vec![Member {
            transfer: self.transfer.clone(),
            image_way: Some(self.image_way.clone()),
            create: self.create.clone(),
            restart_policy: self.restart_policy.clone(),
            health_timeout_ms: self.health_timeout_ms,
        }];
        members.extend(self.companions.iter().cloned());
        members
    }

    /// Indexes of the members in the order in which they start. They stop in the opposite order.
    #[must_use]
    pub fn start_order(&self) -> Vec<usize> {
        let specs: Vec<&ContainerSpec> = std::iter::once(self.spec())
            .chain(self.companions.iter().map(|m| &m.create.spec))
            .collect();
        order::start_order(&specs)
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
    /// How fast files travel.
    pub data_bytes_per_second: u64,
    /// How many new entries are made.
    pub entries_per_second: u64,
    /// How many entries are looked at for a change.
    pub looks_per_second: u64,
    /// How fast memory is dumped, looked through and restored, one after the other.
    pub memory_bytes_per_second: u64,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            image_bytes_per_second: 100_000_000,
            fixed_ms: 1_500,
            switch_ms: 1_000,
            data_bytes_per_second: 200_000_000,
            entries_per_second: 20_000,
            looks_per_second: 200_000,
            memory_bytes_per_second: 600_000_000,
        }
    }
}

/// What is planned together: the containers as the source reports them, with the migration that each will be.
pub struct PlanInput<'a> {
    /// The source, as the user named it.
    pub source: &'a str,
    /// The destination, as the user named it.
    pub destination: &'a str,
    /// The migrations to be, each with the container asked for, and those that move along with it.
    pub containers: &'a [(MigrationId, Vec<ContainerReport>)],
    /// Facts about the source node.
    pub source_node: &'a tranship_core::node::NodeFacts,
    /// The destination's answer, arrivals in the order of the containers.
    pub survey: &'a Survey,
    /// What the user asked for.
    pub options: &'a MoveOptions,
    /// Why `auto` does not take live mode, whatever the facts are: what a try has shown.
    pub not_live: Option<&'a str>,
}

/// Plans the move of some containers. Never fails: what stands in the way is in the findings.
#[must_use]
pub fn plan(input: &PlanInput<'_>) -> Vec<Plan> {
    let mut first = 0;
    let mut plans: Vec<Plan> = Vec::new();
    for (id, reports) in input.containers {
        let arrivals = input.survey.arrivals.get(first..).unwrap_or_default();
        first += reports.len();
        plans.extend(plan_group(input, arrivals, id, reports));
    }
    check::between_plans(&mut plans);
    for plan in &mut plans {
        plan.findings.sort_by_key(|f| f.severity);
    }
    plans
}

/// Whether images are sent whole, also where they are there. With containerd's store that would only give the image a second, dangling
/// name, where all of it was seen to be there.
fn sends_whole_image(input: &PlanInput<'_>, arrivals: &[ArrivalFacts]) -> bool {
    let lacking = arrivals.is_empty() || arrivals.iter().any(|a| !a.image_held);
    input.options.sends_whole_image() && (lacking || !input.survey.node.engine.containerd_seen)
}

/// One migration. `None` where there is no container to plan for.
fn plan_group(
    input: &PlanInput<'_>,
    arrivals: &[ArrivalFacts],
    id: &MigrationId,
    reports: &[ContainerReport],
) -> Option<Plan> {
    let (mode, request) = auto::mode_of(input.options, reports);
    let group = group_in(input, arrivals, id, reports, (mode, request))?;
    if input.options.mode != ModeRequest::Auto || mode != Mode::Cold {
        return Some(group);
    }
    let live = group_in(input, arrivals, id, reports, (Mode::Live, ModeRequest::Live))?;
    Some(auto::choose(input, reports, group, live))
}

/// One migration in this mode. `None` where there is no container to plan for.
fn group_in(
    input: &PlanInput<'_>,
    arrivals: &[ArrivalFacts],
    id: &MigrationId,
    reports: &[ContainerReport],
    (mode, request): (Mode, ModeRequest),
) -> Option<Plan> {
    let options = MoveOptions {
        mode: request,
        whole_image: sends_whole_image(input, arrivals),
        ..input.options.clone()
    };
    let mut found = check::Findings(Vec::new());
    let planned = elements::plan_elements(
        reports,
        arrivals,
        &options,
        input.source_node,
        input.survey,
        &mut found,
    );
    let single = |index: usize, report: &ContainerReport| {
        let arrival = arrivals.get(index).cloned().unwrap_or_default();
        let mut plan = plan_one(input, mode, &arrival, id, report, options.whole_image);
        plan.create.carried = planned.carried.get(index).cloned().unwrap_or_default();
        plan.create.empty_volumes = planned.some_left || options.without_volumes;
        if index > 0 {
            // Another name is meant for the container that was asked for.
            plan.create.name.clone_from(&report.spec.name);
        }
        plan.options = options.clone();
        if index == 0 {
            plan.elements.clone_from(&planned.elements);
            plan.prediction.add_elements(&planned.elements, mode);
        }
        plan.findings = check::findings(&plan, report, &arrival, input.source_node, input.survey);
        let choice = Choice {
            options: &options,
            image: &report.spec.image,
            source: input.source_node,
            destination: &input.survey.node,
            held: arrival.image_held,
            skip: plan.transfer.skip_layers,
            bytes: plan.prediction.bytes.saturating_sub(plan.prediction.data_bytes),
        };
        plan.image_way = choice.way();
        let mut ways = check::Findings(Vec::new());
        choice.check(&plan.image_way, &mut ways);
        plan.findings.append(&mut ways.0);
        plan
    };
    let mut plans: Vec<Plan> = reports.iter().enumerate().map(|(i, r)| single(i, r)).collect();
    check::between_plans(&mut plans);
    let mut plans = plans.into_iter();
    let mut group = plans.next()?;
    group.options.mode = input.options.mode;
    check::connections(&mut found, &options);
    group.hooks = hooks_of(reports, &options, mode, &mut found);
    group.findings.append(&mut found.0);
    for companion in plans {
        for mut finding in companion.findings {
            finding.message = format!("{}: {}", companion.create.spec.name, finding.message);
            group.findings.push(finding);
        }
        group.prediction.bytes = group.prediction.bytes.saturating_add(companion.prediction.bytes);
        group.companions.push(Member {
            transfer: companion.transfer,
            image_way: Some(companion.image_way),
            create: companion.create,
            restart_policy: companion.restart_policy,
            health_timeout_ms: companion.health_timeout_ms,
        });
    }
    if group.options.on_source == OnSource::Keep && mode.is_stateful() {
        group.findings.push(Finding {
            code: "plan.keep".into(),
            severity: Severity::Conflict,
            message: "--on-source keep would leave two instances, which only stateless mode allows".into(),
            remedy: Some("use --mode stateless, or --on-source stop".into()),
        });
    }
    Some(group)
}

/// The user's hooks, for the container that was asked for, and those that the containers' labels name. A label's command
/// runs in its container only: whoever made the container must not get a shell on the host by it.
fn hooks_of(
    reports: &[ContainerReport],
    options: &MoveOptions,
    mode: Mode,
    found: &mut check::Findings,
) -> Vec<PlannedHook> {
    let mut hooks: Vec<PlannedHook> = Vec::new();
    let times = [
        HookTime::PreFreeze,
        HookTime::PostFreeze,
        HookTime::PostStart,
        HookTime::Thaw,
    ];
    for (member, report) in reports.iter().enumerate() {
        for when in times {
            let label = format!("tranship.hook.{when}");
            let Some(command) = report.spec.labels.get(&label) else {
                continue;
            };
            let timeout = report
                .spec
                .labels
                .get(&format!("{label}.timeout"))
                .and_then(|t| t.parse().ok())
                .unwrap_or(crate::options::default_hook_timeout());
            hooks.push(PlannedHook {
                member,
                hook: Hook {
                    when,
                    place: HookPlace::Container,
                    command: command.clone(),
                    timeout,
                },
            });
        }
    }
    hooks.extend(options.hooks.iter().map(|hook| PlannedHook {
        member: 0,
        hook: hook.clone(),
    }));
    for planned in &hooks {
        let hook = &planned.hook;
        if hook.when == HookTime::PostFreeze && hook.place == HookPlace::Container {
            found.conflict(
                "hook.frozen",
                format!(
                    "the post-freeze hook {:?} cannot run in a container that stands still",
                    hook.command
                ),
                "run it on the host, or before the freeze",
            );
        }
        if hook.when != HookTime::PostStart && !mode.is_stateful() {
            found.warning(
                "hook.stateless",
                format!(
                    "the {} hook {:?} does not run: in stateless mode nothing freezes",
                    hook.when, hook.command
                ),
                "",
            );
        }
    }
    hooks
}

impl Prediction {
    fn add_elements(&mut self, elements: &[ElementPlan], mode: Mode) {
        let rates = Rates::default();
        self.data_bytes = elements
            .iter()
            .filter(|e| e.copied)
            .filter_map(|e| e.size)
            .fold(0, |sum, size| sum.saturating_add(size.bytes));
        self.bytes = self.bytes.saturating_add(self.data_bytes);
        let entries: u64 = elements.iter().filter_map(|e| e.size).map(|s| s.entries).sum();
        let copy_ms = self.data_bytes.saturating_mul(1000) / rates.data_bytes_per_second
            + entries.saturating_mul(1000) / rates.entries_per_second;
        self.total_ms = self.total_ms.saturating_add(copy_ms);
        if mode.is_stateful() {
            // A look at every entry, and what was written meanwhile.
            self.downtime_ms = self
                .downtime_ms
                .saturating_add(entries.saturating_mul(1000) / rates.looks_per_second)
                .saturating_add(copy_ms / 50);
        }
        if mode == Mode::Live {
            let memory = elements
                .iter()
                .filter(|e| matches!(e.target, Target::Memory { .. }));
            let bytes = memory
                .filter_map(|e| e.size)
                .fold(0u64, |sum, s| sum.saturating_add(s.bytes));
            self.downtime_ms = self
                .downtime_ms
                .saturating_add(bytes.saturating_mul(1000) / rates.memory_bytes_per_second);
        }
    }
}

fn plan_one(
    input: &PlanInput<'_>,
    mode: Mode,
    arrival: &ArrivalFacts,
    id: &MigrationId,
    report: &ContainerReport,
    whole_image: bool,
) -> Plan {
    let spec = &report.spec;
    let options = input.options;
    let skip_layers = match (whole_image, arrival.image_held) {
        (true, _) => 0,
        (false, true) => spec.image.layers.len(),
        (false, false) => arrival.layers_held.min(spec.image.layers.len()),
    };
    let exact = !report.archive_bytes.is_empty();
    let whole = report.archive_bytes.first().copied().unwrap_or(spec.image.size);
    let bytes = if arrival.image_held && !whole_image {
        0
    } else {
        // Without exact sizes the share of the layers is the best guess there is.
        report.archive_bytes.get(skip_layers).copied().unwrap_or_else(|| {
            let layers = spec.image.layers.len().max(1) as u64;
            spec.image.size / layers * (layers - skip_layers as u64)
        })
    };
    let transfer = ImageTransfer {
        image: spec.image.clone(),
        tag: tag_of(spec),
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
        data_bytes: 0,
        exact,
        total_ms: rates
            .fixed_ms
            .saturating_add(transfer_ms)
            .saturating_add(health_ms),
        downtime_ms: if mode.is_stateful() { rates.switch_ms } else { 0 },
    };
    Plan {
        id: id.clone(),
        source: input.source.to_owned(),
        destination: input.destination.to_owned(),
        mode,
        options: options.clone(),
        transfer,
        image_way: ImageWay::default(),
        create,
        restart_policy: spec.restart_policy.clone(),
        health_timeout_ms,
        companions: Vec::new(),
        elements: Vec::new(),
        tracked_memory: mode == Mode::Live
            && options.memory_tracking.is_auto()
            && input.source_node.live.tracks_memory
            && input.survey.node.live.restores_tracked,
        hooks: Vec::new(),
        findings: Vec::new(),
        prediction,
    }
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
