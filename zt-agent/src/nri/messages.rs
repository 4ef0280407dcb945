// SPDX-License-Identifier: Apache-2.0
//! The messages of ttrpc and of NRI, with the fields that matter here: all others are skipped when they are read.

use bytes::Bytes;

/// The services of NRI.
pub(super) const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
pub(super) const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// The event of a container that is about to start (`START_CONTAINER`).
pub(super) const START_CONTAINER: i32 = 6;
/// A status of gRPC: there is no such method.
pub(super) const UNIMPLEMENTED: i32 = 12;

/// A call (`ttrpc.Request`).
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Request {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(string, tag = "2")]
    pub(super) method: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) payload: Bytes,
    /// How long the caller waits; 0 where it does not say.
    #[prost(int64, tag = "4")]
    pub(super) timeout_nano: i64,
}

/// An answer (`ttrpc.Response`).
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    /// Without one all is well.
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<RpcStatus>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) payload: Bytes,
}

/// What went wrong (`google.rpc.Status`).
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

/// `Runtime.RegisterPlugin`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RegisterPlugin {
    #[prost(string, tag = "1")]
    pub(super) plugin_name: String,
    /// Two digits: plugins are asked in this order.
    #[prost(string, tag = "2")]
    pub(super) plugin_idx: String,
}

/// `Plugin.Configure`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Configure {
    #[prost(string, tag = "2")]
    pub(super) runtime_name: String,
    #[prost(string, tag = "3")]
    pub(super) runtime_version: String,
    /// How long the runtime waits for an answer, in milliseconds; 0 where it does not say.
    #[prost(int64, tag = "5")]
    pub(super) request_timeout: i64,
}

/// The answer to it: what the plugin wants to be told of, one bit for each event.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Configured {
    #[prost(int32, tag = "2")]
    pub(super) events: i32,
}

/// `Plugin.Synchronize`: what runs already, in one call or several.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Synchronize {
    #[prost(bool, tag = "3")]
    pub(super) more: bool,
}

/// The answer to it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Synchronized {
    #[prost(bool, tag = "2")]
    pub(super) more: bool,
}

/// `Plugin.StartContainer`, of runtimes with NRI 0.12 and later.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StartContainer {
    #[prost(message, optional, tag = "1")]
    pub(super) pod: Option<PodSandbox>,
    #[prost(message, optional, tag = "2")]
    pub(super) container: Option<Container>,
}

/// `Plugin.StateChange`: the same of runtimes before that, and much else.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StateChange {
    #[prost(int32, tag = "1")]
    pub(super) event: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) pod: Option<PodSandbox>,
    #[prost(message, optional, tag = "3")]
    pub(super) container: Option<Container>,
}

/// A pod.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PodSandbox {
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) uid: String,
    #[prost(string, tag = "4")]
    pub(super) namespace: String,
    #[prost(message, optional, tag = "8")]
    pub(super) linux: Option<LinuxPodSandbox>,
}

/// What there is on Linux.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LinuxPodSandbox {
    /// The pod's own cgroup: a path, or with the `systemd` driver the name of a slice.
    #[prost(string, tag = "3")]
    pub(super) cgroup_parent: String,
}

/// A container.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Container {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "3")]
    pub(super) name: String,
}
