// SPDX-License-Identifier: Apache-2.0
//! Two sockets that open toward each other (simultaneous open): each SYN meets one that is under way itself.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use crate::probe::{ConnectOptions, Handle, Operation, TIMEOUT};
use crate::scene::Party;
use crate::wait::eventually;

/// How long both may try.
const PATIENT: Duration = Duration::from_secs(10);

/// Cuts `one` off, and has each of them call the other's place from its own. Their namespaces know where the other is.
pub fn begin(one: &mut Party, here: SocketAddr, other: &mut Party, there: SocketAddr) -> Result<()> {
    one.host.cut()?;
    let call = |to, from| Operation::TcpConnect {
        to,
        options: ConnectOptions {
            bind: Some(from),
            timeout: PATIENT,
            ..ConnectOptions::default()
        },
    };
    one.send(call(there, here))?;
    other.send(call(here, there))?;
    Ok(())
}

/// Lets what [`begin`] began come to its end: both SYNs are lost by now or cross now; either way they are repeated.
pub fn meet(one: &mut Party, other: &mut Party) -> Result<[Handle; 2]> {
    eventually("both SYNs to be sent", TIMEOUT, || {
        let waits = |party: &Party| -> Result<bool> {
            let output = party
                .host
                .command("ss")
                .args(["-tanH", "state", "syn-sent"])
                .output()?;
            Ok(!output.stdout.is_empty())
        };
        Ok(waits(one)? && waits(other)?)
    })?;
    one.host.mend()?;
    Ok([one.wait()?.handle()?, other.wait()?.handle()?])
}
