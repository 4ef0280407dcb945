// SPDX-License-Identifier: Apache-2.0
//! What services say to each other: just enough of each protocol to know that a connection really works, and to stand
//! in for a server that is not installed.

mod http;
mod postgres;
mod redis;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::cast::Speak;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A conversation that goes on over one connection.
#[derive(Debug)]
pub(super) struct Conversation {
    stream: TcpStream,
    speak: Speak,
}

impl Conversation {
    /// Begins one, and says what the server answered first.
    pub(super) fn begin(stream: TcpStream, speak: Speak) -> io::Result<(Self, String)> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut conversation = Self { stream, speak };
        if speak == Speak::Postgres {
            postgres::start_session(&mut conversation.stream)?;
        }
        let answer = conversation.ask()?;
        Ok((conversation, answer))
    }

    /// Asks once more.
    pub(super) fn ask(&mut self) -> io::Result<String> {
        match self.speak {
            Speak::Http => http::ask(&mut self.stream),
            Speak::Postgres => postgres::ask(&mut self.stream),
            Speak::Redis => redis::ask(&mut self.stream),
        }
    }

    /// The connection.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// Serves one connection, as the built-in server of `who`, until it ends.
pub(super) fn serve(mut stream: TcpStream, speak: Speak, who: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match speak {
        Speak::Http => http::serve(&mut stream, who),
        Speak::Postgres => postgres::serve(&mut stream),
        Speak::Redis => redis::serve(&mut stream),
    }
}

/// Reads a line that ends with CR LF, without them. Nobody here says more than 8 KiB in one.
fn read_line(stream: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
        if line.len() > 8192 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an endless line"));
        }
    }
    line.truncate(line.len() - 2);
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn unexpected(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the server answered {what:?}"),
    )
}

fn send(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn what_is_asked_is_answered() {
        for (speak, answer) in [
            (Speak::Http, "200 OK, iam is here"),
            (Speak::Postgres, "built-in server, session 1"),
            (Speak::Redis, "PONG"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
            let address = listener.local_addr().expect("address");
            let server = thread::spawn(move || serve(listener.accept().expect("accept").0, speak, "iam"));
            let stream = TcpStream::connect(address).expect("connect");
            let (mut conversation, first) = Conversation::begin(stream, speak).expect("begin");
            assert_eq!(first, answer);
            assert_eq!(conversation.ask().expect("again"), answer);
            drop(conversation);
            let _ = server.join().expect("no panic");
        }
    }
}
