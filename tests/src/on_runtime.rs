//! The async client with the blocking one's methods, so that both pass the same tests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use scx_vsock::client::{AsyncSchedStatsClient, AsyncSchedStatsClientBuilder, Reading, Statistics};
use scx_vsock::stats::{Meta, SchedExt};
use scx_vsock::{Connect, RunControl, SchedStatsError, StatsRequest, StatsResponse};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Runtime;

/// An async client, and a runtime on which each call is run to its end.
#[derive(Clone)]
pub struct OnRuntime {
    client: AsyncSchedStatsClient,
    runtime: Arc<Runtime>,
}

impl fmt::Debug for OnRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(f)
    }
}

/// Builds an [`OnRuntime`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct OnRuntimeBuilder {
    builder: AsyncSchedStatsClientBuilder,
}

impl OnRuntimeBuilder {
    /// Sets how long each call may take.
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { builder: self.builder.deadline(deadline) }
    }

    /// Sets the run whose stops end the calls.
    pub fn control(self, control: &RunControl) -> Self {
        Self { builder: self.builder.control(control) }
    }

    /// Builds the client and its runtime.
    ///
    /// # Panics
    ///
    /// When there is no descriptor or thread left.
    #[must_use]
    pub fn build(self) -> OnRuntime {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        OnRuntime { client: self.builder.build(), runtime: Arc::new(runtime.expect("a runtime")) }
    }
}

#[allow(clippy::missing_errors_doc, reason = "they are the client's own methods")]
impl OnRuntime {
    /// Begins to build a client.
    pub fn builder(endpoint: impl Connect + 'static) -> OnRuntimeBuilder {
        OnRuntimeBuilder { builder: AsyncSchedStatsClient::builder(endpoint) }
    }

    /// Returns a clone whose calls may take this long.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { client: self.client.with_deadline(deadline), runtime: Arc::clone(&self.runtime) }
    }

    /// Returns the number of the newest session.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.client.session()
    }

    /// Returns the client's counters.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.client.statistics()
    }

    /// Calls `request_raw`.
    pub fn request_raw(&self, line: impl AsRef<[u8]>) -> Result<Vec<u8>, SchedStatsError> {
        self.runtime.block_on(self.client.request_raw(line))
    }

    /// Calls `request`.
    pub fn request(&self, request: &StatsRequest) -> Result<StatsResponse, SchedStatsError> {
        self.runtime.block_on(self.client.request(request))
    }

    /// Calls `stats`.
    pub fn stats(&self, args: &[(&str, &str)]) -> Result<Value, SchedStatsError> {
        self.runtime.block_on(self.client.stats(args))
    }

    /// Calls `stats_meta`.
    pub fn stats_meta(&self) -> Result<Value, SchedStatsError> {
        self.runtime.block_on(self.client.stats_meta())
    }

    /// Calls `meta`.
    pub fn meta(&self) -> Result<Meta, SchedStatsError> {
        self.runtime.block_on(self.client.meta())
    }

    /// Calls `stats_as`.
    pub fn stats_as<T: DeserializeOwned>(&self, args: &[(&str, &str)]) -> Result<T, SchedStatsError> {
        self.runtime.block_on(self.client.stats_as(args))
    }

    /// Calls `read`.
    pub fn read<T: DeserializeOwned>(&self, args: &[(&str, &str)]) -> Result<Reading<T>, SchedStatsError> {
        self.runtime.block_on(self.client.read(args))
    }

    /// Calls `wait_for_agent`.
    pub fn wait_for_agent(&self, deadline: Duration) -> Result<(), SchedStatsError> {
        self.runtime.block_on(self.client.wait_for_agent(deadline))
    }

    /// Calls `agent_version`.
    pub fn agent_version(&self) -> Result<Option<String>, SchedStatsError> {
        self.runtime.block_on(self.client.agent_version())
    }

    /// Calls `wait_for_scheduler`.
    pub fn wait_for_scheduler(&self, deadline: Duration) -> Result<(), SchedStatsError> {
        self.runtime.block_on(self.client.wait_for_scheduler(deadline))
    }

    /// Calls `sched_ext`.
    pub fn sched_ext(&self) -> Result<SchedExt, SchedStatsError> {
        self.runtime.block_on(self.client.sched_ext())
    }
}
