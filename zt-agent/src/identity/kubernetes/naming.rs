// SPDX-License-Identifier: Apache-2.0
//! From a pod to its SPIFFE ID: `identity.template`.

use std::collections::HashMap;
use std::fmt;

use super::Pod;
use crate::spiffe_id::{SpiffeId, SpiffeIdError};

/// Names that are kept, so that pods that share one hold it once.
const MOST_KEPT: usize = 65_536;
/// What stands in a static pod's ID where the name of a service account would: no service account can be called so.
const STATIC: &str = "_static.";

/// How a SPIFFE ID is made of a namespace and a service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// There is something in braces that is not known.
    #[error("has `{{{0}}}`; known are {{trustDomain}}, {{cluster}}, {{namespace}} and {{serviceAccount}}")]
    Unknown(String),
    /// A brace has no other.
    #[error("has a brace without its other one")]
    Brace,
    /// It would give all pods of the cluster one name.
    #[error(
        "must have {{namespace}} and {{serviceAccount}}: without them different workloads would have one identity"
    )]
    Same,
    /// What comes out is no SPIFFE ID.
    #[error("does not make SPIFFE IDs: {0}")]
    Id(#[from] SpiffeIdError),
    /// What comes out is of another trust domain than this node's.
    #[error("makes IDs of the trust domain `{made}`, and `trustDomain` is `{wanted}`")]
    TrustDomain {
        /// The one that comes out.
        made: String,
        /// This node's.
        wanted: String,
    },
}

impl Template {
    /// The one that holds unless another is configured.
    pub const DEFAULT: &str = "spiffe://{trustDomain}/{cluster}/{namespace}/{serviceAccount}";

