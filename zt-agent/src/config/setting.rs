// SPDX-License-Identifier: Apache-2.0
//! Every setting, once: its key in the file, its environment variable, its flag, and how its value is read.

use super::{Config, apply, audit, callers, drain, modes, nri, peers};
use crate::yaml::{Node, Value};

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The key in the file, such as `audit.dsn`.
    pub key: &'static str,
    /// The environment variable, such as `ZT_AUDIT_DSN`.
    pub variable: &'static str,
    /// The flag without its dashes, such as `audit-dsn`.
    pub flag: &'static str,
    /// What the flag's value is called in `--help`.
    pub value: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
    pub(super) apply: fn(&mut Config, Raw<'_>) -> Result<(), String>,
}

/// A value as it was written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Raw<'a> {
    /// In the file.
    Node(&'a Node),
    /// In a variable or a flag; lists are separated by commas.
    Text(&'a str),
}

impl<'a> Raw<'a> {
    /// The value as one text.
    pub(super) fn text(self) -> Result<&'a str, String> {
        let text = match self {
            Self::Text(text) => text,
            Self::Node(Node {
                value: Value::Text(text),
                ..
            }) => text,
            Self::Node(Node {
                value: value @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_)),
                ..
            }) => {
                return Err(format!("must be text, not {}: put it in quotes", value.kind()));
            }
            Self::Node(node) => return Err(format!("must be text, not {}", node.value.kind())),
        };
        if text.trim().is_empty() {
            Err("must not be empty".to_owned())
        } else {
            Ok(text.trim())
        }
    }

    /// The value as a list of texts; a single text is a list of one.
    pub(super) fn list(self) -> Result<Vec<&'a str>, String> {
        match self {
            Self::Text(text) => Ok(text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .collect()),
            Self::Node(Node {
                value: Value::List(items),
                ..
            }) => items.iter().map(|item| Raw::Node(item).text()).collect(),
            Self::Node(_) => self.text().map(|text| vec![text]),
        }
    }

    /// The value as `true` or `false`.
    pub(super) fn flag(self) -> Result<bool, String> {
        match self {
            Self::Node(Node {
                value: Value::Boolean(value),
                ..
            }) => Ok(*value),
            Self::Text("true") => Ok(true),
            Self::Text("false") => Ok(false),
            Self::Text(text) => Err(format!("must be `true` or `false`, not `{text}`")),
            Self::Node(Node {
                value: Value::Text(text),
                ..
            }) => Err(format!("must be `true` or `false`, not `{text}`")),
            Self::Node(node) => Err(format!("must be `true` or `false`, not {}", node.value.kind())),
        }
    }

    /// The value as digits with an optional unit, for numbers and sizes.
    pub(super) fn quantity(self) -> Result<String, String> {
        match self {
            Self::Node(Node {
                value: Value::Integer(number),
                ..
            }) => Ok(number.to_string()),
            Self::Node(Node {
                value: Value::Float(number),
                ..
            }) => Err(format!("`{number}` is not a whole number")),
            other => other.text().map(str::to_owned),
        }
    }
}

macro_rules! settings {
    ($($key:literal, $variable:literal, $flag:literal, $value:literal, $apply:path, $help:literal;)+) => {
        /// Every setting of this version, in the order of the documentation.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: $key, variable: $variable, flag: $flag, value: $value, help: $help, apply: $apply,
        }),+];
    };
}

