//! Runs real steps in real namespaces, as root. What this machine refuses is left out by name, never in silence.

mod enclosed;
mod machine;
mod mounts;
mod processes;
mod secrecy;
