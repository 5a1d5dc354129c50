//! The answer of a scheduler: the second line of scx_stats.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A scheduler's answer as it came, an error or stats.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StatsResponse {
    /// 0, or why there are no stats.
    #[serde(default)]
    pub errno: i32,
    /// `{"resp":...}` by custom; null where the server sent none.
    #[serde(default)]
    pub args: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_without_its_fields_has_their_defaults() {
        assert_eq!(serde_json::from_str::<StatsResponse>("{}").unwrap(), StatsResponse { errno: 0, args: Value::Null });
    }
}
