// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy network-policy`: the Kubernetes objects that say the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::cli::exit::{Exit, Failure};
use crate::cli::offline::{self, SettingsArgs};
use crate::cli::output::{Format, Output, Tone, line};
use crate::cli::table::{Cell, Table, printable};
use crate::cli::trail::Progress;
use crate::config::Config;
use crate::policy::{self, Difference, ENTITIES, Mapping, Mirror, MirrorError};
use crate::problem::nearest;
use crate::spiffe_id::SpiffeId;

/// Most bytes of a list of objects.
const MAX_BYTES: u64 = 256 << 20;

/// Arguments of `policy network-policy`.
#[derive(Debug, Args)]
#[command(
    after_help = "One object for each service that policies name outright, with what may reach it and what it may reach. DENY rules and \
    defaults are in what comes out. Where a selector cannot say what a policy says, it allows less; the block of the world has nodes and \
    the API server in it unless --entity says where they are. Notes on standard error tell.\n\n\
    Examples:\n  \
    zt-agent policy network-policy policies/ | kubectl apply -f -\n  \
    zt-agent policy network-policy policies/ --label app={serviceAccount} --entity kube-apiserver=10.0.0.1/32\n  \
    kubectl get networkpolicies -A -o json | zt-agent policy network-policy policies/ --check -\n\n\
    With --check, exits with 1 if an object is missing, different, or one of ours that no service has any more, or if one of somebody \
    else takes the same pods: objects add up, so that it `widens` what these allow."
)]
pub struct NetworkPolicyArgs {
    /// A directory of policies or one file [default: the configuration's policyPath]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// A label of a service's pods; `{namespace}` and `{serviceAccount}` are those of its SPIFFE ID; may be given more than once
    #[arg(
        long = "label",
        value_name = "KEY=VALUE",
        default_value = "app.kubernetes.io/name={serviceAccount}",
        value_parser = label
    )]
    labels: Vec<(String, String)>,
    /// Where the cluster's DNS is, which every service may reach: namespace and label; `none`: nowhere
    #[arg(long, value_name = "NAMESPACE/KEY=VALUE", default_value = "kube-system/k8s-app=kube-dns", value_parser = dns)]
    dns: Dns,
    /// Where an entity is that no selector finds (host, remote-node, kube-apiserver); may be given more than once
    #[arg(long = "entity", value_name = "NAME=CIDR", value_parser = entity)]
    entities: Vec<(&'static str, IpNet)>,
    /// Also for this service; may be given more than once
    #[arg(long = "workload", value_name = "SPIFFE_ID", value_parser = |text: &str| SpiffeId::parse(text).map_err(|error| error.to_string()))]
    workloads: Vec<SpiffeId>,
    /// Compare with what a cluster has: what `kubectl get networkpolicies -A -o json` printed; `-` for standard input
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// With --check: objects of others are shown, and do not count
    #[arg(long, requires = "check")]
    allow_others: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    output: Output,
}

