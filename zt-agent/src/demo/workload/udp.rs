// SPDX-License-Identifier: Apache-2.0
//! Datagrams: one that is answered with itself, or is not.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::super::error::DemoError;
use super::super::order::Outcome;

/// How long an answer may take before the datagram is sent again: one may be lost.
const PATIENCE: Duration = Duration::from_millis(500);
const MESSAGE: &[u8] = b"are you there?";

/// Answers in the background.
pub(super) fn answer(at: SocketAddr) -> Result<(), DemoError> {
    let socket = UdpSocket::bind(at).map_err(DemoError::io(format!("take datagrams at {at}")))?;
    thread::spawn(move || {
        let mut buffer = [0; 512];
        loop {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                // Who is refused an answer asks again, or does not.
                let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
            }
        }
    });
    Ok(())
}

/// Sends a datagram until there is an answer, at most for so long.
pub(super) fn ask(to: SocketAddr, deadline: Duration) -> Outcome {
    match exchange(to, deadline) {
        Ok(true) => Outcome::Reached {
            said: "the datagram came back".to_owned(),
        },
        Ok(false) => Outcome::Late,
        Err(error) => Outcome::Refused {
            errno: error.raw_os_error().unwrap_or(0),
        },
    }
}

fn exchange(to: SocketAddr, deadline: Duration) -> io::Result<bool> {
    let begin = Instant::now();
    let own = match to {
        SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    let socket = UdpSocket::bind(own)?;
    socket.set_read_timeout(Some(PATIENCE.min(deadline)))?;
    let mut buffer = [0; 512];
    loop {
        socket.send_to(MESSAGE, to)?;
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if from == to && buffer.get(..length) == Some(MESSAGE) => return Ok(true),
            // Somebody else's, or none.
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        if begin.elapsed() >= deadline {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_comes_back_or_it_does_not() {
        let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let at = free.local_addr().expect("address");
        assert_eq!(ask(at, Duration::from_millis(1)), Outcome::Late);
        drop(free);
        answer(at).expect("bind again");
        assert!(matches!(
            ask(at, Duration::from_secs(20)),
            Outcome::Reached { .. }
        ));
    }
}
