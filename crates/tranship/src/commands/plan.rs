//! `tranship plan`: what `migrate` would do. `migrate` itself begins here.

use tranship_agent::AgentClient;
use tranship_core::ids::ContainerName;
use tranship_core::node::{ContainerReport, NodeFacts, SurveyRequest};
use tranship_core::{Fault, FaultKind, MigrationId};
use tranship_migrate::MoveOptions;
use tranship_migrate::plan::{Plan, PlanInput, plan};

use super::Context;
use crate::cli::{ModeArg, MoveArgs, OnSourceArg, PlanArgs};
use crate::connect::{self, Connection};
use crate::render;

/// Both ends, and what was planned between them.
pub struct Prepared {
    /// The source.
    pub source: Connection,
    /// The destination.
    pub destination: Connection,
    /// One plan per container, in the order given.
    pub plans: Vec<Plan>,
    /// The migration under way that is the one asked for.
    pub under_way: Option<MigrationId>,
}

/// Prints the plan. Conflicts are results here, and make the exit code 1.
pub async fn run(context: &Context, args: &PlanArgs) -> Result<(), Fault> {
    let prepared = prepare(context, &args.moves).await?;
    if let Some(id) = &prepared.under_way {
        return Err(busy(id, "the container is on its way already"));
    }
    if context.ui.json {
        context.ui.json(&prepared.plans)?;
    } else {
        for plan in &prepared.plans {
            for line in render::plan::lines(&context.ui, plan) {
                context.ui.line(&line)?;
            }
        }
    }
    refuse_conflicts(&prepared.plans)
}

/// A fault that names all conflicts, if there are any.
pub fn refuse_conflicts(plans: &[Plan]) -> Result<(), Fault> {
    let conflicts: Vec<_> = plans
        .iter()
        .flat_map(|p| p.conflicts().map(move |c| (p, c)))
        .collect();
    let Some((plan, first)) = conflicts.first() else {
        return Ok(());
    };
    let mut fault = Fault::new(first.code.clone(), FaultKind::Environment, first.message.clone())
        .on_container(plan.spec().name.clone())
        .on_node(plan.destination.clone());
    const AT_SOURCE: [&str; 10] = [
        "container.",
        "layer.",
        "namespace.",
        "network.links",
        "volume.shared",
        "volume.stateless",
        "volume.elsewhere",
        "bind.present",
        "mount.",
        "port.not-published",
    ];
    if AT_SOURCE.iter().any(|prefix| first.code.starts_with(prefix)) {
        fault.node = Some(plan.source.clone());
    }
    fault.hint = first.remedy.clone();
    let more = conflicts.len() - 1;
    if more > 0 {
        fault.message = format!("{} (and {more} more in the plan)", fault.message);
    }
    Err(fault)
}

/// Connects to both ends and plans, changing nothing.
pub async fn prepare(context: &Context, moves: &MoveArgs) -> Result<Prepared, Fault> {
    check_arguments(moves)?;
    context
        .ui
        .say(&format!("connecting to {} and {}", moves.from, moves.to));
    let (source, destination) = tokio::join!(
        connect::connect(context, &moves.from),
        connect::connect(context, &moves.to)
    );
    let (source, destination) = (source?, destination?);
    same_node(&source, &destination)?;
    let options = moves.options()?;
    if let Some(id) = under_way(&source, &destination, moves, &options).await? {
        return Ok(Prepared {
            source,
            destination,
            plans: Vec::new(),
            under_way: Some(id),
        });
    }
    let plans = plans(&source, &destination, &moves.containers, &options, None).await?;
    Ok(Prepared {
        source,
        destination,
        plans,
        under_way: None,
    })
}

/// Asks both ends about these containers, and plans. `not_live` says why `auto` shall not take live mode.
pub async fn plans(
    source: &Connection,
    destination: &Connection,
    containers: &[ContainerName],
    options: &MoveOptions,
    not_live: Option<&str>,
) -> Result<Vec<Plan>, Fault> {
    let mut groups: Vec<(MigrationId, Vec<ContainerReport>)> = Vec::new();
    for name in containers {
        let first = report(source, name).await?;
        let group = if options.with_dependents {
            with_dependents(source, first, &options.include_bind).await?
        } else {
            vec![first]
        };
        groups.push((new_id()?, group));
    }
    let source_node = facts(&source.client, &source.label).await?;
    let request = SurveyRequest {
        containers: groups
            .iter()
            .flat_map(|(_, g)| g)
            .map(|r| r.spec.clone())
            .collect(),
    };
    let survey = destination
        .client
        .survey(&request)
        .await
        .map_err(|f| f.on_node(destination.label.clone()))?;
    Ok(plan(&PlanInput {
        source: &source.label,
        destination: &destination.label,
        containers: &groups,
        source_node: &source_node,
        survey: &survey,
        options,
        not_live,
    }))
}

