//! How deep JSON may nest.

use serde_json::Value;

use super::reason::MissingStatsReason;

/// Arrays and objects that may stand inside each other in a request, in an answer, and in the stats or the error's `args`
/// of a recording, which are parts of an answer.
pub const MAX_JSON_DEPTH: usize = scx_vsock_wire::limits::MAX_JSON_DEPTH;

/// Returns whether a text nests deeper than `max` levels. It need not be valid JSON.
pub(crate) fn nests_deeper_than(json: &[u8], max: usize) -> bool {
    opens_more_than(json, max) && depth_passes(json, max)
}

/// Whether a text has more opening brackets than `max`, in strings or not. Most lines have fewer, which takes a fraction of
/// the time to see.
fn opens_more_than(json: &[u8], max: usize) -> bool {
    /// Bytes between looks at the sum.
    const CHUNK: usize = 1024;
    let mut opened = 0;
    json.chunks(CHUNK).any(|chunk| {
        opened += chunk.iter().filter(|&&byte| matches!(byte, b'[' | b'{')).count();
        opened > max
    })
}

/// Bytes that are looked at together. Most such blocks have no bracket.
const BLOCK: usize = 32;

/// Bytes that are looked at together in a block that has one.
const WORD: usize = 8;

fn depth_passes(json: &[u8], max: usize) -> bool {
    let (blocks, rest) = json.as_chunks::<BLOCK>();
    let mut scan = Scan { max, depth: 0, place: Place::Outside };
    blocks.iter().any(|block| scan.passes_in_block(block)) || scan.passes_in(rest)
}

/// Where in a text the next byte is.
#[derive(Clone, Copy)]
enum Place {
    Outside,
    InString,
    AfterBackslash,
}

/// The depth up to a byte of a text.
struct Scan {
    max: usize,
    depth: usize,
    place: Place,
}

impl Scan {
    /// Reads a block. Returns whether the depth passes its limit there.
    fn passes_in_block(&mut self, block: &[u8; BLOCK]) -> bool {
        let (words, _) = block.as_chunks::<WORD>();
        !self.skips(block) && words.iter().any(|word| !self.skips(word) && self.passes_in(word))
    }

    /// Reads bytes without brackets and backslashes. Returns false, and has read none, if there are others.
    fn skips<const BYTES: usize>(&mut self, bytes: &[u8; BYTES]) -> bool {
        let (mut special, mut quotes) = (0u8, 0u8);
        // Compilers make vector instructions of this, as it stands. The bit that is cleared is what `[\]` and `{|}` differ in.
        for &byte in bytes {
            special |= u8::from((byte & !0x20).wrapping_sub(b'[') <= b']' - b'[');
            quotes += u8::from(byte == b'"');
        }
        match self.place {
            Place::Outside | Place::InString if special == 0 => {
                if quotes % 2 == 1 {
                    self.place = if matches!(self.place, Place::Outside) { Place::InString } else { Place::Outside };
                }
                true
            }
            _ => false,
        }
    }

    /// Reads some bytes. Returns whether the depth passes its limit there.
    fn passes_in(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            match (self.place, byte) {
                (Place::Outside, b'"') | (Place::AfterBackslash, _) => self.place = Place::InString,
                (Place::InString, b'"') => self.place = Place::Outside,
                (Place::InString, b'\\') => self.place = Place::AfterBackslash,
                (Place::Outside, b'[' | b'{') if self.depth == self.max => return true,
                (Place::Outside, b'[' | b'{') => self.depth += 1,
                (Place::Outside, b']' | b'}') => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        false
    }
}

/// Returns whether stats, or the `args` of the error in their place, nest deeper than [`MAX_JSON_DEPTH`].
pub(crate) fn nest_too_deep(stats: &Result<Value, MissingStatsReason>) -> bool {
    match stats {
        Ok(value)
        | Err(
            MissingStatsReason::SchedulerError { args: value, .. } | MissingStatsReason::MissingResp { args: value },
        ) => is_deeper_than(value, MAX_JSON_DEPTH),
        Err(_) => false,
    }
}

/// Returns whether a value nests deeper than `max`; takes as much stack as it nests, at most `max` levels.
fn is_deeper_than(value: &Value, max: usize) -> bool {
    let mut children: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(elements) => Box::new(elements.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return false,
    };
    max.checked_sub(1).is_none_or(|max| children.any(|child| is_deeper_than(child, max)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn nested(depth: usize) -> Value {
        (0..depth).fold(json!(1), |inner, level| if level % 2 == 0 { json!([0, inner]) } else { json!({ "a": inner }) })
    }

    #[test]
    fn brackets_in_texts_are_no_depth() {
        assert!(!nests_deeper_than(br#"{"a":"[[[[","b\"[[[":["\\"]}"#, 2));
        assert!(nests_deeper_than(br#"{"a":[[1]]}"#, 2));
        assert!(!nests_deeper_than(br#"{"a":[1],"b":[{}]}"#, 3));
        assert!(!nests_deeper_than(b"[][][][][]", 1) && nests_deeper_than(b"]][[", 1));
    }

    proptest! {
        #[test]
        fn the_depth_of_a_text_is_that_of_each_byte(
            text in proptest::collection::vec(prop::sample::select(b"[]{}\"\\\"|<a,:1\xdb\xfb\xa2".as_slice()), 0..200),
            plain in proptest::collection::vec(prop::sample::select(b"a\",".as_slice()), 0..100),
            max in 0usize..8,
        ) {
            let text = [&text[..], &plain, &text].concat();
            let mut scan = Scan { max, depth: 0, place: Place::Outside };
            prop_assert_eq!(depth_passes(&text, max), scan.passes_in(&text));
        }
    }

    #[test]
    fn depth_counts_arrays_and_objects() {
        for depth in 1..100 {
            // Longer than what is counted at once.
            let text = format!("{}{}", " ".repeat(1_500), nested(depth));
            assert!(nests_deeper_than(text.as_bytes(), depth - 1) && !nests_deeper_than(text.as_bytes(), depth));
        }
        assert!(!is_deeper_than(&json!("scalar"), 0) && is_deeper_than(&json!([]), 0));
        for depth in 1..100 {
            assert!(is_deeper_than(&nested(depth), depth - 1) && !is_deeper_than(&nested(depth), depth), "{depth}");
        }
    }
}
