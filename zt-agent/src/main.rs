// SPDX-License-Identifier: Apache-2.0
//! `zt-agent`: see `zt-agent --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    zt_agent::cli::main(std::env::args_os())
}
