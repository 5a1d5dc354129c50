//! What a guest's kernel says about sched_ext.

use std::collections::BTreeMap;

/// What a guest's kernel says about sched_ext: its files in `/sys/kernel/sched_ext`, and its newest messages about it.
///
/// The texts are the guest's. A key that the kernel lacks is `None`.
///
/// ```
/// use scx_vsock::stats::SchedExt;
///
/// let said: SchedExt = serde_json::from_str(r#"{"state":"disabled","enable_seq":"3","uptime_us":9120627}"#)?;
/// assert_eq!(said.state.as_deref(), Some("disabled"));
/// assert_eq!(said.events, None);
/// # Ok::<(), serde_json::Error>(())
/// ```
pub type SchedExt = scx_vsock_wire::SchedExt<String, BTreeMap<String, String>, Vec<KernelMessage>>;

/// A message of the guest's kernel about sched_ext.
pub type KernelMessage = scx_vsock_wire::KernelMessage<String>;
