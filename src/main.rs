//! The `kiln` binary: the command line, the environment, what is shown, exit codes. No build logic.

mod build_command;
mod build_request;
mod cli;
mod clock;
mod container;
mod digest_files;
mod environment;
mod exit;
mod file_commands;
mod flag_reference;
mod log;
mod plan_text;
mod progress;
mod push_command;
mod registry_options;
mod sarif;
mod show;
mod variables;
mod warm_command;

use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use cli::{Command, ExecutorCommand, ExecutorSubcommand, Kiln};
use environment::Environment;
use exit::Outcome;

fn main() -> ExitCode {
    // Kiln's memory holds credentials; a step may run as the same user.
    let hidden = kiln_sandbox::hide_memory();
    let environment = Environment::read();
    let outcome = run(&environment);
    drop(hidden);
    outcome.into()
}

/// The name that the program was started under: `executor` and `warmer` are subcommands of their own.
fn started_as(environment: &Environment) -> Option<&str> {
    let first = environment.arguments.first()?;
    let name = Path::new(first).file_name()?.to_str()?;
    ["executor", "warmer"].into_iter().find(|known| *known == name)
}

fn run(environment: &Environment) -> Outcome {
    let arguments = || environment.arguments.iter();
    match started_as(environment) {
        Some("executor") => match ExecutorCommand::try_parse_from(arguments()) {
            Ok(command) => executor(environment, command, true),
            Err(error) => usage(&error),
        },
        Some(_) => match cli::warmer::WarmerFlags::try_parse_from(arguments()) {
            Ok(flags) => warm_command::run(environment, &flags),
            Err(error) => usage(&error),
        },
        None => match Kiln::try_parse_from(arguments()) {
            Ok(command) => kiln(environment, command.command),
            Err(error) => usage(&error),
        },
    }
}

/// Help is no failure; wrong usage is exit code 1, as with kaniko.
fn usage(error: &clap::Error) -> Outcome {
    // Nobody is left to be told when the terminal is gone.
    drop(error.print());
    if error.use_stderr() { Outcome::Failed } else { Outcome::Done }
}

fn kiln(environment: &Environment, command: Command) -> Outcome {
    match command {
        Command::Executor(command) => executor(environment, *command, false),
        Command::Warmer(flags) => warm_command::run(environment, &flags),
        Command::Parse(flags) => file_commands::parse(&flags),
        Command::Lint(flags) => file_commands::lint(&flags),
        Command::Version => version(false),
        Command::Completion(flags) => completion(flags.shell, &mut Kiln::command(), "kiln"),
        Command::Man(flags) => manual(&flags.directory),
        Command::Flags => {
            show::out(&flag_reference::markdown());
            Outcome::Done
        }
    }
}

fn executor(environment: &Environment, command: ExecutorCommand, as_kaniko: bool) -> Outcome {
    match command.command {
        None => build_command::run(environment, &command.flags),
        Some(ExecutorSubcommand::Login(flags)) => push_command::login(environment, &flags),
        Some(ExecutorSubcommand::Push(flags)) => push_command::push(environment, &flags),
        Some(ExecutorSubcommand::Version) => version(as_kaniko),
        Some(ExecutorSubcommand::Completion(flags)) => {
            completion(flags.shell, &mut ExecutorCommand::command(), "executor")
        }
    }
}

/// Scripts look for kaniko's own words.
fn version(as_kaniko: bool) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    show::out(&if as_kaniko {
        format!("Kaniko version :  v{version}\n")
    } else {
        format!("kiln {version}\n")
    });
    Outcome::Done
}

fn completion(shell: clap_complete::Shell, command: &mut clap::Command, name: &str) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, name, &mut script);
    show::out(&String::from_utf8_lossy(&script));
    Outcome::Done
}

fn manual(directory: &Path) -> Outcome {
    match clap_mangen::generate_to(Kiln::command(), directory) {
        Ok(()) => Outcome::Done,
        Err(error) => {
            show::failed(&format!("could not write the manual pages to {}: {error}", directory.display()))
        }
    }
}
