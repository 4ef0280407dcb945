// SPDX-License-Identifier: Apache-2.0
//! Merges file, environment and flags, and collects everything that is wrong with any of them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::setting::{Raw, SETTINGS};
use super::{Config, DEFAULT_FILE, IdentitySource, PolicySource};
use crate::audit::archive;
use crate::identity::peers::Roster;
use crate::identity::spire::own;
use crate::problem::{Problem, nearest};
use crate::yaml::{self, Entry, Node, Report, Value};

/// What is read besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file that was asked for; without one [`DEFAULT_FILE`] is read if it exists.
    pub file: Option<PathBuf>,
    /// The environment; only names that start with `ZT_` are looked at.
    pub environment: BTreeMap<OsString, OsString>,
    /// Flags that were given: the setting's key and the value.
    pub flags: Vec<(&'static str, String)>,
}

impl Sources {
    /// The file that is read, if it exists.
    pub fn path(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE))
    }

    /// The process's environment, without flags.
    pub fn of_process(file: Option<PathBuf>) -> Self {
        Self {
            file,
            environment: std::env::vars_os().collect(),
            flags: Vec::new(),
        }
    }
}

/// The mappings of the file that hold settings.
const SECTIONS: [&str; 4] = ["identity", "audit", "api", "kubernetes"];
/// Sections within one, which are nothing by themselves.
const INNER: [&str; 2] = ["identity.nri", "identity.peers"];
/// Variables of the command line itself.
const OTHER_VARIABLES: [&str; 6] = [
    "ZT_API",
    "ZT_CONFIG",
    "ZT_LOG",
    "ZT_TLS_CA",
    "ZT_TLS_CERT",
    "ZT_TLS_KEY",
];
/// A file of more bytes than this is not a configuration.
const MAX_BYTES: u64 = 1024 * 1024;

pub(super) fn load(sources: &Sources) -> Result<Config, Vec<Problem>> {
    let mut config = Config::default();
    let mut problems = file(sources.file.as_deref(), &mut config)
        .err()
        .unwrap_or_default();
    environment(sources, &mut config, &mut problems);
    flags(sources, &mut config, &mut problems);
    whole(config, problems)
}

/// The configuration that a text is by itself.
pub(super) fn parse(shown: &str, text: &str) -> Result<Config, Vec<Problem>> {
    let mut config = Config::default();
    let problems = of_text(shown, text, &mut config).err().unwrap_or_default();
    whole(config, problems)
}

/// What the parts come to together, which is looked at only where nothing is wrong with any of them.
fn whole(mut config: Config, mut problems: Vec<Problem>) -> Result<Config, Vec<Problem>> {
    if problems.is_empty() && config.api.listen == config.api.health {
        let message = format!(
            "`api.listen` and `api.health` are both {}; give each a port",
            config.api.listen
        );
        problems.push(plain("configuration", "api.health", message));
    }
    if problems.is_empty() && config.api.tls.spire {
        problems.extend(own_svid(&mut config));
    }
    if problems.is_empty() {
        problems.extend(api_tls(&config).map(|(field, message)| plain("configuration", field, message)));
        problems.extend(engine(&config));
        problems.extend(keys(&config));
        problems.extend(logins(&config));
        problems.extend(pods(&config));
        problems.extend(peers(&config));
    }
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(problems)
    }
}

/// What is wrong with where policy comes from.
fn engine(config: &Config) -> Option<Problem> {
    let message = match (config.policy_source, &config.engine_url) {
        (PolicySource::Engine, None) => "`policySource: engine` needs it: where is the engine?",
        (PolicySource::Engine, Some(url)) if url.starts_with("https:") && config.api.tls.all().is_none() => {
            "is https: it needs `api.tls`, whose certificate this agent shows and whose clientCa it believes"
        }
        (PolicySource::Directory | PolicySource::Kubernetes, Some(_)) => {
            "is used with `policySource: engine` only: set that, or remove it"
        }
        _ => return None,
    };
    Some(plain("configuration", "engineUrl", message.to_owned()))
}

/// What is wrong with where the trail's keys are.
fn keys(config: &Config) -> Option<Problem> {
    let audit = &config.audit;
    let file = match audit.dsn.strip_prefix("sqlite://") {
        Some(path) => Path::new(path),
        None => &audit.spool,
    };
    let keys = audit.keys.as_deref().filter(|keys| file.parent() == Some(keys))?;
    let message = format!(
        "`{}` is where the database is: name a directory of its own, so that who may write or copy the one has not the other",
        keys.display()
    );
    Some(plain("configuration", "audit.keys", message))
}