/// Where the cluster's DNS is: namespace and label.
#[derive(Clone, Debug)]
struct Dns(Option<(String, (String, String))>);

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, value)| !key.is_empty() && !value.is_empty())
        .ok_or("write KEY=VALUE, such as app={serviceAccount}")?;
    let mut rest = value.to_owned();
    for known in ["{namespace}", "{serviceAccount}"] {
        rest = rest.replace(known, "");
    }
    if rest.contains(['{', '}']) {
        return Err("known in braces are {namespace} and {serviceAccount}".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn dns(text: &str) -> Result<Dns, String> {
    if text == "none" {
        return Ok(Dns(None));
    }
    let usage = || "write NAMESPACE/KEY=VALUE, such as kube-system/k8s-app=kube-dns, or none".to_owned();
    let (namespace, rest) = text
        .split_once('/')
        .filter(|(namespace, _)| !namespace.is_empty())
        .ok_or_else(usage)?;
    Ok(Dns(Some((
        namespace.to_owned(),
        label(rest).map_err(|_| usage())?,
    ))))
}

fn entity(text: &str) -> Result<(&'static str, IpNet), String> {
    let known = || ["host", "remote-node", "kube-apiserver"].into_iter();
    let (name, network) = text.split_once('=').ok_or("write NAME=CIDR")?;
    let found = ENTITIES
        .iter()
        .map(|(entity, _)| *entity)
        .find(|entity| *entity == name && known().any(|known| known == name));
    let name = found.ok_or_else(|| match nearest(name, known()) {
        Some(near) => format!("no such entity: did you mean `{near}`?"),
        None => format!(
            "no such entity; known are {}",
            known().collect::<Vec<_>>().join(", ")
        ),
    })?;
    let network: IpNet = network
        .parse()
        .map_err(|_| format!("`{network}` is not a CIDR such as 10.0.0.0/8"))?;
    Ok((name, network.trunc()))
}

pub(super) fn network_policy(arguments: &NetworkPolicyArgs) -> Result<Exit, Failure> {
    let config = arguments.settings.config()?;
    let settings = config.policy_settings();
    let path = arguments.path.as_ref().unwrap_or(&config.policy_path);
    let set = offline::set(path, &settings)?;
    let mapping = arguments.mapping(&config);
    let made = {
        let _progress = Progress::waiting("asking about every pair of services");
        policy::mirror(&set, &mapping, &settings).map_err(|error| match error {
            MirrorError::Compile(error) => error.into(),
            MirrorError::Labels(error) => Failure::Usage(error.to_string()),
        })?
    };
    for note in &made.notes {
        eprintln!("note: {}", printable(note));
    }
    if let Some(file) = &arguments.check {
        let differences = policy::differences(&made.objects, &objects(file)?);
        print_differences(&differences, &made, arguments.output.format)?;
        let counts = |one: &Difference| !(arguments.allow_others && one.difference == policy::WIDENS);
        return Ok(if differences.iter().any(counts) {
            Exit::Failed
        } else {
            Exit::Done
        });
    }
    print(&made, arguments.output.format)?;
    Ok(Exit::Done)
}

impl NetworkPolicyArgs {
    fn mapping(&self, config: &Config) -> Mapping {
        let mut entities: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        for (name, network) in &self.entities {
            entities.entry((*name).to_owned()).or_default().push(*network);
        }
        let template = config.identity.template.as_str();
        Mapping {
            template: template
                .replace("{trustDomain}", &config.trust_domain)
                .replace("{cluster}", &config.cluster),
            labels: self.labels.clone(),
            dns: self.dns.0.clone(),
            entities,
            workloads: self.workloads.iter().cloned().collect(),
        }
    }
}

/// The objects of a list, or of one object.
fn objects(path: &Path) -> Result<Vec<Value>, Failure> {
    let text = offline::text(path, MAX_BYTES)?;
    let wrong = |what: &str| {
        let wanted = "what `kubectl get networkpolicies -A -o json` prints";
        Failure::Usage(format!("{}: not {wanted}: {what}", path.display()))
    };
    let mut list: Value = serde_json::from_str(&text).map_err(|error| wrong(&error.to_string()))?;
    if list["kind"] == "NetworkPolicy" {
        return Ok(vec![list]);
    }
    match list["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Err(wrong("it has no `items`")),
    }
}

fn print(made: &Mirror, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        crate::cli::output::json(&json!({ "apiVersion": "v1", "kind": "List", "items": made.objects }))?;
        return Ok(());
    }
    for (index, object) in made.objects.iter().enumerate() {
        if index > 0 {
            line("---")?;
        }
        let text = crate::yaml::write(object).map_err(std::io::Error::other)?;
        line(text.trim_end())?;
    }
    Ok(())
}

fn print_differences(differences: &[Difference], made: &Mirror, format: Format) -> Result<(), Failure> {
    let objects = made.objects.len();
    if format == Format::Json {
        crate::cli::output::json(
            &json!({ "objects": objects, "differences": differences, "notes": made.notes }),
        )?;
        return Ok(());
    }
    let mut table = Table::new(&["", "NAMESPACE", "NAME"]);
    for difference in differences {
        table.row([
            Cell::toned(
                difference.difference,
                if difference.difference == policy::WIDENS {
                    Tone::Caution
                } else {
                    Tone::Bad
                },
            ),
            printable(&difference.namespace).into(),
            printable(&difference.name).into(),
        ]);
    }
    table.print(&format!("all {objects} objects are as they should be"))?;
    Ok(())
}
