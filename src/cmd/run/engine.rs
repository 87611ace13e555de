//! What decides: a program that is run for every event, or rules.

use std::ffi::{OsStr, OsString};
use std::io;

use crate::child;
use crate::cmd::{quoted, rules};
use crate::engine::Engine;
use crate::environment::DEFAULT_PATH;
use crate::error::Fatal;
use crate::handler::Handler;
use crate::handover::Handover;
use crate::plan::Program;
use crate::status;

use super::options::{Options, Work};

/// Finds the program, or reads the rules; `handover` is what the plugd before this one
/// left.
pub(in crate::cmd) fn engine(
    options: &Options,
    handover: Option<&Handover>,
) -> Result<Engine, Fatal> {
    match &options.work {
        Work::Program(program, arguments) => {
            handler(options, program, arguments).map(Engine::Handler)
        }
        Work::Rules { files, dry_run } => {
            rules::engine(files, *dry_run, options.clean_environment, handover)
        }
    }
}

fn handler(
    options: &Options,
    program: &OsString,
    arguments: &[OsString],
) -> Result<Handler, Fatal> {
    let cannot_run = |e: io::Error| Fatal::system(format_args!("run {}", quoted(program)), e);
    let path = std::env::var_os("PATH");
    let path = path.as_deref().unwrap_or(OsStr::new(DEFAULT_PATH));
    let argv = std::iter::once(program).chain(arguments);
    Ok(Handler {
        program: Program {
            path: child::find_program(program, path)
                .and_then(|path| match options.daemon.goes_to_background() {
                    true => child::absolute(&path),
                    false => Ok(path),
                })
                .map_err(cannot_run)?,
            argv: argv
                .map(|a| child::c_string(a))
                .collect::<io::Result<_>>()
                .map_err(cannot_run)?,
            was_found: true,
        },
        hotplug_argument: options.hotplug_argument,
        environment: rules::environment(options.clean_environment),
    })
}

/// What the status says of the engine.
pub(super) fn status_of(engine: &Engine, options: &Options) -> status::Engine {
    let (kind, file) = match (engine, &options.work) {
        (Engine::Handler(handler), _) => ("handler", handler.program.path.to_bytes()),
        (Engine::Rules(_), Work::Rules { files, .. }) => {
            ("rules", files.conf.as_os_str().as_encoded_bytes())
        }
        (Engine::Rules(_), Work::Program(..)) => ("rules", &b""[..]),
    };
    status::Engine { kind, file: file.to_vec() }
}
