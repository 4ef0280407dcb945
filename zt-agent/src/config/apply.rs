// SPDX-License-Identifier: Apache-2.0
//! How each setting's value is read. An error says what is wrong with the value; its place is added by the caller.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use hyper::Uri;
use ipnet::IpNet;

use super::setting::Raw;
use super::{Config, Handshake, IdentitySource, OnExpiry, PolicySource, UnknownWorkload};
use crate::cgroup::ManagedCgroup;
use crate::identity::Mode;
use crate::identity::kubernetes::Template;
use crate::spiffe_id::check_trust_domain;
use crate::yaml::Value;

/// Done, or what is wrong with the value.
pub(super) type Applied = Result<(), String>;

const SOURCE_NAMES: &str = "`file`, `spire`, `kubernetes`, `peers` or several of them";

pub(super) fn cluster(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.cluster = name(raw)?;
    Ok(())
}

pub(super) fn trust_domain(config: &mut Config, raw: Raw<'_>) -> Applied {
    let text = raw.text()?;
    if text.contains("://") || text.contains('/') {
        return Err(format!("is the bare domain, such as `hanzo.ai`, not `{text}`"));
    }
    check_trust_domain(text).map_err(|error| error.to_string())?;
    text.clone_into(&mut config.trust_domain);
    Ok(())
}

pub(super) fn node(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.node = name(raw)?;
    Ok(())
}

pub(super) fn policy_path(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.policy_path = absolute(raw)?;
    Ok(())
}

pub(super) fn policy_source(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.policy_source = match raw.text()? {
        "directory" => PolicySource::Directory,
        "engine" => PolicySource::Engine,
        "kubernetes" => PolicySource::Kubernetes,
        other => {
            return Err(format!(
                "must be `directory`, `engine` or `kubernetes`, not `{other}`"
            ));
        }
    };
    Ok(())
}

pub(super) fn engine_url(config: &mut Config, raw: Raw<'_>) -> Applied {
    if matches!(raw, Raw::Node(node) if node.value == Value::Null) {
        config.engine_url = None;
        return Ok(());
    }
    let text = raw.text()?.trim_end_matches('/');
    let uri: Uri = text.parse().map_err(|_| no_engine(text))?;
    let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return Err(no_engine(text));
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let here = bare.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback());
    match scheme {
        "http" | "https"
            if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('@') =>
        {
            Err(no_engine(text))
        }
        "http" if !here => Err(format!(
            "`{text}` is not on this machine: without TLS anybody on the way could put their policy in force; use https"
        )),
        "http" | "https" => {
            config.engine_url = Some(text.to_owned());
            Ok(())
        }
        _ => Err(no_engine(text)),
    }
}

fn no_engine(text: &str) -> String {
    format!("`{text}` is not the URL of a policy engine, such as `https://engine.example.org:8054`")
}

pub(super) fn mode(config: &mut Config, raw: Raw<'_>) -> Applied {
    let text = raw.text()?;
    config.mode =
        Mode::from_name(text).ok_or_else(|| format!("must be `observe` or `enforce`, not `{text}`"))?;
    Ok(())
}

pub(super) fn unknown_workload(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.unknown_workload = match raw.text()? {
        "observe" => UnknownWorkload::Observe,
        "deny" => UnknownWorkload::Deny,
        other => return Err(format!("must be `observe` or `deny`, not `{other}`")),
    };
    Ok(())
}

pub(super) fn handshake(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.handshake = match raw.text()? {
        "auto" => Handshake::Auto,
        "off" => Handshake::Off,
        other => return Err(format!("must be `auto` or `off`, not `{other}`")),
    };
    Ok(())
}

pub(super) fn packet_guard(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.packet_guard = raw.flag()?;
    Ok(())
}

pub(super) fn allow_host(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.allow_host = raw.flag()?;
    Ok(())
}

pub(super) fn allow_self(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.allow_self = raw.flag()?;
    Ok(())
}

pub(super) fn cluster_cidrs(config: &mut Config, raw: Raw<'_>) -> Applied {
    let parse = |text: &str| -> Result<IpNet, String> {
        let network: IpNet = text
            .parse()
            .map_err(|_| format!("`{text}` is not a network such as `10.0.0.0/8` or `fd00::/8`"))?;
        if network.trunc() == network {
            Ok(network)
        } else {
            Err(format!(
                "`{text}` has bits beyond its prefix; did you mean `{}`?",
                network.trunc()
            ))
        }
    };
    config.cluster_cidrs = raw.list()?.into_iter().map(parse).collect::<Result<_, _>>()?;
    Ok(())
}

pub(super) fn managed_cgroup(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.managed_cgroup = ManagedCgroup::from_names(raw.list()?).map_err(|error| error.to_string())?;
    Ok(())
}

pub(super) fn bpffs(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.bpffs = absolute(raw)?;
    Ok(())
}

