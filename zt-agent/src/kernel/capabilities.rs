// SPDX-License-Identifier: Apache-2.0
//! The capabilities that the agent works with. Its manifests grant these and no others; a test compares them.

use std::fs;

use super::error::KernelError;

/// A Linux capability, and what it is for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name, such as `CAP_BPF`.
    pub name: &'static str,
    /// Its number in `include/uapi/linux/capability.h`.
    number: u32,
    /// What the agent does with it.
    pub purpose: &'static str,
    /// What becomes worse without it. `None`: the agent does not start.
    pub without: Option<&'static str>,
}

/// All of them. Root has them, unless somebody took one away.
pub const CAPABILITIES: [Capability; 7] = [
    needed("CAP_BPF", 39, "load programs and maps"),
    needed("CAP_NET_ADMIN", 12, "attach hooks, destroy sockets"),
    needed("CAP_SYS_ADMIN", 21, "enter the network namespaces of workloads"),
    needed("CAP_SYS_PTRACE", 19, "see the namespaces of workloads' processes"),
    Capability {
        name: "CAP_NET_RAW",
        number: 13,
        purpose: "reset the peers of refused connections",
        without: Some("the peer of a refused connection notices late"),
    },
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        number: 2,
        purpose: "read cgroups and /proc whoever owns them",
        without: Some("workloads in cgroups that root may not read are not found"),
    },
    Capability {
        name: "CAP_SYS_NICE",
        number: 23,
        purpose: "go before other work while revoked connections are open",
        without: Some("revocation takes longer on a busy machine"),
    },
];

const fn needed(name: &'static str, number: u32, purpose: &'static str) -> Capability {
    Capability {
        name,
        number,
        purpose,
        without: None,
    }
}

/// Refuses early, with one sentence, what would fail later with many. Those that only help may be missing.
pub fn check_privileges() -> Result<(), KernelError> {
    let absent = absent()?.into_iter().find(|absent| absent.without.is_none());
    absent.map_or(Ok(()), |absent| {
        Err(KernelError::Privilege {
            capability: absent.name,
            purpose: absent.purpose,
        })
    })
}

/// Those that this process does not have.
pub fn absent() -> Result<Vec<&'static Capability>, KernelError> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(KernelError::io("read", "/proc/self/status"))?;
    Ok(absent_in(&status))
}

/// Those that another process does not have.
pub fn absent_of(pid: u32) -> Result<Vec<&'static Capability>, KernelError> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).map_err(KernelError::io("read", path))?;
    Ok(absent_in(&status))
}

fn absent_in(status: &str) -> Vec<&'static Capability> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    let all = CAPABILITIES.iter();
    all.filter(|capability| effective & (1 << capability.number) == 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_read_from_the_status() {
        let absent = |bits: &str| -> Vec<&str> {
            let status = format!("Name:\tzt-agent\nCapPrm:\tffffffffffffffff\nCapEff:\t{bits}\n");
            absent_in(&status).iter().map(|absent| absent.name).collect()
        };
        assert!(absent("000001ffffffffff").is_empty());
        // All but number 39 and number 23.
        assert_eq!(absent("0000017fff7fffff"), ["CAP_BPF", "CAP_SYS_NICE"]);
        assert_eq!(absent("0").len(), CAPABILITIES.len());
    }
}
