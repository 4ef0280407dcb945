// SPDX-License-Identifier: Apache-2.0
//! Redis: PING and PONG.

use std::io::{self, Read, Write};

use super::{read_line, send, unexpected};

pub(super) fn ask(stream: &mut (impl Read + Write)) -> io::Result<String> {
    send(stream, b"PING\r\n")?;
    let line = read_line(stream)?;
    match line.strip_prefix('+') {
        Some(answer) => Ok(answer.to_owned()),
        None => Err(unexpected(&line)),
    }
}

pub(super) fn serve(stream: &mut (impl Read + Write)) -> io::Result<()> {
    loop {
        let answer: &[u8] = match read_line(stream)?.as_str() {
            "PING" => b"+PONG\r\n",
            _ => b"-ERR this server only knows PING\r\n",
        };
        send(stream, answer)?;
    }
}
