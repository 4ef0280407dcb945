// SPDX-License-Identifier: Apache-2.0
//! The verifier takes every program, and has room left: how many instructions it walks is compared with what is recorded of this
//! kernel's series in `zt-ebpf/instructions.json`. `cargo xtask test kernel vm --record-instructions` records it anew.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{
    CgroupSkb, CgroupSock, CgroupSockAddr, CgroupSockopt, CgroupSysctl, LsmCgroup, Program, ProgramError,
    SkMsg, SkSkb, SockOps,
};
use aya::{Btf, EbpfLoader, VerifierLogLevel};
use serde::Deserialize;
use serde_json::json;
use zt_common::names;
use zt_tests::linux;

/// What is recorded.
#[derive(Debug, Deserialize)]
struct Record {
    /// What made the object. Others' object is another program.
    compiler: String,
    linker: String,
    /// By the first two numbers of the kernel's version: instructions by program.
    kernels: BTreeMap<String, BTreeMap<String, u32>>,
}

const RECORD: &str = include_str!("../../zt-ebpf/instructions.json");
/// `BPF_COMPLEXITY_LIMIT_INSNS` of the kernel.
const LIMIT: u32 = 1_000_000;
/// What more than is recorded is a jump, in tenths of it: of an object of the same compiler and linker, and of others', whose
/// allocation of registers is another one.
const SAME_TOOLS: u32 = 1;
const OTHER_TOOLS: u32 = 5;

#[test]
fn the_verifier_takes_every_program() -> Result<()> {
    let (major, minor) = linux::version()?;
    let mut walked = walk(false)?;
    let bearing = walk(true)?.into_iter();
    walked.extend(bearing.map(|(program, instructions)| (program + " with handshakes", instructions)));
    let (compiler, kernel) = (compiler()?, format!("{major}.{minor}"));
    let linker = zt_agent::kernel::LINKER;
    let line = json!({ "compiler": compiler, "linker": linker, "kernel": kernel, "programs": walked });
    // Not by `println`, which tests that pass keep to themselves.
    writeln!(std::io::stdout(), "instructions: {line}")?;
    for (program, instructions) in &walked {
        // A kernel of the same series, or another compiler's register allocation, must not be the end of it.
        ensure!(
            *instructions <= LIMIT / 10 * 8,
            "{program}: the verifier walks {instructions} instructions of {LIMIT} that it would"
        );
    }
    if std::env::var_os("ZT_RECORD_INSTRUCTIONS").is_some() {
        return Ok(());
    }
    let record: Record = serde_json::from_str(RECORD)?;
    let Some(recorded) = record.kernels.get(&kernel) else {
        // `xtask` says it again in the end.
        writeln!(
            std::io::stdout(),
            "not compared: the instructions on Linux {kernel}, of which nothing is recorded"
        )?;
        return Ok(());
    };
    let same = record.compiler == compiler && record.linker == linker;
    if !same {
        writeln!(
            std::io::stdout(),
            "not compared: the instructions on Linux {kernel} within {SAME_TOOLS}0 %, but within {OTHER_TOOLS}0 %: they are \
             recorded of {} and bpf-linker {}, and these are of {compiler} and {linker}",
            record.compiler,
            record.linker
        )?;
    }
    let jumps = jumps(recorded, &walked, if same { SAME_TOOLS } else { OTHER_TOOLS });
    ensure!(
        jumps.is_empty(),
        "Linux {kernel}: {}; if that is meant, run `cargo xtask test kernel vm --record-instructions -- the_verifier`",
        jumps.join("; ")
    );
    Ok(())
}

/// What has become more than `tenths` larger than it was, or is new.
fn jumps(recorded: &BTreeMap<String, u32>, walked: &BTreeMap<String, u32>, tenths: u32) -> Vec<String> {
    let mut jumps = Vec::new();
    for (program, instructions) in walked {
        match recorded.get(program) {
            None => jumps.push(format!("{program} is not recorded")),
            Some(before) if *instructions > before + before * tenths / 10 => {
                jumps.push(format!(
                    "{program}: {before} instructions before, {instructions} now"
                ));
            }
            Some(_) => {}
        }
    }
    jumps
}

