// SPDX-License-Identifier: Apache-2.0
//! Loads the embedded object: maps from their pins where a predecessor left them, programs always anew.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData};
use aya::programs::{
    CgroupSkb, CgroupSock, CgroupSockAddr, CgroupSockopt, CgroupSysctl, Program, ProgramFd, SkMsg, SkSkb,
    SockOps,
};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use zt_common::flood::DENIAL_WORDS;
use zt_common::names;

use super::capabilities::check_privileges;
use super::error::KernelError;
use super::hooks::{ADOPT, LSM_PROBE, REFUSE_IN, REFUSE_OUT, UDP_GUARD, on_root};
use super::host::Pins;
use super::survey::{self, MapShape};
use super::{lsm, sys};

/// The kernel programs, built from `zt-ebpf`. Aligned, because the loader reads it as an ELF file in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/zt-ebpf.o"));

/// The release of `bpf-linker` that made the object; `unknown` where the object was built elsewhere.
pub const LINKER: &str = env!("ZT_EBPF_LINKER");

/// The kernel programs as they are embedded: an ELF object for `bpfel`, with BTF.
pub fn object() -> &'static [u8] {
    OBJECT
}

/// Which programs are loaded, and how.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// With what has handshakes bear identities.
    pub handshakes: bool,
    /// With the packet guard.
    pub packet_guard: bool,
}

/// The loaded object.
pub(super) struct Loaded {
    ebpf: Ebpf,
    /// Whether the packet guard is among the programs.
    pub packet_guard: bool,
    /// Whether the program of packet sockets is; why not, otherwise.
    pub packet_sockets: Result<(), String>,
    /// The maps that the programs use, as they were pinned when the programs were loaded.
    maps: Vec<(&'static str, OwnedFd)>,
}

impl Loaded {
    /// Loads what is wanted; nothing is attached yet.
    pub(super) fn load(pins: &Pins, wanted: Wanted) -> Result<Self, KernelError> {
        let started = Instant::now();
        let mut ebpf = read_object(wanted.handshakes, Some(pins))?;
        let maps = names::MAPS
            .into_iter()
            .map(|name| {
                let path = pins.map(name);
                let map = sys::open_pin(&path).map_err(KernelError::io("open the pinned map", path))?;
                Ok((name, map))
            })
            .collect::<Result<_, KernelError>>()?;
        let count = load_programs(&mut ebpf, wanted.packet_guard)?;
        if let Err(error) = load_program(ADOPT.program, ebpf.program_mut(ADOPT.program)) {
            tracing::warn!(%error, "listeners that are older than the agent will not prove who they are");
        }
        let packet_sockets = lsm::load(&mut ebpf);
        tracing::info!(
            programs = count,
            ms = started.elapsed().as_millis() as u64,
            "the kernel has verified the programs"
        );
        Ok(Self {
            ebpf,
            packet_guard: wanted.packet_guard,
            packet_sockets,
            maps,
        })
    }

    /// The maps that the programs use.
    pub(super) fn maps(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.maps.iter().map(|(name, map)| (*name, map.as_fd()))
    }

    /// Whether what is pinned is still what the programs use.
    pub(super) fn is_pinned(&self, pins: &Pins) -> bool {
        self.maps().all(|(name, map)| {
            let pinned = sys::open_pin(&pins.map(name)).and_then(|pin| sys::id_of(pin.as_fd()));
            matches!((pinned, sys::id_of(map)), (Ok(pinned), Ok(ours)) if pinned == ours)
        })
    }

    /// A program's descriptor.
    pub(super) fn program(&self, name: &'static str) -> Result<&ProgramFd, KernelError> {
        let program = self.ebpf.program(name).ok_or(KernelError::Load {
            program: name,
            cause: "not in the object".into(),
        })?;
        program.fd().map_err(|error| KernelError::Load {
            program: name,
            cause: chain(&error),
        })
    }

    /// Takes a map, which knows its type.
    pub(super) fn take(&mut self, name: &'static str) -> Result<Map, KernelError> {
        self.ebpf.take_map(name).ok_or(KernelError::Map {
            map: name,
            cause: "not in the object".into(),
        })
    }