pub(super) fn identity_source(config: &mut Config, raw: Raw<'_>) -> Applied {
    let mut sources = Vec::new();
    for name in raw.list()? {
        let source = match name {
            "file" => IdentitySource::File,
            "spire" => IdentitySource::Spire,
            "kubernetes" => IdentitySource::Kubernetes,
            "peers" => IdentitySource::Peers,
            other => return Err(format!("must be {SOURCE_NAMES}, not `{other}`")),
        };
        if sources.contains(&source) {
            return Err(format!("names `{name}` twice"));
        }
        sources.push(source);
    }
    if sources.is_empty() {
        return Err(format!("must name a source: {SOURCE_NAMES}"));
    }
    config.identity.sources = sources;
    Ok(())
}

pub(super) fn spire_socket(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.identity.spire_socket = socket(raw)?;
    Ok(())
}

pub(super) fn spire_admin_socket(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.identity.spire_admin_socket = socket(raw)?;
    Ok(())
}

pub(super) fn identity_template(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.identity.template = Template::parse(raw.text()?).map_err(|error| error.to_string())?;
    Ok(())
}

pub(super) fn kubeconfig(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.kubeconfig = Some(absolute(raw)?);
    Ok(())
}

pub(super) fn on_expiry(config: &mut Config, raw: Raw<'_>) -> Applied {
    let text = raw.text()?;
    config.identity.on_expiry =
        OnExpiry::from_name(text).ok_or_else(|| format!("must be `withdraw` or `hold`, not `{text}`"))?;
    Ok(())
}

pub(super) fn identity_file(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.identity.file = absolute(raw)?;
    Ok(())
}

pub(super) fn api_listen(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.api.listen = socket_address(raw)?;
    Ok(())
}

pub(super) fn api_socket(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.api.socket = match raw {
        Raw::Node(node) if node.value == Value::Null => None,
        _ if raw.text()? == "none" => None,
        _ => Some(absolute(raw)?),
    };
    Ok(())
}

pub(super) fn api_tls(config: &mut Config, raw: Raw<'_>) -> Applied {
    match raw.text()? {
        "spire" => config.api.tls.spire = true,
        other => {
            return Err(format!(
                "must be `spire`, or the files {{cert, key, clientCa}}, not `{other}`"
            ));
        }
    }
    Ok(())
}

pub(super) fn api_tls_cert(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.api.tls.cert = Some(absolute(raw)?);
    Ok(())
}

pub(super) fn api_tls_key(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.api.tls.key = Some(absolute(raw)?);
    Ok(())
}

pub(super) fn api_tls_client_ca(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.api.tls.client_ca = Some(absolute(raw)?);
    Ok(())
}

pub(super) fn api_rate_limit(config: &mut Config, raw: Raw<'_>) -> Applied {
    let text = raw.quantity()?;
    config.api.rate_limit = text
        .parse()
        .map_err(|_| format!("must be a number of questions, at least 1, not `{text}`"))?;
    Ok(())
}

pub(super) fn api_health(config: &mut Config, raw: Raw<'_>) -> Applied {
    config.api.health = socket_address(raw)?;
    Ok(())
}

/// A name that stands in records and metrics.
fn name(raw: Raw<'_>) -> Result<String, String> {
    let text = raw.text()?;
    if text.len() > 253
        || text
            .chars()
            .any(|character| character.is_control() || character.is_whitespace())
    {
        return Err("must be a name of at most 253 characters without spaces".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn absolute(raw: Raw<'_>) -> Result<PathBuf, String> {
    let path = Path::new(raw.text()?);
    if path.is_absolute() {
        Ok(path.to_path_buf())
    } else {
        Err(format!("must be an absolute path, not `{}`", path.display()))
    }
}

/// The path of a Unix socket, also as SPIFFE writes it: `unix:///run/…`.
pub(super) fn socket(raw: Raw<'_>) -> Result<PathBuf, String> {
    let text = raw.text()?;
    let path = text
        .strip_prefix("unix://")
        .or_else(|| text.strip_prefix("unix:"));
    absolute(Raw::Text(path.unwrap_or(text)))
}

pub(super) fn socket_address(raw: Raw<'_>) -> Result<SocketAddr, String> {
    let text = raw.text()?;
    text.parse().map_err(|_| {
        format!("`{text}` is not an address and a port, such as `127.0.0.1:8054` or `[::1]:8054`")
    })
}

/// A number of bytes with an optional unit; `None` if it is not one or does not fit.
pub(super) fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let unit: u64 = match text.get(digits.len()..)?.trim() {
        "" | "B" => 1,
        "KiB" | "Ki" => 1 << 10,
        "MiB" | "Mi" => 1 << 20,
        "GiB" | "Gi" => 1 << 30,
        "TiB" | "Ti" => 1 << 40,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