    /// Checks a template. What it makes is checked by [`Template::fixed`].
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut rest = text;
        let mut found = Vec::new();
        while let Some(open) = rest.find(['{', '}']) {
            let named = rest[open..].strip_prefix('{').ok_or(TemplateError::Brace)?;
            let (name, after) = named.split_once('}').ok_or(TemplateError::Brace)?;
            if !["trustDomain", "cluster", "namespace", "serviceAccount"].contains(&name) {
                return Err(TemplateError::Unknown(name.to_owned()));
            }
            found.push(name);
            rest = after;
        }
        if !found.contains(&"namespace") || !found.contains(&"serviceAccount") {
            return Err(TemplateError::Same);
        }
        // Two of them with nothing between could be split in more ways than one: `a` and `bc` are not `ab` and `c`.
        let in_a_segment = |segment: &str| segment.matches('{').count() > 1;
        if text.split('/').any(in_a_segment) {
            return Err(TemplateError::Same);
        }
        Ok(Self(text.to_owned()))
    }

    /// Fills in what is the same for all pods.
    pub fn fixed(&self, trust_domain: &str, cluster: &str) -> Result<Naming, TemplateError> {
        let text = self
            .0
            .replace("{trustDomain}", trust_domain)
            .replace("{cluster}", cluster);
        let naming = Naming {
            text,
            kept: HashMap::new(),
        };
        let made = SpiffeId::parse(&naming.text_of("namespace", "account"))?;
        if made.trust_domain() != trust_domain {
            return Err(TemplateError::TrustDomain {
                made: made.trust_domain().to_owned(),
                wanted: trust_domain.to_owned(),
            });
        }
        Ok(naming)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Template {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names pods.
#[derive(Clone, Debug)]
pub struct Naming {
    text: String,
    kept: HashMap<String, SpiffeId>,
}

impl Naming {
    /// Who a pod is; `None` where its names make no SPIFFE ID.
    pub(super) fn name(&mut self, pod: &Pod) -> Option<SpiffeId> {
        let account = if pod.service_account.is_empty() {
            // Only static pods have no service account. Each is somebody by itself: the name of the file without the node's.
            pod.mirror.as_ref()?;
            let own = pod.name.strip_suffix(&pod.node)?.strip_suffix('-')?;
            format!("{STATIC}{}", Some(own).filter(|own| is_name(own))?)
        } else {
            Some(&pod.service_account).filter(|name| is_name(name))?.clone()
        };
        if !is_name(&pod.namespace) {
            return None;
        }
        let text = self.text_of(&pod.namespace, &account);
        if let Some(kept) = self.kept.get(&text) {
            return Some(kept.clone());
        }
        let id = SpiffeId::parse(&text).ok()?;
        if self.kept.len() >= MOST_KEPT {
            self.kept.clear();
        }
        self.kept.insert(text, id.clone());
        Some(id)
    }

    /// A static pod of which nothing is known but that it is one.
    pub fn some_static_pod(&mut self) -> Option<SpiffeId> {
        self.name(&Pod {
            namespace: super::STATIC_NAMESPACE.to_owned(),
            name: "unknown-node".to_owned(),
            node: "node".to_owned(),
            mirror: Some(String::new()),
            ..Pod::default()
        })
    }

    /// Its text, with what is the same for all filled in.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    fn text_of(&self, namespace: &str, account: &str) -> String {
        // At once: what one of them says is not taken for a place of the other.
        let mut out = String::with_capacity(self.text.len() + namespace.len() + account.len());
        let mut rest = self.text.as_str();
        while let Some(open) = rest.find('{') {
            out.push_str(&rest[..open]);
            rest = &rest[open..];
            if let Some(after) = rest.strip_prefix("{namespace}") {
                out.push_str(namespace);
                rest = after;
            } else if let Some(after) = rest.strip_prefix("{serviceAccount}") {
                out.push_str(account);
                rest = after;
            } else {
                out.push('{');
                rest = &rest[1..];
            }
        }
        out.push_str(rest);
        out
    }
}

/// Whether a text can be the name of an object: that of a DNS subdomain.
pub(super) fn is_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.len() <= 253 && text.bytes().all(legal) && edge(text.bytes().next()) && edge(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, account: &str) -> Pod {
        Pod {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            ..Pod::default()
        }
    }

    fn naming(template: &str) -> Naming {
        let template = Template::parse(template).expect("a template");
        template.fixed("hanzo.ai", "hanzo-k8s").expect("it makes IDs")
    }

    #[test]
    fn a_pod_is_its_namespace_and_its_service_account() {
        let mut standard = naming(Template::DEFAULT);
        let id = standard.name(&pod("hanzo", "iam")).expect("a name");
        assert_eq!(id.as_str(), "spiffe://hanzo.ai/hanzo-k8s/hanzo/iam");
        let mut other = naming("spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}");
        let id = other.name(&pod("hanzo", "iam")).expect("a name");
        assert_eq!(id.as_str(), "spiffe://hanzo.ai/ns/hanzo/sa/iam");
    }

    #[test]
    fn names_that_would_make_another_id_make_none() {
        let mut naming = naming(Template::DEFAULT);
        for (namespace, account) in [
            ("a/b", "c"),
            ("a", "b/c"),
            ("..", "a"),
            ("a", ".."),
            ("", "a"),
            ("a", ""),
            ("A", "a"),
            ("a", "b c"),
            ("{serviceAccount}", "a"),
            ("a", "_static.b"),
            ("a", "ü"),
            ("a", "b\n"),
        ] {
            assert_eq!(
                naming.name(&pod(namespace, account)),
                None,
                "{namespace} {account}"
            );
        }
        assert_eq!(naming.name(&pod(&"a".repeat(254), "b")), None);
    }

    #[test]
    fn a_static_pod_is_what_no_service_account_can_be() {
        let mut naming = naming(Template::DEFAULT);
        let mut pod = Pod {
            name: "etcd-node-1".to_owned(),
            node: "node-1".to_owned(),
            mirror: Some("abc".to_owned()),
            ..pod("kube-system", "")
        };
        let id = naming.name(&pod).expect("a name");
        assert_eq!(
            id.as_str(),
            "spiffe://hanzo.ai/hanzo-k8s/kube-system/_static.etcd"
        );
        pod.mirror = None;
        assert_eq!(naming.name(&pod), None, "others have a service account");
        let some = naming.some_static_pod().expect("a name");
        assert_eq!(
            some.as_str(),
            "spiffe://hanzo.ai/hanzo-k8s/kube-system/_static.unknown"
        );
    }

    #[test]
    fn templates_that_would_mix_workloads_up_are_refused() {
        let refused = |text: &str| Template::parse(text).expect_err(text);
        assert_eq!(
            refused("spiffe://{trustDomain}/{pod}"),
            TemplateError::Unknown("pod".to_owned())
        );
        assert_eq!(refused("spiffe://{trustDomain}/{namespace}"), TemplateError::Same);
        assert_eq!(
            refused("spiffe://{trustDomain}/{namespace}{serviceAccount}"),
            TemplateError::Same
        );
        assert_eq!(
            refused("spiffe://{trustDomain}/{namespace/{serviceAccount}"),
            TemplateError::Unknown("namespace/{serviceAccount".to_owned())
        );
        assert_eq!(refused("spiffe://x}/{namespace}"), TemplateError::Brace);
        let elsewhere =
            Template::parse("spiffe://other.example/{namespace}/{serviceAccount}").expect("syntax");
        assert!(matches!(
            elsewhere.fixed("hanzo.ai", "c"),
            Err(TemplateError::TrustDomain { .. })
        ));
        let none = Template::parse("http://{trustDomain}/{namespace}/{serviceAccount}").expect("syntax");
        assert!(matches!(none.fixed("hanzo.ai", "c"), Err(TemplateError::Id(_))));
    }
}
