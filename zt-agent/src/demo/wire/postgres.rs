// SPDX-License-Identifier: Apache-2.0
//! `PostgreSQL`'s protocol, version 3: the start of a session without a password, and a query that answers with one
//! value. See "Message Formats" in `PostgreSQL`'s documentation.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{send, unexpected};

const VERSION_3: u32 = 3 << 16;
/// The same backend answers with the same number: two answers that are equal came over one session.
const QUERY: &str = "SELECT split_part(version(), ' (', 1) || ', session ' || pg_backend_pid()";
/// Longer messages are not part of this conversation.
const MAX_MESSAGE: usize = 64 * 1024;

/// Starts a session as `postgres` and waits until the server is ready for queries.
pub(super) fn start_session(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut body = VERSION_3.to_be_bytes().to_vec();
    body.extend_from_slice(b"user\0postgres\0database\0postgres\0application_name\0zt-demo\0\0");
    let mut message = length(&body).to_vec();
    message.extend_from_slice(&body);
    send(stream, &message)?;
    read_until_ready(stream).map(drop)
}

/// Asks for the server's version and the session's number.
pub(super) fn ask(stream: &mut (impl Read + Write)) -> io::Result<String> {
    let mut body = QUERY.as_bytes().to_vec();
    body.push(0);
    send(stream, &message(b'Q', &body))?;
    read_until_ready(stream)?.ok_or_else(|| unexpected("no row"))
}

/// Answers every query with one row.
pub(super) fn serve(stream: &mut (impl Read + Write)) -> io::Result<()> {
    static SESSIONS: AtomicU32 = AtomicU32::new(1);
    let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
    let mut size = [0; 4];
    stream.read_exact(&mut size)?;
    read_body(stream, size)?;
    let authentication_ok = message(b'R', &0_u32.to_be_bytes());
    let ready = message(b'Z', b"I");
    send(stream, &[authentication_ok, ready.clone()].concat())?;
    loop {
        let (kind, _) = read_message(stream)?;
        if kind == b'X' {
            return Ok(());
        }
        let value = format!("built-in server, session {session}");
        let mut row = 1_u16.to_be_bytes().to_vec();
        row.extend_from_slice(&(value.len() as u32).to_be_bytes());
        row.extend_from_slice(value.as_bytes());
        let answer = [message(b'D', &row), message(b'C', b"SELECT 1\0"), ready.clone()];
        send(stream, &answer.concat())?;
    }
}

/// The first column of the last row that comes before the server is ready again; its error, if it sends one.
fn read_until_ready(stream: &mut impl Read) -> io::Result<Option<String>> {
    let mut value = None;
    loop {
        match read_message(stream)? {
            (b'Z', _) => return Ok(value),
            (b'D', body) => value = Some(first_column(&body).ok_or_else(|| unexpected("a short row"))?),
            (b'R', body) if body != 0_u32.to_be_bytes() => return Err(unexpected("a demand for a password")),
            (b'E', body) => return Err(unexpected(&error_text(&body))),
            _ => {}
        }
    }
}

fn first_column(row: &[u8]) -> Option<String> {
    let size = u32::from_be_bytes(row.get(2..6)?.try_into().ok()?) as usize;
    Some(String::from_utf8_lossy(row.get(6..6 + size)?).into_owned())
}

/// The `M` field of an error.
fn error_text(body: &[u8]) -> String {
    let mut fields = body.split(|byte| *byte == 0);
    let text = fields.find_map(|field| field.strip_prefix(b"M")).unwrap_or(body);
    String::from_utf8_lossy(text).into_owned()
}

fn read_message(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [kind, size @ ..] = head;
    Ok((kind, read_body(stream, size)?))
}

fn read_body(stream: &mut impl Read, size: [u8; 4]) -> io::Result<Vec<u8>> {
    let size = u32::from_be_bytes(size) as usize;
    if !(4..=MAX_MESSAGE).contains(&size) {
        return Err(unexpected("a message of a strange size"));
    }
    let mut body = vec![0; size - 4];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &length(body), body].concat()
}

/// A length counts itself.
fn length(body: &[u8]) -> [u8; 4] {
    (body.len() as u32 + 4).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_nonsense_are_told() {
        let error = message(b'E', b"SFATAL\0C28000\0Mno entry\0\0");
        let told = read_until_ready(&mut error.as_slice())
            .expect_err("error")
            .to_string();
        assert!(told.contains("no entry"), "{told}");
        let password = message(b'R', &10_u32.to_be_bytes());
        assert!(
            read_until_ready(&mut password.as_slice())
                .expect_err("password")
                .to_string()
                .contains("password")
        );
        for short in [
            &b"Z\0\0"[..],
            b"D\0\0\0\0",
            b"D\xff\xff\xff\xff",
            b"D\0\0\0\x06\0\x01",
        ] {
            assert!(read_until_ready(&mut &*short).is_err(), "{short:?}");
        }
    }
}
