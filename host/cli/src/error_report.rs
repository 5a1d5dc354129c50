//! Errors as one line: what is wrong, and what mends it.

use std::process::ExitCode;

use clap::error::ErrorKind;

/// Prints help that was asked for, or says in one line what is wrong with the arguments.
pub fn about_arguments(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that has seen enough closes the pipe.
            let _printed = error.print();
        }
        _ => eprintln!("scx-vsock: {}", of_arguments(&error.render().to_string())),
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// What is said about wrong arguments, without the usage that follows it, and with the command that prints more.
fn of_arguments(rendered: &str) -> String {
    let (problem, rest) = rendered.split_once("\n\nUsage: ").unwrap_or((rendered, ""));
    let problem = problem.split("\n\nFor more information").next().unwrap_or_default();
    let problem = one_line(problem.strip_prefix("error: ").unwrap_or(problem));
    // The usage begins with the command and its verb; what follows are their arguments.
    let words = rest.split_whitespace().take_while(|word| word.starts_with(|first: char| first.is_ascii_lowercase()));
    let command = words.collect::<Vec<_>>().join(" ");
    let command = if command.is_empty() { "scx-vsock" } else { &command };
    format!("{problem}; see {command} --help")
}

/// A text of several lines as one, with nothing in it that would act on a terminal.
pub fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut joined = String::new();
    for line in lines {
        joined += match joined.chars().last() {
            None => "",
            Some(':' | ';' | ',') => " ",
            Some(_) => "; ",
        };
        joined.extend(line.chars().filter(|character| !character.is_control()));
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_argument_is_one_line_that_names_the_help() {
        let rendered = "error: unrecognized subcommand 'bot'\n\n  tip: a similar subcommand exists: 'boot'\n\n\
                        Usage: scx-vsock <COMMAND>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            of_arguments(rendered),
            "unrecognized subcommand 'bot'; tip: a similar subcommand exists: 'boot'; see scx-vsock --help"
        );
        let rendered = "error: the following required arguments were not provided:\n  --kernel <FILE>\n\n\
                        Usage: scx-vsock boot --kernel <FILE> [-- <CMD>...]\n\nFor more information, try '--help'.\n";
        assert_eq!(
            of_arguments(rendered),
            "the following required arguments were not provided: --kernel <FILE>; see scx-vsock boot --help"
        );
        let rendered = "error: invalid value 'x' for '--cpus <N>': no\n\nFor more information, try '--help'.\n";
        assert_eq!(of_arguments(rendered), "invalid value 'x' for '--cpus <N>': no; see scx-vsock --help");
    }

    #[test]
    fn a_text_of_many_lines_is_one() {
        assert_eq!(one_line("a\n  b:\n\nc\u{1b}[2J\n"), "a; b: c[2J");
        assert_eq!(one_line(""), "");
    }
}