#[test]
fn a_jump_is_one_whatever_made_the_object() {
    let of = |instructions| BTreeMap::from([("zt_adopt".to_owned(), instructions)]);
    for (now, tenths, wanted) in [
        (1099, SAME_TOOLS, 0),
        (1101, SAME_TOOLS, 1),
        (1499, OTHER_TOOLS, 0),
        (1501, OTHER_TOOLS, 1),
    ] {
        assert_eq!(jumps(&of(1000), &of(now), tenths).len(), wanted, "{now}");
    }
    assert_eq!(jumps(&BTreeMap::new(), &of(1), OTHER_TOOLS).len(), 1);
}

/// Has the kernel verify every program of the object: how many instructions it walked until it was done.
/// With or without what has handshakes bear identities.
fn walk(handshakes: bool) -> Result<BTreeMap<String, u32>> {
    let mut loader = EbpfLoader::new();
    // Why, and not every instruction that came before: that would be a hundred megabytes.
    loader.verifier_log_level(VerifierLogLevel::STATS);
    let handshakes = u8::from(handshakes);
    loader.override_global(names::HANDSHAKES, &handshakes, true);
    let mut object = loader.load(zt_agent::kernel::object())?;
    let mut walked = BTreeMap::new();
    let (mut refused, mut absent) = (Vec::new(), Vec::new());
    for (name, program) in object.programs_mut() {
        let is_optional = matches!(program, Program::LsmCgroup(_)) && !linux::has_lsm_for_certain();
        match load(program).and_then(|()| program.info()) {
            Ok(info) => {
                let instructions = info.verified_instruction_count();
                walked.insert(name.to_owned(), instructions.context("the kernel does not say")?);
            }
            Err(error) if is_optional && is_of_a_type_that_is_absent(&error) => absent.push(name),
            Err(error) => refused.push(format!("{name}: {:#}", anyhow::Error::new(error))),
        }
    }
    if !refused.is_empty() {
        bail!("the kernel refuses {}", refused.join("\n"));
    }
    if !absent.is_empty() {
        writeln!(
            std::io::stdout(),
            "not on this kernel: programs that were not verified: {}",
            absent.join(", ")
        )?;
    }
    Ok(walked)
}

/// Whether the verifier has not even looked at the program.
fn is_of_a_type_that_is_absent(error: &ProgramError) -> bool {
    match error {
        ProgramError::LoadError { verifier_log, .. } => verifier_log.to_string().is_empty(),
        ProgramError::Btf(_) => true,
        _ => false,
    }
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
        Program::CgroupSock(program) => CgroupSock::load(program),
        Program::CgroupSkb(program) => CgroupSkb::load(program),
        Program::SockOps(program) => SockOps::load(program),
        Program::CgroupSockopt(program) => CgroupSockopt::load(program),
        Program::CgroupSysctl(program) => CgroupSysctl::load(program),
        Program::SkMsg(program) => SkMsg::load(program),
        Program::SkSkb(program) => SkSkb::load(program),
        Program::LsmCgroup(program) => LsmCgroup::load(program, "socket_create", &Btf::from_sys_fs()?),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// What made the object, as it says itself.
fn compiler() -> Result<String> {
    const MARK: &[u8] = b"(rustc version ";
    let object = zt_agent::kernel::object();
    let at = object.windows(MARK.len()).position(|bytes| bytes == MARK);
    let rest = &object[at.context("the object does not say what made it")? + MARK.len()..];
    let end = rest.iter().position(|&byte| byte == 0).context("no end")?;
    let text = String::from_utf8_lossy(&rest[..end]);
    Ok(format!("rustc {}", text.strip_suffix(')').unwrap_or(&text)))
}
