//! The user's commands around the freeze.

use std::time::Duration;

use tranship_core::Fault;
use tranship_core::event::Event;

use super::Departure;
use crate::hook;
use crate::options::HookTime;

impl Departure {
    /// Runs the hooks of this time that belong to the source, one after the other.
    ///
    /// # Errors
    /// `hook.failed` or `hook.timeout` for the first that does not end well; the others do not run then, but for those of
    /// [`HookTime::Thaw`], which all run.
    pub(super) async fn hooks(&mut self, when: HookTime) -> Result<(), Fault> {
        let planned: Vec<_> = self
            .plan()
            .hooks
            .iter()
            .filter(|h| h.hook.when == when)
            .cloned()
            .collect();
        if when == HookTime::Thaw && !self.record.hooked {
            return Ok(());
        }
        let mut first_failure = None;
        for planned in planned {
            crate::failpoint::reach("source.hook").await?;
            if when == HookTime::PreFreeze {
                self.record.hooked = true;
                self.save().await?;
            }
            self.reporter.report(Event::Note {
                text: format!("hook {when}: {}", planned.hook.command),
            });
            let Some(member) = self.members.get(planned.member) else {
                continue;
            };
            let ran = hook::run(
                &self.ports,
                &planned.hook,
                &member.create.spec.id,
                &self.record.plan,
                Duration::from_secs(planned.hook.timeout),
            )
            .await;
            match ran {
                Ok(()) => {}
                Err(fault) if when == HookTime::Thaw => {
                    first_failure.get_or_insert(fault);
                }
                Err(fault) => return Err(fault),
            }
        }
        first_failure.map_or(Ok(()), Err)
    }
}
