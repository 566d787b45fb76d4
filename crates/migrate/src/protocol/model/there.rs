//! What can happen at the destination.

use super::flaws::Flaw;
use super::world::{MESSAGES, MOST_MEMBERS, Model, Next, Run, Step, World, answer_bit, bit};
use crate::protocol::destination;
use crate::protocol::source::Doing;

impl Model {
    pub(super) fn destination_steps(&self, world: &World, out: &mut Vec<Next>) {
        let Some(half) = world.destination else { return };
        let action = half.action();
        let went = Step::Destination(action);
        let failed = Step::DestinationFails(action);
        let mut push = |step, world, progress| {
            out.push(Next {
                step,
                world,
                progress,
                alone: false,
            });
        };
        let told = |mut w: World, input| {
            w.destination = Some(self.destination_on(half, input));
            w.d_part = 0;
            w
        };
        match action {
            destination::Action::Idle => {
                for message in MESSAGES {
                    if world.to_destination & bit(message) != 0 {
                        let asked = told(*world, destination::Input::Asked(message));
                        push(Step::DestinationHears(message), asked, true);
                    }
                }
                let gone = world.source_lost || world.source.is_some_and(|s| s.doing == Doing::Over);
                let alone = told(*world, destination::Input::Alone);
                push(Step::DestinationAlone, alone, gone);
            }
            destination::Action::Save(state) => {
                if world.d_part == 0 {
                    let mut written = *world;
                    written.d_cache = Some(state);
                    written.d_part = 1;
                    push(went, written, true);
                    push(failed, told(*world, destination::Input::NotSaved), false);
                } else {
                    let mut synced = *world;
                    if !self.destination_sync_is_left_out(state) {
                        synced.d_disk = synced.d_cache;
                    }
                    push(went, told(synced, destination::Input::Saved), true);
                    push(failed, told(*world, destination::Input::NotSaved), false);
                    let mut taken_back = *world;
                    taken_back.d_cache = taken_back.d_disk;
                    push(failed, told(taken_back, destination::Input::NotSaved), false);
                }
            }
            destination::Action::Prove => {
                let up = self.members().all(|m| world.d_run[m] == Run::Up);
                let input = if up {
                    destination::Input::Done
                } else {
                    destination::Input::Failed
                };
                push(went, told(*world, input), true);
                push(failed, told(*world, destination::Input::Failed), false);
            }
            destination::Action::Say(answer) => {
                let mut said = *world;
                let mut after = half;
                after.said();
                said.destination = Some(after);
                said.to_source |= answer_bit(answer);
                push(went, said, true);
            }
            destination::Action::Make
            | destination::Action::Start
            | destination::Action::Keep
            | destination::Action::Remove => {
                let (after, input) = self.destination_engine(world, action);
                match input {
                    Some(input) => push(went, told(after, input), true),
                    None => push(went, after, true),
                }
                push(failed, told(after, destination::Input::Failed), false);
                push(failed, told(*world, destination::Input::Failed), false);
            }
        }
    }

    fn destination_engine(
        &self,
        world: &World,
        action: destination::Action,
    ) -> (World, Option<destination::Input>) {
        let member = usize::from(world.d_part);
        let mut after = *world;
        after.d_part += 1;
        let run = &mut after.d_run[member];
        match action {
            destination::Action::Make => {
                *run = if *run == Run::Absent { Run::Down } else { *run };
            }
            destination::Action::Start => {
                if *run == Run::Absent {
                    return (*world, Some(destination::Input::Failed));
                }
                *run = Run::Up;
            }
            destination::Action::Keep => after.d_given[member] = !self.has(Flaw::PolicyNotGivenThere),
            destination::Action::Remove => {
                *run = Run::Absent;
                after.d_given[member] = false;
                // What arrived goes after the containers.
                after.fresh &= member + 1 < self.config.members;
            }
            _ => {}
        }
        let over = member + 1 >= self.config.members;
        (after, over.then_some(destination::Input::Done))
    }

    pub(super) fn destination_faults(&self, world: &World, out: &mut Vec<Next>) {
        let mut push = |step, world, progress| {
            out.push(Next {
                step,
                world,
                progress,
                alone: false,
            });
        };
        if world.destination_lost {
            return;
        }
        if world.destination.is_some() {
            let mut killed = *world;
            killed.destination = None;
            killed.d_part = 0;
            push(Step::DestinationKilled, killed, false);
        } else {
            let mut started = *world;
            if !self.has(Flaw::RestartTrustsTheCache) {
                started.d_disk = started.d_cache;
            }
            started.destination = Some(self.destination_restarted(started.d_cache));
            push(Step::DestinationStarts, started, true);
        }
        let mut engine = *world;
        self.destination_engine_restarts(&mut engine);
        push(Step::DestinationEngineRestarts, engine, false);
        for kept in [world.d_disk, world.d_cache] {
            let mut rebooted = *world;
            rebooted.destination = None;
            rebooted.d_part = 0;
            rebooted.d_disk = kept;
            rebooted.d_cache = kept;
            rebooted.fresh &= rebooted.synced;
            self.destination_engine_restarts(&mut rebooted);
            push(Step::DestinationReboots, rebooted, false);
        }
        if self.config.loss && !world.source_lost {
            let mut lost = *world;
            lost.destination = None;
            lost.d_part = 0;
            lost.d_run = [Run::Absent; MOST_MEMBERS];
            lost.destination_lost = true;
            push(Step::DestinationLost, lost, false);
        }
        if self.config.forgets && !world.forgot && world.d_disk.is_some() {
            let mut forgot = *world;
            forgot.destination = None;
            forgot.d_part = 0;
            forgot.d_disk = None;
            forgot.d_cache = None;
            forgot.forgot = true;
            // What was under way is gone with its connections.
            forgot.to_destination = 0;
            forgot.to_source = 0;
            push(Step::DestinationForgets, forgot, false);
        }
    }

    fn destination_engine_restarts(&self, world: &mut World) {
        for member in self.members() {
            let run = &mut world.d_run[member];
            if *run != Run::Absent {
                *run = if world.d_given[member] { Run::Up } else { Run::Down };
            }
        }
    }
}