/// The migration under way that does what is asked for. Another one of the same container is a refusal.
async fn under_way(
    source: &Connection,
    destination: &Connection,
    moves: &MoveArgs,
    options: &MoveOptions,
) -> Result<Option<MigrationId>, Fault> {
    for name in &moves.containers {
        // An older agent does not know the question; it refuses by itself what is on its way.
        let Ok(Some(leaving)) = source.client.leaving(name).await else {
            continue;
        };
        let same = moves.containers.len() == 1
            && leaving.destination == destination.label
            && &leaving.options == options;
        if same {
            return Ok(Some(leaving.id));
        }
        let what = format!("{name} is on its way to {} already", leaving.destination);
        return Err(busy(&leaving.id, &format!("{what}, by migration {}", leaving.id))
            .on_container(name.to_string())
            .on_node(source.label.clone()));
    }
    Ok(None)
}

fn busy(id: &MigrationId, what: &str) -> Fault {
    Fault::new("migrate.busy", FaultKind::Environment, what).with_hint(format!(
        "`tranship status {id}` shows it, `tranship resume {id}` watches it"
    ))
}

async fn report(source: &Connection, name: &ContainerName) -> Result<ContainerReport, Fault> {
    source
        .client
        .container(name)
        .await
        .map_err(|f| f.on_node(source.label.clone()).on_container(name.to_string()))
}

/// The container, and all running ones that share a volume, or a directory that comes along, with it or with one of those.
async fn with_dependents(
    source: &Connection,
    first: ContainerReport,
    include_bind: &[String],
) -> Result<Vec<ContainerReport>, Fault> {
    let mut group = vec![first];
    let mut looked_at = 0;
    while let Some(next) = group.get(looked_at) {
        looked_at += 1;
        let others: Vec<_> = next
            .volumes
            .iter()
            .flat_map(|v| &v.users)
            .chain(tranship_migrate::elements::bind_users(next, include_bind))
            .filter(|u| u.running)
            .map(|u| u.container.clone())
            .collect();
        for other in others {
            if group.iter().any(|r| r.spec.id == other) {
                continue;
            }
            let name = ContainerName::new(other.as_str())
                .map_err(|e| Fault::new("name.invalid", FaultKind::Bug, e.to_string()))?;
            group.push(report(source, &name).await?);
        }
    }
    Ok(group)
}

/// The facts about a node.
pub async fn facts(client: &AgentClient, label: &str) -> Result<NodeFacts, Fault> {
    client.node().await.map_err(|f| f.on_node(label.to_owned()))
}

fn check_arguments(moves: &MoveArgs) -> Result<(), Fault> {
    if moves.rename.is_some() && moves.containers.len() > 1 {
        return Err(Fault::new(
            "usage.rename",
            FaultKind::Usage,
            "--rename gives one container another name, not several",
        )
        .with_hint("move them one by one"));
    }
    if moves.on_source == OnSourceArg::Keep && matches!(moves.mode, ModeArg::Cold | ModeArg::Warm) {
        return Err(Fault::new(
            "usage.keep",
            FaultKind::Usage,
            "--on-source keep would leave two instances, which only stateless mode allows",
        )
        .with_hint("use --mode stateless, or --on-source stop"));
    }
    moves.image.check()?;
    if moves.from == moves.to {
        return Err(Fault::new(
            "usage.same-node",
            FaultKind::Usage,
            "source and destination are the same node",
        )
        .with_hint("--from and --to name two different nodes"));
    }
    Ok(())
}

/// Two addresses may lead to one agent.
fn same_node(source: &Connection, destination: &Connection) -> Result<(), Fault> {
    if source.hello.instance == destination.hello.instance {
        return Err(Fault::new(
            "plan.same-node",
            FaultKind::Environment,
            "both addresses lead to the same node",
        )
        .with_hint("--from and --to name two different nodes"));
    }
    Ok(())
}

/// A new migration's id: 10 random letters and digits, easy to read out.
pub fn new_id() -> Result<MigrationId, Fault> {
    const LETTERS: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz023456789";
    let mut random = [0u8; 10];
    let bug = |e: String| Fault::new("random.failed", FaultKind::Bug, e);
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| bug(e.to_string()))?;
    let text: String = random
        .iter()
        .map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()]))
        .collect();
    MigrationId::new(text).map_err(|e| bug(e.to_string()))
}
