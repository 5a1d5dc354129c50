//! The parser of expectations.
//!
//! ```text
//! expectation = condition ["after" time] ["within" time]
//! condition   = ["always" | "eventually" | "at_end"] term test
//!             | "nondecreasing" term
//!             | "steady" "(" term ")" "within" number "%"
//! term        = path | "per_second" "(" path ")" | "rate" "(" path ")" | "holes" "(" ("stats" | "kernel") ")"
//! path        = ["kernel:"] (word | quoted)
//! test        = ("<" | "<=" | ">" | ">=") number | ("=" | "!=") (number | "true" | "false" | word | quoted)
//! time        = number ("ms" | "s" | "m")
//! ```

use std::str::FromStr;

use serde_json::Number;
use winnow::Parser;
use winnow::combinator::{alt, opt, peek, repeat, terminated};
use winnow::error::{ContextError, StrContext, StrContextValue};
use winnow::token::{any, none_of, take_while};

use super::expectation::{Condition, Expectation, Test, Window};
use super::parse_error::{ParseExpectationError, Problem};
use super::term::{KERNEL, Source, Term};
use super::value::{Operand, boolean, number as parse_number};
use super::words::is_bare;
use crate::stats::StatPath;

/// Bytes of the longest text that is parsed.
pub const MAX_EXPECTATION_BYTES: usize = 1024;

/// The longest time in milliseconds, 1,000 days.
const MAX_MS: f64 = 86_400_000_000.0;

type Input<'i> = &'i str;
type Parsed<T> = winnow::Result<T>;

impl FromStr for Expectation {
    type Err = ParseExpectationError;

    fn from_str(text: &str) -> Result<Self, ParseExpectationError> {
        if text.len() > MAX_EXPECTATION_BYTES {
            let at = text.floor_char_boundary(MAX_EXPECTATION_BYTES);
            let problem = Problem::Other(format!("an expectation has at most {MAX_EXPECTATION_BYTES} bytes"));
            return Err(ParseExpectationError { text: text.get(..at).unwrap_or_default().to_owned(), at, problem });
        }
        expectation.parse(text).map_err(|error| {
            let problem = problem(error.inner());
            ParseExpectationError { text: text.to_owned(), at: error.offset(), problem }
        })
    }
}

/// What the innermost parser expected, or what it failed with.
fn problem(error: &ContextError) -> Problem {
    if let Some(cause) = error.cause() {
        return Problem::Other(cause.to_string());
    }
    let expected = error.context().find_map(|context| match context {
        StrContext::Expected(expected) => Some(expected.to_string()),
        _ => None,
    });
    Problem::Expected(expected.unwrap_or_else(|| "after TIME, within TIME or the end".into()))
}

fn expected(what: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(what))
}

fn expectation(input: &mut Input<'_>) -> Parsed<Expectation> {
    space(input)?;
    Ok(Expectation { condition: condition(input)?, window: window(input)? })
}

fn condition(input: &mut Input<'_>) -> Parsed<Condition> {
    if opened(input, "steady")? {
        return steady(input);
    }
    let compare = match peek(take_while(0.., is_bare)).parse_next(input)? {
        "nondecreasing" => {
            word(input)?;
            return term(input).map(Condition::Nondecreasing);
        }
        "always" => Condition::Always,
        "eventually" => Condition::Eventually,
        "at_end" => Condition::AtEnd,
        _ => return Ok(Condition::Always(term(input)?, test(input)?)),
    };
    word(input)?;
    Ok(compare(term(input)?, test(input)?))
}

/// What follows `steady(`.
fn steady(input: &mut Input<'_>) -> Parsed<Condition> {
    let term = term(input)?;
    close(input)?;
    symbol(input, "within", "within PERCENT%, such as within 20%")?;
    let number = take_while(1.., |char| char != '%' && is_bare(char))
        .verify_map(|text| parse_number(text).filter(|number| number.as_f64().is_some_and(|number| number >= 0.0)));
    let tolerance = terminated(number, space).context(expected("a percentage, such as 20%")).parse_next(input)?;
    symbol(input, "%", "a percent sign")?;
    Ok(Condition::Steady(term, tolerance))
}

fn term(input: &mut Input<'_>) -> Parsed<Term> {
    let term = if opened(input, "per_second")? {
        // The kernel's counters are no deltas.
        Term::PerSecond(path(input)?)
    } else if opened(input, "rate")? {
        let (source, path) = path_of_source(input)?;
        Term::Rate(source, path)
    } else if opened(input, "holes")? {
        let source = alt(("stats".value(Source::Stats), "kernel".value(Source::Kernel)));
        Term::Holes(terminated(source, space).context(expected("stats or kernel")).parse_next(input)?)
    } else {
        let (source, path) = path_of_source(input)?;
        return Ok(Term::Value(source, path));
    };
    close(input)?;
    Ok(term)
}

