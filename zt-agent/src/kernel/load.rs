// SPDX-License-Identifier: Apache-2.0
//! Loads the embedded object: maps from their pins where a predecessor left them, programs always anew.

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::maps::{Map, MapData};
use aya::programs::{CgroupSkb, CgroupSock, CgroupSockAddr, Program, ProgramFd, SkMsg, SkSkb, SockOps};
use aya::{Ebpf, EbpfLoader};
use zt_common::names;

use super::error::KernelError;
use super::hooks::{HOOKS, REFUSE_IN, REFUSE_OUT, UDP_GUARD};
use super::host::Pins;

/// The kernel programs, built from `zt-ebpf`. Aligned, because the loader reads it as an ELF file in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/zt-ebpf.o"));

/// The kernel programs as they are embedded: an ELF object for `bpfel`, with BTF.
pub fn object() -> &'static [u8] {
    OBJECT
}

/// The loaded object.
pub(super) struct Loaded {
    ebpf: Ebpf,
}

impl Loaded {
    /// Loads everything; nothing is attached yet.
    pub(super) fn load(pins: &Pins) -> Result<Self, KernelError> {
        let maps = pins.maps();
        let mut loader = EbpfLoader::new();
        for name in names::MAPS {
            loader.map_pin_path(name, maps.join(name));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| KernelError::Missing {
            missing: "a map or BTF feature that the programs use".into(),
            cause: chain(&error),
        })?;
        let programs = HOOKS.iter().map(|hook| hook.program);
        for name in programs.chain([UDP_GUARD.program, REFUSE_IN.program, REFUSE_OUT.program]) {
            load_program(&mut ebpf, name)?;
        }
        Ok(Self { ebpf })
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

/// A second handle of a pinned map, for batch operations and for other threads.
pub(super) fn open(pins: &Pins, name: &'static str) -> Result<MapData, KernelError> {
    MapData::from_pin(pins.maps().join(name)).map_err(KernelError::map(name))
}

/// The descriptor of a map handle.
pub(super) fn fd(map: &MapData) -> BorrowedFd<'_> {
    map.fd().as_fd()
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), KernelError> {
    let failed = |cause: String| KernelError::Load { program: name, cause };
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| failed("not in the object".into()))?;
    let loaded = match program {
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::CgroupSock(program) => CgroupSock::load(program),
        Program::CgroupSkb(program) => CgroupSkb::load(program),
        Program::SockOps(program) => SockOps::load(program),
        Program::SkMsg(program) => SkMsg::load(program),
        Program::SkSkb(program) => SkSkb::load(program),
        _ => return Err(failed("of a type that no hook has".into())),
    };
    loaded.map_err(|error| failed(chain(&error)))
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
