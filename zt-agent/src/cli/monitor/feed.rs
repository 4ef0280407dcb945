// SPDX-License-Identifier: Apache-2.0
//! What comes from the agent, for as long as the view is there: when the agent goes away, until it is back.

use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc::Sender;

use super::STREAM;
use crate::cli::client::{Client, Event, EventStream};

/// How long until the first attempt at an agent that went away; doubled each time, up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LAST_WAIT: Duration = Duration::from_secs(4);

/// Something that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fed {
    /// A record's JSON.
    Record(String),
    /// So many records were not sent, for they were not read in time.
    Missed(u64),
    /// Which agent it is.
    Agent(String),
    /// The stream is there.
    Connected,
    /// The stream has ended, or is not to be had, and why.
    Gone(String),
}

/// Whether an event is a record. Anything else is a notice.
pub(super) fn is_record(event: &Event) -> bool {
    matches!(event.name.as_str(), "" | "message" | "decision")
}

/// Passes on what comes, until nobody takes it any more.
pub(super) async fn feed(
    client: Client,
    query: Vec<(&'static str, String)>,
    events: EventStream,
    to: Sender<Fed>,
) {
    let mut events = Some(events);
    let mut wait = FIRST_WAIT;
    loop {
        let why = match events.take() {
            Some(mut stream) => {
                wait = FIRST_WAIT;
                if to.send(Fed::Connected).await.is_err() {
                    return;
                }
                tokio::spawn(tell_agent(client.clone(), to.clone()));
                match pass(&mut stream, &to).await {
                    Some(why) => why,
                    None => return,
                }
            }
            None => match client.events(STREAM, &query).await {
                Ok(stream) => {
                    events = Some(stream);
                    continue;
                }
                Err(error) => error.to_string(),
            },
        };
        if to.send(Fed::Gone(why)).await.is_err() {
            return;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LAST_WAIT);
    }
}

/// Passes on the events of one stream. Why it ended; `None` when nobody takes them any more.
async fn pass(stream: &mut EventStream, to: &Sender<Fed>) -> Option<String> {
    loop {
        let fed = match stream.next().await {
            Ok(Some(event)) if is_record(&event) => Fed::Record(event.data),
            Ok(Some(event)) => match missed(&event) {
                Some(count) => Fed::Missed(count),
                None => continue,
            },
            Ok(None) => {
                return Some("the agent ended the stream; it is stopping, or was restarted".to_owned());
            }
            Err(error) => return Some(error.to_string()),
        };
        to.send(fed).await.ok()?;
    }
}

fn missed(event: &Event) -> Option<u64> {
    #[derive(Deserialize)]
    struct Lagged {
        missed: u64,
    }
    let lagged: Lagged = serde_json::from_str(&event.data).ok()?;
    (event.name == "lagged").then_some(lagged.missed)
}

/// Passes on which agent it is, if it says so: a name at the top of the view, and no more.
async fn tell_agent(client: Client, to: Sender<Fed>) {
    let status = client.get("/v1/status", &[]).await.unwrap_or_default();
    if let Some(node) = status["node"].as_str() {
        // The view may have ended.
        let _ = to.send(Fed::Agent(node.to_owned())).await;
    }
}