fn path_of_source(input: &mut Input<'_>) -> Parsed<(Source, StatPath)> {
    let source = opt(KERNEL).parse_next(input)?.map_or(Source::Stats, |_| Source::Kernel);
    Ok((source, path(input)?))
}

fn path(input: &mut Input<'_>) -> Parsed<StatPath> {
    text(input, "a path, such as nr_running or kernel:state", |text| text.parse::<StatPath>())
}

fn test(input: &mut Input<'_>) -> Parsed<Test> {
    let operator = terminated(alt(("<=", ">=", "!=", "==", "<", ">", "=")), space);
    let operator = operator.context(expected("a comparison: <, <=, >, >=, = or !=")).parse_next(input)?;
    Ok(match operator {
        "<" => Test::Less(number(input)?),
        "<=" => Test::AtMost(number(input)?),
        ">" => Test::Greater(number(input)?),
        ">=" => Test::AtLeast(number(input)?),
        "!=" => Test::Differs(operand(input)?),
        _ => Test::Equals(operand(input)?),
    })
}

fn number(input: &mut Input<'_>) -> Parsed<Number> {
    let number = take_while(1.., is_bare).verify_map(parse_number);
    terminated(number, space).context(expected("a number, such as 64 or 0.5")).parse_next(input)
}

fn operand(input: &mut Input<'_>) -> Parsed<Operand> {
    let is_quoted = input.starts_with('"');
    text(input, "a number, true, false, a word or a text in quotes", |text| {
        let word = || parse_number(text).map(Operand::Number).or_else(|| boolean(text).map(Operand::Boolean));
        let of_word = if is_quoted { None } else { word() };
        Ok::<_, std::convert::Infallible>(of_word.unwrap_or_else(|| text.into()))
    })
}

fn window(input: &mut Input<'_>) -> Parsed<Window> {
    let start = *input;
    let mut within_ms = time_after(input, "within")?;
    let after_ms = time_after(input, "after")?;
    if within_ms.is_none() {
        within_ms = time_after(input, "within")?;
    }
    let window = Window { after_ms, within_ms };
    if !window.is_possible() {
        *input = start;
    }
    winnow::combinator::empty
        .verify_map(|()| window.is_possible().then_some(window))
        .context(expected("a time within that is not before the time after"))
        .parse_next(input)
}

/// The time after a word, if the word is there.
fn time_after(input: &mut Input<'_>, name: &'static str) -> Parsed<Option<u64>> {
    if opt(terminated(name, space)).parse_next(input)?.is_none() {
        return Ok(None);
    }
    let digits = take_while(1.., |char: char| char.is_ascii_digit() || char == '.');
    let time = (digits, alt(("ms".value(1.0), "s".value(1_000.0), "m".value(60_000.0))));
    let time = time.verify_map(|(digits, unit): (&str, f64)| milliseconds(digits, unit));
    terminated(time, space).map(Some).context(expected("a time, such as 250ms, 2s or 1m")).parse_next(input)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, positive, and far below 2^53")]
fn milliseconds(digits: &str, unit: f64) -> Option<u64> {
    let ms = (digits.parse::<f64>().ok()? * unit).round();
    (ms <= MAX_MS).then_some(ms as u64)
}

/// A word or a text in quotes, of which `of` makes something.
fn text<T, E: std::error::Error + Send + Sync + 'static>(
    input: &mut Input<'_>,
    what: &'static str,
    of: impl Fn(&str) -> Result<T, E>,
) -> Parsed<T> {
    if input.starts_with('"') {
        let text = quoted.context(expected("a text that ends with a quote"));
        terminated(text.try_map(|text| of(&text)), space).parse_next(input)
    } else {
        terminated(take_while(1.., is_bare).try_map(of), space).context(expected(what)).parse_next(input)
    }
}

/// A JSON string.
fn quoted(input: &mut Input<'_>) -> Parsed<String> {
    let characters = repeat::<_, _, (), _, _>(0.., alt((('\\', any).void(), none_of(['"', '\\']).void())));
    ('"', characters, '"').take().verify_map(|text| serde_json::from_str(text).ok()).parse_next(input)
}

fn word(input: &mut Input<'_>) -> Parsed<()> {
    terminated(take_while(1.., is_bare), space).void().parse_next(input)
}

/// Whether a function with this name begins here, and its parenthesis is open then.
fn opened(input: &mut Input<'_>, name: &'static str) -> Parsed<bool> {
    Ok(opt((name, space, '(', space)).parse_next(input)?.is_some())
}

fn close(input: &mut Input<'_>) -> Parsed<()> {
    symbol(input, ")", "a closing parenthesis")
}

fn symbol(input: &mut Input<'_>, symbol: &'static str, what: &'static str) -> Parsed<()> {
    terminated(symbol, space).void().context(expected(what)).parse_next(input)
}

fn space(input: &mut Input<'_>) -> Parsed<()> {
    take_while(0.., char::is_whitespace).void().parse_next(input)
}
