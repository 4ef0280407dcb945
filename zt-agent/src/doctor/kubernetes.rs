// SPDX-License-Identifier: Apache-2.0
//! The cluster: its API, and the container runtime that has containers wait for their identities.

use std::path::Path;
use std::time::Duration;

use super::finding::Finding;
use crate::config::{Config, IdentitySource, PolicySource};
use crate::kubernetes::{Client, ClientError};

/// How long the API may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at what the configuration has to do with a cluster.
pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let wanted =
        config.policy_source == PolicySource::Kubernetes || config.identity.has(IdentitySource::Kubernetes);
    let answer = if wanted { Some(ask(config).await) } else { None };
    vec![
        api(answer.as_ref()),
        runtime(config.identity.nri_socket.as_deref()),
    ]
}

async fn ask(config: &Config) -> Result<String, ClientError> {
    let client = Client::new(config.kubeconfig.as_deref(), PATIENCE).await?;
    client.release().await
}

fn api(answer: Option<&Result<String, ClientError>>) -> Finding {
    const CHECK: &str = "kubernetes.api";
    match answer {
        None => Finding::not_applicable(
            CHECK,
            "nothing comes from Kubernetes (`identity.source`, `policySource`)",
        ),
        Some(Ok(release)) => Finding::ok(CHECK, format!("the API server answers, Kubernetes {release}")),
        Some(Err(error)) => Finding::failed(
            CHECK,
            error.to_string(),
            "docs/kubernetes.md (What is asked of the API); the service account is the pod's: run this in the agent's container",
        ),
    }
}

fn runtime(socket: Option<&Path>) -> Finding {
    const CHECK: &str = "nri.socket";
    match socket {
        None => Finding::not_applicable(
            CHECK,
            "containers do not wait for their identities (`identity.nri.socket`)",
        ),
        Some(socket) if socket.exists() => Finding::ok(CHECK, format!("{} is there", socket.display())),
        Some(socket) => Finding::failed(
            CHECK,
            format!("{} is not there", socket.display()),
            "enable NRI in the container runtime, and mount the socket's directory: docs/nri.md (What the runtime needs)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[tokio::test]
    async fn a_cluster_matters_where_something_comes_from_it() {
        let mut config = Config::default();
        let found = look(&config).await;
        assert!(
            found
                .iter()
                .all(|finding| finding.status == Status::NotApplicable),
            "{found:?}"
        );
        config.policy_source = PolicySource::Kubernetes;
        config.kubeconfig = Some("/nowhere/kubeconfig".into());
        config.identity.nri_socket = Some("/nowhere/nri.sock".into());
        let found = look(&config).await;
        assert_eq!([found[0].status, found[1].status], [Status::Failed; 2]);
        assert!(found[0].found.contains("/nowhere/kubeconfig"), "{found:?}");
        assert_eq!(api(Some(&Ok("v1.33.0".to_owned()))).status, Status::Ok);
    }
}
