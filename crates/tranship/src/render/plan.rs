//! A plan for people.

use tranship_core::storage::ElementAt;
use tranship_migrate::elements::{ElementPlan, Target};
use tranship_migrate::options::{HookPlace, OnSource};
use tranship_migrate::plan::{Mode, Plan, Severity};

use super::{bytes, duration_ms, table};
use crate::failure::one_line;
use crate::ui::{Style, Ui};

/// The lines that show a plan.
pub fn lines(ui: &Ui, plan: &Plan) -> Vec<String> {
    let spec = plan.spec();
    let mut lines = vec![ui.paint(
        Style::Bold,
        &format!("{}: {} → {}", spec.name, plan.source, plan.destination),
    )];
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |what: &str, value: String| rows.push(vec![format!("  {what}"), value]);
    row("mode", mode(plan));
    if let Some(why) = plan.mode_reason() {
        row("because", one_line(why));
    }
    let image = spec.image_reference.clone();
    let held = plan.transfer.skip_layers;
    let layers = spec.image.layers.len();
    row(
        "image",
        format!("{image} ({layers} layers, {held} already there)"),
    );
    row(
        "image by",
        format!(
            "{}: {}",
            plan.image_way.strategy,
            one_line(&plan.image_way.reason)
        ),
    );
    let about = if plan.prediction.exact { "" } else { "about " };
    let of = bytes(plan.prediction.image_bytes + plan.prediction.data_bytes);
    row(
        "to send",
        format!("{about}{} of {of}", bytes(plan.prediction.bytes)),
    );
    for element in &plan.elements {
        row(element.at.kind().to_string().as_str(), element_row(element));
    }
    for member in &plan.companions {
        let name = &member.create.spec.name;
        let by = match &member.image_way {
            // An image that they share travels once.
            Some(way) if member.transfer.image.id != plan.transfer.image.id => {
                format!(", its image by {}: {}", way.strategy, one_line(&way.reason))
            }
            _ => String::new(),
        };
        row("with", format!("{name}{by}"));
    }
    for planned in &plan.hooks {
        let place = match planned.hook.place {
            HookPlace::Container => "in the container",
            HookPlace::Host => "on the host",
        };
        row(
            "hook",
            format!(
                "{} {place}: {}",
                planned.hook.when,
                one_line(&planned.hook.command)
            ),
        );
    }
    row("expected", expected(plan));
    if plan.create.name != spec.name {
        row("name there", plan.create.name.clone());
    }
    let ports: Vec<String> = spec
        .ports
        .iter()
        .map(|p| match p.host_port {
            None => format!("any → {}/{}", p.container_port, p.protocol),
            Some(old) => {
                let new = plan.create.publish.get(&old).copied().unwrap_or(old);
                format!("{new} → {}/{}", p.container_port, p.protocol)
            }
        })
        .collect();
    if !ports.is_empty() {
        row("ports", ports.join(", "));
    }
    if !spec.networks.is_empty() {
        row(
            "networks",
            spec.networks
                .iter()
                .map(|n| n.name.clone())
                .collect::<Vec<_>>()
                .join(", "),
        );
    }
    if !plan.restart_policy.is_never() {
        row(
            "restart",
            format!("{} (parked while it moves)", plan.restart_policy.name),
        );
    }
    row("source after", source_after(plan).to_owned());
    lines.extend(table(&rows));
    for finding in &plan.findings {
        if finding.severity == Severity::Note && ui.verbose == 0 {
            continue;
        }
        let (style, word) = match finding.severity {
            Severity::Conflict => (Style::Bad, "conflict"),
            Severity::Warning => (Style::Warn, "warning"),
            Severity::Note => (Style::Dim, "note"),
        };
        lines.push(format!(
            "  {} {}",
            ui.paint(style, &format!("{word}[{}]:", finding.code)),
            one_line(&finding.message)
        ));
        if let Some(remedy) = &finding.remedy {
            lines.push(format!("    {}", one_line(remedy)));
        }
    }
    lines
}

fn element_row(element: &ElementPlan) -> String {
    let size = match element.size {
        Some(size) => format!(" ({}, {} entries)", bytes(size.bytes), size.entries),
        None => String::new(),
    };
    let what = match (&element.at, &element.target) {
        (ElementAt::Layer { .. }, _) => "what was written over the image".to_owned(),
        (ElementAt::Volume { name }, Target::Volume { name: there, .. }) if name != there => {
            format!("{name} at {}, as {there}", element.path)
        }
        (ElementAt::Volume { .. }, Target::Anonymous { .. }) => format!("anonymous at {}", element.path),
        (ElementAt::Volume { name }, _) => format!("{name} at {}", element.path),
        (ElementAt::Bind { path }, _) => format!("{path} at {}", element.path),
        (ElementAt::Tmpfs { path, .. }, _) => path.clone(),
        (ElementAt::Memory { .. }, _) => "what its processes hold".to_owned(),
    };
    let copied = if element.copied { "" } else { ", not copied" };
    format!("{}{size}{copied}", one_line(&what))
}

fn mode(plan: &Plan) -> String {
    match plan.mode {
        Mode::Stateless => "stateless: it runs there before it stops here".into(),
        Mode::Cold => "cold: it stops here, then runs there".into(),
        Mode::Warm => "warm: it is paused here, then runs there, afresh".into(),
        Mode::Live => "live: it is paused here, then its processes go on there".into(),
    }
}

fn expected(plan: &Plan) -> String {
    let total = duration_ms(plan.prediction.total_ms);
    match plan.mode {
        Mode::Stateless => format!("about {total}, no downtime"),
        Mode::Cold | Mode::Warm | Mode::Live => format!(
            "about {total}, about {} of downtime",
            duration_ms(plan.prediction.downtime_ms)
        ),
    }
}

fn source_after(plan: &Plan) -> &'static str {
    match (plan.options.on_source, plan.spec().auto_remove) {
        (OnSource::Keep, _) => "goes on running",
        (OnSource::Remove, _) => "removed",
        (OnSource::Stop, true) => "gone (made with --rm)",
        (OnSource::Stop, false) => "stopped and kept, restart policy \"no\"",
    }
}
