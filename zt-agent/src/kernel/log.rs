// SPDX-License-Identifier: Apache-2.0
//! The kernel side's rare diagnostics, as aya-log carries them. The programs write them only while the flag
//! [`zt_common::control::DIAGNOSTICS`] is set.

use std::os::fd::{AsRawFd as _, RawFd};

use aya::Ebpf;
use aya_log::EbpfLogger;

use super::error::KernelError;

/// The consuming end of the diagnostics.
pub struct KernelLog {
    logger: EbpfLogger<&'static dyn ::log::Log>,
}

impl std::fmt::Debug for KernelLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelLog").finish_non_exhaustive()
    }
}

impl KernelLog {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let logger = EbpfLogger::init(ebpf).map_err(KernelError::map("AYA_LOGS"))?;
        Ok(Self { logger })
    }

    /// Writes what has come to the log.
    pub fn flush(&mut self) {
        self.logger.flush();
    }

    /// Readable when something has come.
    pub fn descriptor(&self) -> RawFd {
        self.logger.as_raw_fd()
    }
}