    /// The object itself, for the kernel-side log.
    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// Makes the maps, or opens those that are pinned, and has the programs ready to be verified.
fn read_object(handshakes: bool, pins: Option<&Pins>) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    // Why a program is refused, and not the way of the verifier there, which can be a hundred megabytes.
    loader.verifier_log_level(VerifierLogLevel::STATS);
    let handshakes = u8::from(handshakes);
    loader.override_global(names::HANDSHAKES, &handshakes, true);
    let mut seeds = [0; DENIAL_WORDS];
    for seed in &mut seeds {
        *seed = sys::random()?;
    }
    loader.override_global(names::SEEDS, &seeds[..], true);
    if let Some(pins) = pins {
        for name in names::MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    loader.load(OBJECT).map_err(|error| KernelError::Missing {
        missing: "a map or BTF feature that the programs use".into(),
        cause: chain(&error),
    })
}

/// What came of a rehearsal.
#[derive(Debug)]
pub struct Rehearsal {
    /// Programs that the kernel verified.
    pub programs: usize,
    /// Whether listeners that are older than the agent can be made to prove who they are, or why not.
    pub older: Result<(), String>,
    /// Whether packet sockets and the like can be decided on when they are made, or why not.
    pub packet_sockets: Result<(), String>,
    /// The maps that the programs use, as this build makes them on this kernel.
    pub maps: Vec<MapShape>,
    /// How long it took.
    pub took: Duration,
}

/// Has the kernel verify what is wanted with maps of its own, and gives everything back: nothing is pinned or attached, and what
/// is in force is not touched. With `mount`, where cgroup2 is mounted, a program that refuses nobody anything is attached there for a
/// moment.
pub fn rehearse(wanted: Wanted, mount: Option<&Path>) -> Result<Rehearsal, KernelError> {
    check_privileges()?;
    let started = Instant::now();
    let mut ebpf = read_object(wanted.handshakes, None)?;
    let programs = load_programs(&mut ebpf, wanted.packet_guard)?;
    let older =
        load_program(ADOPT.program, ebpf.program_mut(ADOPT.program)).map_err(|error| error.to_string());
    let packet_sockets = lsm::load(&mut ebpf).and_then(|()| {
        let mount = mount.ok_or("cgroup v2 is not mounted")?;
        let probe = ebpf
            .program(LSM_PROBE.program)
            .and_then(|program| program.fd().ok());
        lsm::try_out(probe.ok_or("not in the object")?.as_fd(), mount)
    });
    let loaded = ebpf.programs().filter_map(|(_, program)| program.fd().ok());
    let ids: Vec<u32> = loaded.filter_map(|fd| sys::id_of(fd.as_fd()).ok()).collect();
    Ok(Rehearsal {
        programs,
        older,
        packet_sockets,
        maps: survey::maps_of_programs(&ids),
        took: started.elapsed(),
    })
}

/// A second handle of a pinned map, for batch operations and for other threads.
pub(super) fn open(pins: &Pins, name: &'static str) -> Result<MapData, KernelError> {
    MapData::from_pin(pins.map(name)).map_err(KernelError::map(name))
}

/// The descriptor of a map handle.
pub(super) fn fd(map: &MapData) -> BorrowedFd<'_> {
    map.fd().as_fd()
}

/// Has the kernel verify all programs that hooks need, with the packet guard or without, at the same time: nearly all of the agent's start is this, and
/// the verifier works on one program at a time only for the unprivileged.
fn load_programs(ebpf: &mut Ebpf, packet_guard: bool) -> Result<usize, KernelError> {
    let mut wanted: Vec<&'static str> = on_root(packet_guard).map(|hook| hook.program).collect();
    wanted.extend([UDP_GUARD.program, REFUSE_IN.program, REFUSE_OUT.program]);
    tracing::info!(programs = wanted.len(), "the kernel verifies the programs");
    let mut programs: HashMap<String, &mut Program> = ebpf
        .programs_mut()
        .map(|(name, program)| (name.to_owned(), program))
        .collect();
    std::thread::scope(|scope| {
        let loading: Vec<_> = wanted
            .iter()
            .map(|name| {
                let program = programs.remove(*name);
                scope.spawn(move || load_program(name, program))
            })
            .collect();
        let panicked = |_| {
            Err(KernelError::Load {
                program: "of a hook",
                cause: "the thread that loaded it panicked".into(),
            })
        };
        loading
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(panicked))
    })?;
    Ok(wanted.len())
}

fn load_program(name: &'static str, program: Option<&mut Program>) -> Result<(), KernelError> {
    let failed = |cause: String| KernelError::Load { program: name, cause };
    let program = program.ok_or_else(|| failed("not in the object".into()))?;
    let started = Instant::now();
    let loaded = match program {
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::CgroupSock(program) => CgroupSock::load(program),
        Program::CgroupSkb(program) => CgroupSkb::load(program),
        Program::SockOps(program) => SockOps::load(program),
        Program::CgroupSockopt(program) => CgroupSockopt::load(program),
        Program::CgroupSysctl(program) => CgroupSysctl::load(program),
        Program::SkMsg(program) => SkMsg::load(program),
        Program::SkSkb(program) => SkSkb::load(program),
        _ => return Err(failed("of a type that no hook has".into())),
    };
    tracing::debug!(
        program = name,
        ms = started.elapsed().as_millis() as u64,
        "verified"
    );
    loaded.map_err(|error| failed(chain(&error)))
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