/// What is wrong with the logins that do what the one of `audit.dsn` does not.
fn logins(config: &Config) -> Option<Problem> {
    if archive::is_postgres(&config.audit.dsn) {
        return None;
    }
    let (key, _) = config.audit.dsns().nth(1)?;
    let message = "is used with a `postgres://` DSN in `audit.dsn` only: name the server there, with the login that writes, or remove this";
    Some(plain("configuration", key, message.to_owned()))
}

/// What is wrong with how pods are named.
fn pods(config: &Config) -> Option<Problem> {
    if !config.identity.has(IdentitySource::Kubernetes) {
        return None;
    }
    let made = config
        .identity
        .template
        .fixed(&config.trust_domain, &config.cluster);
    made.err()
        .map(|error| plain("configuration", "identity.template", error.to_string()))
}

/// What is wrong with how other nodes are reached.
fn peers(config: &Config) -> Option<Problem> {
    let (field, message) = if !config.identity.has(IdentitySource::Peers) {
        return None;
    } else if config.api.tls.all().is_none() {
        let message =
            "needs `api.tls`, whose certificate this agent shows to others and whose clientCa it believes";
        ("identity.source", message.to_owned())
    } else if config.identity.peers.nodes.is_empty() && !config.identity.has(IdentitySource::Kubernetes) {
        let message = "is empty: `peers` without `kubernetes` among the identity sources needs a list of the other nodes";
        ("identity.peers.nodes", message.to_owned())
    } else if config.identity.peers.nodes.is_empty() && !config.identity.has(IdentitySource::Spire) {
        let message = "is empty: without `spire` among the identity sources no agent can show who lives on its node; list the nodes, with their `identities`";
        ("identity.peers.nodes", message.to_owned())
    } else {
        let error = config.roster(&[]).and_then(Roster::undisputed).err()?;
        ("identity.peers.nodes", error.to_string())
    };
    Some(plain("configuration", field, message))
}

/// With `api.tls: spire` the files are those that the agent keeps itself.
fn own_svid(config: &mut Config) -> Option<Problem> {
    let directory = config.svid_directory().join(own::CURRENT);
    let tls = &mut config.api.tls;
    if tls.cert.is_some() || tls.key.is_some() || tls.client_ca.is_some() {
        let message = "is `spire` or files, not both".to_owned();
        return Some(plain("configuration", "api.tls", message));
    }
    tls.cert = Some(directory.join(own::CERT));
    tls.key = Some(directory.join(own::KEY));
    tls.client_ca = Some(directory.join(own::BUNDLE));
    None
}

/// What is missing for the API to be served as it is configured.
fn api_tls(config: &Config) -> Option<(&'static str, String)> {
    let tls = &config.api.tls;
    let given = [&tls.cert, &tls.key, &tls.client_ca].map(Option::is_some);
    if given.contains(&true) && given.contains(&false) {
        let message = "is `cert`, `key` and `clientCa` together, or nothing";
        return Some(("api.tls", message.to_owned()));
    }
    let listen = config.api.listen;
    if !listen.ip().to_canonical().is_loopback() && tls.all().is_none() {
        let message = format!(
            "`{listen}` is not a loopback address: beyond this machine the API needs `api.tls` and `api.callers`"
        );
        return Some(("api.listen", message));
    }
    // Its certificate may be for other agents alone.
    let peers = config.identity.has(IdentitySource::Peers);
    if tls.all().is_some() && config.api.callers.is_empty() && !peers {
        let message = "is empty: with `api.tls` only those are served who are named here";
        return Some(("api.callers", message.to_owned()));
    }
    None
}

/// The host's name, or `localhost` where it has none that can be written.
pub(super) fn hostname() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

fn plain(file: &str, field: &str, message: String) -> Problem {
    Problem {
        file: file.to_owned(),
        line: 0,
        column: 0,
        field: field.to_owned(),
        message,
    }
}

fn file(named: Option<&Path>, config: &mut Config) -> Result<(), Vec<Problem>> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    let shown = path.display().to_string();
    let refuse = |message: String| Err(vec![plain(&shown, "", message)]);
    let text = match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            return refuse(format!("has more than {MAX_BYTES} bytes"));
        }
        Ok(metadata) if !metadata.is_file() => return refuse("is not a file".to_owned()),
        Ok(_) => fs::read(path),
        Err(error) => Err(error),
    };
    let text = match text.map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => return refuse("is not UTF-8 text".to_owned()),
        // Without a file the defaults hold, unless someone asked for one.
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return refuse("does not exist".to_owned()),
        Err(error) => return refuse(format!("cannot be read: {error}")),
    };
    of_text(&shown, &text, config)
}

