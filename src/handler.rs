//! The engine that runs one program for every event.
//!
//! Pure: a [`Handler`] and a uevent make a plan of one step.
#![forbid(unsafe_code)]

use crate::environment::Base;
use crate::plan::{Plan, Program, Run, Step};
use crate::uevent::Uevent;

/// What to run for every event.
#[derive(Debug)]
pub struct Handler {
    /// The handler program with its arguments.
    pub program: Program,
    /// Append the event's SUBSYSTEM to the arguments (empty if it has none),
    /// which is how the kernel calls its own hotplug helper.
    pub hotplug_argument: bool,
    /// The environment that the event's variables come over.
    pub environment: Base,
}

impl Handler {
    /// What to do for `event`.
    pub fn plan<'e>(&'e self, event: &Uevent<'e>) -> Plan<'e> {
        let argument = self.hotplug_argument.then(|| event.last(b"SUBSYSTEM").unwrap_or_default());
        Plan::of(Step::Run(Run {
            program: &self.program,
            argument,
            base: &self.environment,
            event: *event,
            mdev: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uevent::Header;

    fn plan_text(hotplug_argument: bool, event: &[u8]) -> String {
        let handler = Handler {
            program: Program {
                path: c"/bin/h".into(),
                argv: vec![c"h".into(), c"a b".into()],
                was_found: true,
            },
            hotplug_argument,
            environment: Base::new([]),
        };
        let plan = handler.plan(&Uevent::parse(event, Header::Required).unwrap());
        let steps: Vec<_> = plan.steps().collect();
        let [Step::Run(run)] = steps[..] else { panic!("{steps:?}") };
        format!("{:?}", run.argv().collect::<Vec<_>>())
    }

    #[test]
    fn the_program_gets_its_arguments() {
        assert_eq!(plan_text(false, b"add@/x\0SUBSYSTEM=net\0"), r#"["h", "a b"]"#);
    }

    #[test]
    fn the_subsystem_is_appended_if_wanted() {
        assert_eq!(plan_text(true, b"add@/x\0SUBSYSTEM=net\0"), r#"["h", "a b", "net"]"#);
        assert_eq!(plan_text(true, b"add@/x\0ACTION=add\0"), r#"["h", "a b", ""]"#);
        let twice = b"add@/x\0SUBSYSTEM=net\0SUBSYSTEM=usb\0";
        assert_eq!(plan_text(true, twice), r#"["h", "a b", "usb"]"#, "as in the environment");
    }
}