settings! {
    "cluster", "ZT_CLUSTER", "cluster", "NAME", apply::cluster,
        "Name of the cluster in records [default: hanzo-k8s]";
    "trustDomain", "ZT_TRUST_DOMAIN", "trust-domain", "DOMAIN", apply::trust_domain,
        "SPIFFE trust domain of the workloads [default: hanzo.ai]";
    "node", "ZT_NODE", "node", "NAME", apply::node,
        "Name of this node in records [default: the host's name]";
    "policyPath", "ZT_POLICY_PATH", "policy-path", "PATH", apply::policy_path,
        "Directory of policy files, or one file [default: /etc/zt/policies/]";
    "policySource", "ZT_POLICY_SOURCE", "policy-source", "SOURCE", apply::policy_source,
        "Where policy comes from: directory, engine or kubernetes [default: directory]";
    "engineUrl", "ZT_ENGINE_URL", "engine-url", "URL", apply::engine_url,
        "Policy engine to follow, with policySource engine [default: none]";
    "mode", "ZT_MODE", "mode", "MODE", apply::mode,
        "observe or enforce, for workloads that name no mode [default: observe]";
    "modes", "ZT_MODES", "modes", "ID=MODE,…", modes::modes,
        "Modes by SPIFFE ID or pattern, the first that matches; before mode [default: none]";
    "unknownWorkload", "ZT_UNKNOWN_WORKLOAD", "unknown-workload", "WHAT", apply::unknown_workload,
        "observe or deny managed processes without an identity [default: observe]";
    "handshake", "ZT_HANDSHAKE", "handshake", "WHAT", apply::handshake,
        "auto or off: whether TCP handshakes prove identities, within the node and with peers [default: auto]";
    "packetGuard", "ZT_PACKET_GUARD", "packet-guard", "BOOL", apply::packet_guard,
        "Whether each packet of established connections is looked at, too [default: false]";
    "allowHost", "ZT_ALLOW_HOST", "allow-host", "BOOL", apply::allow_host,
        "Whether this node may reach its workloads [default: true]";
    "allowSelf", "ZT_ALLOW_SELF", "allow-self", "BOOL", apply::allow_self,
        "Whether a workload may reach itself [default: true]";
    "clusterCIDRs", "ZT_CLUSTER_CIDRS", "cluster-cidrs", "CIDR,…", apply::cluster_cidrs,
        "Networks of the cluster: unnamed addresses there are unknown, not world [default: none]";
    "managedCgroup", "ZT_MANAGED_CGROUP", "managed-cgroup", "PATH,…", apply::managed_cgroup,
        "auto (kubepods.slice, kubepods), or cgroups below the cgroup2 mount [default: auto]";
    "bpffs", "ZT_BPFFS", "bpffs", "DIR", apply::bpffs,
        "Where programs and maps are pinned [default: /sys/fs/bpf/zt]";
    "identity.source", "ZT_IDENTITY_SOURCE", "identity-source", "SOURCE,…", apply::identity_source,
        "Where identities come from: file, spire, kubernetes, or several [default: file]";
    "identity.file", "ZT_IDENTITY_FILE", "identity-file", "FILE", apply::identity_file,
        "Workloads of the file source [default: /etc/zt/workloads.yaml]";
    "identity.spireSocket", "ZT_SPIRE_SOCKET", "spire-socket", "PATH", apply::spire_socket,
        "Workload API of the SPIRE agent [default: /run/spire/sockets/agent.sock]";
    "identity.spireAdminSocket", "ZT_SPIRE_ADMIN_SOCKET", "spire-admin-socket", "PATH", apply::spire_admin_socket,
        "Delegated Identity API of the SPIRE agent [default: /run/spire/admin/admin.sock]";
    "identity.template", "ZT_IDENTITY_TEMPLATE", "identity-template", "TEMPLATE", apply::identity_template,
        "SPIFFE IDs of pods [default: spiffe://{trustDomain}/{cluster}/{namespace}/{serviceAccount}]";
    "identity.onExpiry", "ZT_IDENTITY_ON_EXPIRY", "identity-on-expiry", "WHAT", apply::on_expiry,
        "withdraw or hold identities whose SVID was not renewed [default: withdraw]";
    "identity.nri.socket", "ZT_IDENTITY_NRI_SOCKET", "identity-nri-socket", "PATH", nri::socket,
        "NRI socket of the container runtime: containers wait for their identity [default: none]";
    "identity.nri.wait", "ZT_IDENTITY_NRI_WAIT", "identity-nri-wait", "TIME", nri::wait,
        "How long one waits at the most, such as 800ms [default: 1500ms]";
    "identity.peers.listen", "ZT_IDENTITY_PEERS_LISTEN", "identity-peers-listen", "ADDRESS", peers::listen,
        "Where agents of other nodes reach this one [default: 0.0.0.0:8056]";
    "identity.peers.nodes", "ZT_IDENTITY_PEERS_NODES", "identity-peers-nodes", "NAME=ADDRESS,…", peers::nodes,
        "The other nodes, and where their agents listen [default: none]";
    "identity.peers.id", "ZT_IDENTITY_PEERS_ID", "identity-peers-id", "ID", peers::id,
        "SPIFFE ID of a node's agent [default: spiffe://{trustDomain}/{cluster}/zt-system/zt-agent/nodes/{node}]";
    "identity.peers.hold", "ZT_IDENTITY_PEERS_HOLD", "identity-peers-hold", "TIME", peers::hold,
        "How long a node is believed that is no longer heard [default: 5m]";
    "identity.peers.pods", "ZT_IDENTITY_PEERS_PODS", "identity-peers-pods", "WHEN", peers::pods,
        "auto or always: when the Kubernetes API is asked about pods of other nodes, too [default: always]";
    "audit.dsn", "ZT_AUDIT_DSN", "audit-dsn", "DSN", audit::dsn,
        "Database of records, sqlite:// or postgres:// [default: sqlite:///var/lib/zt/audit.db]";
    "audit.readDsn", "ZT_AUDIT_READ_DSN", "audit-read-dsn", "DSN", audit::read_dsn,
        "With postgres://: the database with a login that reads [default: audit.dsn]";
    "audit.maintainDsn", "ZT_AUDIT_MAINTAIN_DSN", "audit-maintain-dsn", "DSN", audit::maintain_dsn,
        "With postgres://: the database with a login that makes and drops partitions [default: audit.dsn]";
    "audit.keys", "ZT_AUDIT_KEYS", "audit-keys", "DIR", audit::keys,
        "Keys that checkpoints of the trail are signed with [default: keys beside the database]";
    "audit.spool", "ZT_AUDIT_SPOOL", "audit-spool", "FILE", audit::spool,
        "With postgres://: where records wait until they are shipped [default: /var/lib/zt/spool.db]";
    "audit.whenFull", "ZT_AUDIT_WHEN_FULL", "audit-when-full", "WHICH", audit::when_full,
        "With postgres://: oldest or newest records are lost when the spool is full [default: oldest]";
    "audit.sync", "ZT_AUDIT_SYNC", "audit-sync", "WHEN", audit::sync,
        "second or batch: what the kernel decides is on disk within a second, or with each batch; answers of the API always wait for the disk [default: second]";
    "audit.maxDiskBytes", "ZT_AUDIT_MAX_DISK_BYTES", "audit-max-disk-bytes", "SIZE", audit::max_disk_bytes,
        "Size beyond which the oldest records go, such as 2GiB [default: 2GiB]";
    "audit.apiShare", "ZT_AUDIT_API_SHARE", "audit-api-share", "PERCENT", audit::api_share,
        "Percent of that which evaluations may take [default: 50; 100 at an engine]";
    "audit.retentionDays", "ZT_AUDIT_RETENTION_DAYS", "audit-retention-days", "DAYS", audit::retention_days,
        "Age beyond which records go [default: 365]";
    "api.listen", "ZT_API_LISTEN", "api-listen", "ADDRESS", apply::api_listen,
        "Address of the API; not loopback only with api.tls [default: 127.0.0.1:8054]";
    "api.health", "ZT_API_HEALTH", "api-health", "ADDRESS", apply::api_health,
        "Address of health and metrics [default: 127.0.0.1:8055]";
    "api.socket", "ZT_API_SOCKET", "api-socket", "PATH", apply::api_socket,
        "Unix socket of the API, or none [default: /run/zt/agent.sock]";
    "api.tls", "ZT_API_TLS", "api-tls", "spire", apply::api_tls,
        "spire: the certificate and the callers' authorities are SPIRE's [default: none]";
    "api.tls.cert", "ZT_API_TLS_CERT", "api-tls-cert", "FILE", apply::api_tls_cert,
        "Certificate of the API, PEM [default: none]";
    "api.tls.key", "ZT_API_TLS_KEY", "api-tls-key", "FILE", apply::api_tls_key,
        "Its private key, PEM [default: none]";
    "api.tls.clientCa", "ZT_API_TLS_CLIENT_CA", "api-tls-client-ca", "FILE", apply::api_tls_client_ca,
        "Who issues the certificates of callers, PEM [default: none]";
    "api.callers", "ZT_API_CALLERS", "api-callers", "ID=ROLE,…", callers::api_callers,
        "Who may come over TLS as evaluate, follow, read or admin [default: nobody]";
    "api.rateLimit", "ZT_API_RATE_LIMIT", "api-rate-limit", "NUMBER", apply::api_rate_limit,
        "Questions a second that one caller may ask; a batch is as many as it has [default: 100000]";
    "api.drain", "ZT_API_DRAIN", "api-drain", "TIME", drain::drain,
        "How long an engine that is to end goes on answering, not ready [default: 5s]";
    "kubernetes.kubeconfig", "ZT_KUBECONFIG", "kubeconfig", "FILE", apply::kubeconfig,
        "How the Kubernetes API is reached [default: the pod's service account, or KUBECONFIG]";
}
