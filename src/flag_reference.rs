//! The reference of all flags and variables, as Markdown, made from the same definitions that read the command line: docs/flags.md.

use std::collections::BTreeMap;

use clap::{Arg, Command, CommandFactory as _};

use crate::cli::Kiln;

const HEAD: &str = "# Flags\n\n\
    Made by `make docs` from the definitions in `src/cli`: change those, not this page. `docs/migration.md` says what is\n\
    different from kaniko's flags, one by one.\n\n\
    A switch takes `--flag`, `--flag=true` and `--flag=false`. Durations are Go's (`6h`, `1h30m`). `kiln executor` is also what\n\
    the binary is under the name `executor`, and `kiln warmer` under the name `warmer`.\n";

/// The page.
pub(crate) fn markdown() -> String {
    let mut page = HEAD.to_owned();
    let mut root = Kiln::command();
    root.build();
    for command in visible(&root) {
        section(&mut page, command, "kiln", 2);
    }
    page + &crate::variables::markdown()
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

fn section(page: &mut String, command: &Command, parent: &str, depth: usize) {
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let positional = command.get_positionals().map(|arg| {
        let name = arg.get_value_names().and_then(|names| names.first().map(ToString::to_string));
        let name = name.unwrap_or_else(|| arg.get_id().to_string().to_uppercase());
        if arg.is_required_set() { format!(" {name}") } else { format!(" [{name}]") }
    });
    let words: String = positional.collect();
    write_line(page, &format!("\n{} {name}{words}\n\n{about}.", "#".repeat(depth)));
    for arg in command.get_positionals() {
        write_line(page, &format!("\n`{}`: {}.", arg.get_id().as_str().to_uppercase(), meaning(arg)));
    }
    let flags = || command.get_opts().filter(|arg| !is_standard(arg));
    let mut headings: Vec<&str> = Vec::new();
    for heading in flags().filter(|arg| !arg.is_hide_set()).map(heading) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for wanted in headings {
        if !wanted.is_empty() {
            write_line(page, &format!("\n{} {wanted}", "#".repeat(depth + 1)));
        }
        table(page, flags().filter(|arg| !arg.is_hide_set() && heading(arg) == wanted));
    }
    if flags().any(Arg::is_hide_set) {
        write_line(page, &format!("\n{} Hidden from help", "#".repeat(depth + 1)));
        table(page, flags().filter(|arg| arg.is_hide_set()));
    }
    for command in visible(command) {
        section(page, command, &name, depth + 1);
    }
}

fn is_standard(arg: &Arg) -> bool {
    matches!(arg.get_id().as_str(), "help" | "version")
}

fn heading(arg: &Arg) -> &str {
    arg.get_help_heading().unwrap_or_default()
}

fn table<'a>(page: &mut String, args: impl Iterator<Item = &'a Arg>) {
    write_line(page, "\n| flag | default | meaning |\n|---|---|---|");
    // A flag is defined in one place and may be shared by several structs: by name is the order that a reader can use.
    let rows: BTreeMap<&str, String> =
        args.map(|arg| (arg.get_long().unwrap_or_default(), row(arg))).collect();
    for row in rows.values() {
        write_line(page, row);
    }
}

fn row(arg: &Arg) -> String {
    let mut names: Vec<String> = arg.get_short().map(|short| format!("`-{short}`")).into_iter().collect();
    let value = arg.get_value_names().and_then(|names| names.first().map(ToString::to_string));
    let is_switch = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
    let long = arg.get_long().unwrap_or_default();
    names.push(match value {
        Some(value) if !is_switch => format!("`--{long} {}`", value.replace('|', "\\|")),
        _ => format!("`--{long}`"),
    });
    let aliases = arg.get_all_aliases().unwrap_or_default();
    names.extend(aliases.iter().map(|alias| format!("`--{alias}`")));
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = if defaults.is_empty() { String::new() } else { format!("`{}`", defaults.join(",")) };
    format!("| {} | {default} | {} |", names.join(", "), meaning(arg))
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    help.trim_end_matches('.').replace('|', "\\|")
}

fn write_line(page: &mut String, line: &str) {
    page.push_str(line);
    page.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_flags_is_up_to_date() {
        let page = include_str!("../docs/flags.md");
        assert!(page == markdown(), "docs/flags.md is not what the flags are now: run `make docs`");
    }

    #[test]
    fn the_page_names_every_flag_of_every_command() {
        let page = markdown();
        let mut root = Kiln::command();
        root.build();
        let mut commands: Vec<&Command> = visible(&root).collect();
        while let Some(command) = commands.pop() {
            commands.extend(visible(command));
            for long in command.get_opts().filter(|arg| !is_standard(arg)).filter_map(Arg::get_long) {
                assert!(page.contains(&format!("`--{long}")), "{} --{long}", command.get_name());
            }
        }
    }
}
