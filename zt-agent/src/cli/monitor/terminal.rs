// SPDX-License-Identifier: Apache-2.0
//! The view on a real terminal: keys, signals, frames. The terminal is as it was before, however this ends.

use std::io;
use std::time::{Duration, Instant};

use crossterm::event::{Event, EventStream as Keys, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures::StreamExt as _;
use nix::sys::signal::{Signal, raise};
use ratatui::DefaultTerminal;
use serde_json::Value;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::details;
use super::draw::draw;
use super::feed::{self, Fed};
use super::keys::{Asked, Key};
use super::view::View;
use crate::cli::client::{Client, EventStream};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::colourful;

/// How long a frame stays.
const FRAME: Duration = Duration::from_millis(100);
/// What may wait between the agent and the view. What does not fit waits with the agent, which counts what it drops.
const WAITING: usize = 2048;
/// How much is taken in before a key is looked for.
const AT_ONCE: usize = 512;

/// The terminal, taken. A panic gives it back, too, before it says what happened.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// A rule and what the agent says of its policy.
type Told = (String, Result<Value, String>);

/// Shows what comes until somebody has seen enough.
pub(super) async fn run(
    client: Client,
    query: Vec<(&'static str, String)>,
    events: EventStream,
) -> Result<Exit, Failure> {
    let mut ends = Ends::new()?;
    let (to, mut fed) = mpsc::channel(WAITING);
    let (tell, mut told) = mpsc::channel::<Told>(8);
    tokio::spawn(feed::feed(client.clone(), query, events, to));
    let mut view = View::new();
    let mut screen = Screen::take()?;
    let mut keys = Keys::new();
    let begun = Instant::now();
    let mut frames = tokio::time::interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch: Vec<Fed> = Vec::with_capacity(AT_ONCE);
    let colour = colourful();
    loop {
        tokio::select! {
            biased;
            () = ends.any() => return Ok(Exit::Done),
            event = keys.next() => {
                match event {
                    None => return Ok(Exit::Done),
                    Some(event) => match event? {
                        Event::Key(key) if is_suspension(key) => {
                            drop(screen);
                            raise(Signal::SIGTSTP).map_err(io::Error::from)?;
                            screen = Screen::take()?;
                        }
                        Event::Key(key) => match key_of(key).map(|key| view.press(key)) {
                            Some(Asked::Quit) => return Ok(Exit::Done),
                            Some(Asked::Rule(rule)) => ask(client.clone(), rule, tell.clone()),
                            Some(Asked::Nothing) | None => {}
                        },
                        _ => {}
                    },
                }
                // Whoever presses a key sees at once what it does.
                screen.0.draw(|frame| draw(frame, &view, colour))?;
            }
            _ = frames.tick() => {
                screen.0.draw(|frame| draw(frame, &view, colour))?;
                view.tick(begun.elapsed());
            }
            Some((rule, answer)) = told.recv() => {
                view.told(&rule, answer.as_ref().map_err(Clone::clone));
            }
            count = fed.recv_many(&mut batch, AT_ONCE) => {
                if count == 0 {
                    return Err(Failure::NotFound("what reads from the agent has ended".to_owned()));
                }
                batch.drain(..).for_each(|one| view.take(one));
            }
        }
    }
}

/// Asks for the policy of a rule.
fn ask(client: Client, rule: String, tell: mpsc::Sender<Told>) {
    tokio::spawn(async move {
        let Some((policy, _)) = details::place(&rule) else {
            return;
        };
        let answer = client.get(&format!("/v1/policies/{policy}"), &[]).await;
        // Nobody listens any more when the view has ended.
        let _ = tell.send((rule, answer.map_err(|error| error.to_string()))).await;
    });
}

/// The signals that end a program.
struct Ends([Signals; 3]);

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn any(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Ctrl-Z, which no terminal turns into a signal while keys come one by one.
fn is_suspension(key: KeyEvent) -> bool {
    key.code == KeyCode::Char('z') && key.modifiers.contains(KeyModifiers::CONTROL)
}

fn key_of(key: KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Some(Key::Interrupt),
            KeyCode::Char('u') => Some(Key::Clear),
            _ => None,
        };
    }
    Some(match key.code {
        KeyCode::Char(character) => Key::Char(character),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Tab | KeyCode::BackTab => Key::Tab,
        _ => return None,
    })
}