fn of_text(shown: &str, text: &str, config: &mut Config) -> Result<(), Vec<Problem>> {
    let root = yaml::parse(shown, text).map_err(|problem| vec![problem])?;
    let mut report = Report::new(shown);
    if root.value != Value::Null {
        for entry in &report.map(&root, "").unwrap_or_default() {
            if SECTIONS.contains(&entry.key) {
                section(entry, config, &mut report);
            } else {
                setting("", entry, config, &mut report);
            }
        }
    }
    report.finish(())
}

fn section(section: &Entry<'_>, config: &mut Config, report: &mut Report) {
    if section.value.value == Value::Null {
        return;
    }
    for entry in &report.map(section.value, section.key).unwrap_or_default() {
        match (section.key, entry.key) {
            ("api", "tls") => tls(entry, config, report),
            ("identity", "nri") => inner(INNER[0], entry, config, report),
            ("identity", "peers") => inner(INNER[1], entry, config, report),
            _ => setting(section.key, entry, config, report),
        }
    }
}

/// `api.tls`, a mapping within a mapping.
fn tls(entry: &Entry<'_>, config: &mut Config, report: &mut Report) {
    match &entry.value.value {
        Value::Null => {}
        Value::Text(_) => setting("api", entry, config, report),
        _ => inner("api.tls", entry, config, report),
    }
}

fn inner(section: &str, entry: &Entry<'_>, config: &mut Config, report: &mut Report) {
    if entry.value.value == Value::Null {
        return;
    }
    for entry in &report.map(entry.value, section).unwrap_or_default() {
        setting(section, entry, config, report);
    }
}

/// Applies one entry of the file; `section` is empty at the top.
fn setting(section: &str, entry: &Entry<'_>, config: &mut Config, report: &mut Report) {
    let key = if section.is_empty() {
        entry.key.to_owned()
    } else {
        format!("{section}.{}", entry.key)
    };
    if let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) {
        if let Err(message) = (setting.apply)(config, Raw::Node(entry.value)) {
            let place = first_wrong(entry.value);
            report.add(place, key, message);
        }
        return;
    }
    let all = SETTINGS.iter().map(|setting| setting.key);
    let all = all.chain(SECTIONS).chain(INNER);
    let here = all.filter_map(|known| match known.rsplit_once('.') {
        Some((of, name)) if of == section => Some(name),
        None if section.is_empty() => Some(known),
        _ => None,
    });
    report.unknown_field(entry, key, here);
}

/// The place to show for a bad value: its own line, even where it is a list that begins a line later.
fn first_wrong(node: &Node) -> &Node {
    match &node.value {
        Value::List(items) if items.len() == 1 => &items[0],
        _ => node,
    }
}

fn environment(sources: &Sources, config: &mut Config, problems: &mut Vec<Problem>) {
    const PLACE: &str = "environment";
    for (name, value) in &sources.environment {
        let Some(name) = name.to_str().filter(|name| name.starts_with("ZT_")) else {
            continue;
        };
        if let Some(setting) = SETTINGS.iter().find(|setting| setting.variable == name) {
            let applied = match value.to_str() {
                Some(text) => (setting.apply)(config, Raw::Text(text)),
                None => Err("is not UTF-8 text".to_owned()),
            };
            problems.extend(applied.err().map(|message| plain(PLACE, name, message)));
        } else if !OTHER_VARIABLES.contains(&name) {
            // Kubernetes sets variables named after services (ZT_PORT …): only what looks like a slip is refused.
            let known = SETTINGS.iter().map(|setting| setting.variable);
            if let Some(meant) = nearest(name, known).filter(|meant| is_slip(name, meant)) {
                let message = format!("is not a variable of this program; did you mean `{meant}`?");
                problems.push(plain(PLACE, name, message));
            }
        }
    }
}

fn is_slip(name: &str, meant: &str) -> bool {
    strsim::damerau_levenshtein(name, meant) <= 2 && !name.ends_with("_PORT") && !name.ends_with("_HOST")
}

fn flags(sources: &Sources, config: &mut Config, problems: &mut Vec<Problem>) {
    for (key, value) in &sources.flags {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == *key) else {
            continue;
        };
        if let Err(message) = (setting.apply)(config, Raw::Text(value)) {
            problems.push(plain("command line", &format!("--{}", setting.flag), message));
        }
    }
}
