// SPDX-License-Identifier: Apache-2.0
//! HTTP/1.1: one small request, one small answer, on a connection that stays.

use std::io::{self, Read, Write};

use super::{read_line, send, unexpected};

pub(super) fn ask(stream: &mut (impl Read + Write)) -> io::Result<String> {
    send(stream, b"GET /health HTTP/1.1\r\nHost: demo\r\n\r\n")?;
    let status = read_line(stream)?;
    let mut length = 0;
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value
                .trim()
                .parse::<usize>()
                .map_err(|_| unexpected(&line))?
                .min(8192);
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let status = status
        .strip_prefix("HTTP/1.1 ")
        .ok_or_else(|| unexpected(&status))?;
    Ok(format!("{status}, {}", String::from_utf8_lossy(&body).trim()))
}

pub(super) fn serve(stream: &mut (impl Read + Write), who: &str) -> io::Result<()> {
    loop {
        while !read_line(stream)?.is_empty() {}
        let body = format!("{who} is here\n");
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        send(stream, (head + &body).as_bytes())?;
    }
}
