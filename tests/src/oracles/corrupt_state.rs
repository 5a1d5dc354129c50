//! What becomes of a saved state that somebody has written into.

use serde_json::{Number, Value, json};

use super::Script;

/// Numbers about which something changes in one field or another.
const NUMBERS: [u64; 16] =
    [0, 2, 11, 15, 64, 79, 100, 128, 143, 256, 0xffff, 0x8000, 0x100000, 0x40000000, 0x80000000, 0xffffffff];

/// What follows a key's name that is to be there twice.
const AGAIN: &str = "#\"";

/// A saved state, as text, into which somebody may have written.
#[derive(Debug)]
pub struct Saved {
    /// The text.
    pub text: String,
    /// Whether it is as it was saved.
    pub is_intact: bool,
    /// Whether a field is missing, there twice, unknown or of another type, so that no state can be read.
    pub is_malformed: bool,
}

impl Saved {
    /// Writes what the script says into a state: other values, then something of another form, or any byte.
    #[must_use]
    pub fn corrupt(state: &Value, script: &mut Script<'_>) -> Self {
        let before = state.to_string();
        let mut written = state.clone();
        for _ in 0..script.below(4) {
            change_value(&mut written, script);
        }
        let kind = script.byte() % 4;
        if kind == 1 {
            change_form(&mut written, script);
        }
        let mut text = written.to_string().replace(AGAIN, "\"");
        if kind == 2 {
            change_text(&mut text, script);
        }
        Self { is_intact: text == before, is_malformed: kind == 1, text }
    }
}

/// The children of a value.
fn children(value: &mut Value) -> Vec<&mut Value> {
    match value {
        Value::Object(fields) => fields.values_mut().collect(),
        Value::Array(items) => items.iter_mut().collect(),
        _ => Vec::new(),
    }
}

/// Another value of the same type, somewhere.
fn change_value(value: &mut Value, script: &mut Script<'_>) {
    match value {
        Value::Bool(flag) => *flag = !*flag,
        Value::Number(number) => *number = other_number(number.as_u64().unwrap_or(0), script),
        _ => {
            let mut children = children(value);
            if !children.is_empty() {
                change_value(children.swap_remove(script.below(children.len())), script);
            }
        }
    }
}

fn other_number(number: u64, script: &mut Script<'_>) -> Number {
    let near = if script.byte().is_multiple_of(4) { number } else { script.choose(&NUMBERS) };
    match script.byte() % 6 {
        0..=2 => near,
        3 => near.wrapping_add(1),
        4 => near.wrapping_sub(1),
        _ => near ^ 1 << script.below(64),
    }
    .into()
}

/// Another form, somewhere.
fn change_form(value: &mut Value, script: &mut Script<'_>) {
    let mut below = children(value);
    if !below.is_empty() && !script.byte().is_multiple_of(4) {
        return change_form(below.swap_remove(script.below(below.len())), script);
    }
    match (value, script.byte() % 4) {
        (Value::Object(fields), 0) => {
            let key = fields.keys().nth(script.below(fields.len())).cloned();
            key.and_then(|key| fields.remove(&key));
        }
        (Value::Object(fields), 1) => {
            let twice = fields.iter().nth(script.below(fields.len()));
            if let Some((key, value)) = twice.map(|(key, value)| (format!("{key}#"), value.clone())) {
                fields.insert(key, value);
            }
        }
        (Value::Object(fields), 2) => drop(fields.insert("unknown".to_owned(), json!(0))),
        (Value::Array(items), 0) => drop(items.pop()),
        (Value::Array(items), 1) => items.extend(items.first().cloned()),
        // None of these is of any field's type.
        (value, kind) => {
            *value = vec![json!(null), json!("text"), json!(1.5), json!(-1)].swap_remove(usize::from(kind))
        }
    }
}

/// Any byte of the text is another one that it may have.
fn change_text(text: &mut String, script: &mut Script<'_>) {
    let at = usize::from(script.short()) % text.len();
    let other = script.choose(&["0", "9", "-", ".", "e", "\"", ",", ":", "{", "}", "[", "]", "n", " ", ""]);
    text.replace_range(at..=at, other);
}
