// SPDX-License-Identifier: Apache-2.0
//! What the kernel lets the agent do: tried, never concluded from a number or a list of features.

use std::io;

use super::finding::Finding;
use crate::kernel::{Capability, KernelError, Rehearsal};

/// `absent`: capabilities that somebody does not have; `who`: in words.
pub(super) fn privileges(
    check: &'static str,
    who: &str,
    absent: &Result<Vec<&'static Capability>, KernelError>,
) -> Finding {
    let absent = match absent {
        Ok(absent) => absent,
        Err(error) => return Finding::not_applicable(check, error.to_string()),
    };
    let names = |absent: &[&&Capability]| {
        let names: Vec<&str> = absent.iter().map(|capability| capability.name).collect();
        names.join(", ")
    };
    let (needed, helpful): (Vec<_>, Vec<_>) = absent.iter().partition(|absent| absent.without.is_none());
    if !needed.is_empty() {
        let found = format!("{who} lacks {}", names(&needed));
        let remedy = "run as root, or grant the capabilities that deploy/zt-agent.service lists";
        Finding::failed(check, found, remedy)
    } else if helpful.is_empty() {
        Finding::ok(check, format!("{who} has all that are needed"))
    } else {
        let worse: Vec<&str> = helpful.iter().filter_map(|absent| absent.without).collect();
        let found = format!("{who} lacks {}: {}", names(&helpful), worse.join("; "));
        Finding::warning(
            check,
            found,
            "grant the capabilities that deploy/zt-agent.service lists",
        )
    }
}

/// `rehearsal`: what came of having all programs verified.
pub(super) fn programs(rehearsal: &Result<Rehearsal, KernelError>) -> Vec<Finding> {
    const PROGRAMS: &str = "kernel.programs";
    const OLDER: &str = "kernel.older_listeners";
    const PACKETS: &str = "kernel.packet_sockets";
    match rehearsal {
        Err(error @ KernelError::Privilege { .. }) => vec![
            Finding::not_applicable(PROGRAMS, error.to_string()),
            Finding::not_applicable(OLDER, "the programs were not tried"),
            Finding::not_applicable(PACKETS, "the programs were not tried"),
        ],
        Err(error) => vec![
            Finding::failed(
                PROGRAMS,
                error.to_string(),
                "a kernel of 6.1 or later with the options in README.md (Requirements) takes them; in a container see whether seccomp or an LSM refuses bpf(2)",
            ),
            Finding::not_applicable(OLDER, "the programs do not load"),
            Finding::not_applicable(PACKETS, "the programs do not load"),
        ],
        Ok(rehearsal) => {
            let found = format!(
                "the kernel verified all {} programs and made {} maps, in {:.1} s",
                rehearsal.programs,
                rehearsal.maps.len(),
                rehearsal.took.as_secs_f64()
            );
            let older = match &rehearsal.older {
                Ok(()) => Finding::ok(
                    OLDER,
                    "those older than the agent can be made to prove who they are",
                ),
                Err(error) => Finding::warning(
                    OLDER,
                    format!("those older than the agent cannot be made to prove who they are: {error}"),
                    "restart servers that were there before the agent, or boot a kernel of 6.12 or later",
                ),
            };
            let packets = match &rehearsal.packet_sockets {
                Ok(()) => Finding::ok(PACKETS, "packet sockets are decided on when workloads make them"),
                Err(error) => Finding::warning(
                    PACKETS,
                    format!("packet sockets of workloads are not decided on: {error}"),
                    "take CAP_NET_RAW from workloads, or boot a kernel with CONFIG_BPF_LSM and `bpf` among its security modules (`lsm=`)",
                ),
            };
            vec![Finding::ok(PROGRAMS, found), older, packets]
        }
    }
}

/// `outcome`: of destroying a socket.
pub(super) fn destroying(outcome: &io::Result<()>) -> Finding {
    const CHECK: &str = "kernel.destroy_sockets";
    match outcome {
        Ok(()) => Finding::ok(CHECK, "a socket made for this was destroyed"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::not_applicable(CHECK, "needs CAP_NET_ADMIN")
        }
        Err(error) => Finding::failed(
            CHECK,
            format!("a socket made for this could not be destroyed: {error}"),
            "boot a kernel with CONFIG_INET_DIAG_DESTROY, and load inet_diag and tcp_diag: without it revoked connections live on",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::finding::Status::{Failed, NotApplicable, Ok, Warning};
    use super::*;
    use crate::kernel::CAPABILITIES;

    #[test]
    fn what_is_needed_is_told_from_what_only_helps() {
        let judge = |absent: &[&'static Capability]| {
            privileges("privileges", "this process", &Result::Ok(absent.to_vec()))
        };
        let named = |name: &str| {
            CAPABILITIES
                .iter()
                .find(|known| known.name == name)
                .expect("known")
        };
        assert_eq!(judge(&[]).status, Ok);
        let found = judge(&[named("CAP_BPF"), named("CAP_SYS_NICE")]);
        assert_eq!(
            (found.status, found.found.as_str()),
            (Failed, "this process lacks CAP_BPF")
        );
        let found = judge(&[named("CAP_SYS_NICE")]);
        assert_eq!(found.status, Warning);
        assert!(found.found.contains("revocation takes longer"), "{found:?}");
    }

    #[test]
    fn a_program_that_does_not_load_is_no_passing_matter() {
        let refused = Err(KernelError::Load {
            program: "zt_connect4",
            cause: "invalid argument".into(),
        });
        let found = programs(&refused);
        assert_eq!((found[0].status, found[1].status), (Failed, NotApplicable));
        assert!(found[0].found.contains("zt_connect4"), "{found:?}");
        let without = Err(KernelError::Privilege {
            capability: "CAP_BPF",
            purpose: "load programs and maps",
        });
        assert_eq!(programs(&without)[0].status, NotApplicable);
        let rehearsal = |older, packet_sockets| {
            Result::Ok(Rehearsal {
                programs: 13,
                older,
                packet_sockets,
                maps: Vec::new(),
                took: Duration::from_millis(1234),
            })
        };
        let found = programs(&rehearsal(Result::Ok(()), Result::Ok(())));
        assert_eq!((found[0].status, found[1].status, found[2].status), (Ok, Ok, Ok));
        assert!(found[0].found.ends_with("in 1.2 s"), "{found:?}");
        let found = programs(&rehearsal(Err("no such helper".into()), Err("no BTF".into())));
        assert_eq!(
            (found[0].status, found[1].status, found[2].status),
            (Ok, Warning, Warning)
        );
        assert!(found[2].found.contains("no BTF"), "{found:?}");
    }

    #[test]
    fn sockets_that_cannot_be_destroyed_live_on() {
        let of = |error: libc::c_int| destroying(&Err(io::Error::from_raw_os_error(error)));
        assert_eq!(destroying(&Result::Ok(())).status, Ok);
        assert_eq!(of(libc::EOPNOTSUPP).status, Failed);
        assert_eq!(of(libc::EPERM).status, NotApplicable);
    }
}
