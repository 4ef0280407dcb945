// SPDX-License-Identifier: Apache-2.0
//! The story, in the order in which it is told. Each chapter says what it does, does it, and holds what came out against
//! what must come out.

mod borrow;
mod change;
mod death;
mod ending;
mod enforce;
mod matrix;
mod observe;
mod opening;
mod records;

use std::path::Path;

use clap::Args;

use super::agent::Agent;
use super::cast::Who;
use super::error::DemoError;
use super::files::Setup;
use super::names::{Kind, Names};
use super::order::{Order, Outcome, Report};
use super::process;
use super::screen::Screen;
use super::world::World;

/// The story, as its own process.
#[derive(Debug, Args)]
pub struct StoryArgs {
    /// The process that cleans up.
    #[arg(long)]
    owner: u32,
    /// Where cgroup2 is mounted.
    #[arg(long)]
    mount: std::path::PathBuf,
    /// Without pauses.
    #[arg(long)]
    fast: bool,
    /// What is there will stay.
    #[arg(long)]
    keep: bool,
}

/// Everything that chapters work with.
struct Story {
    screen: Screen,
    world: World,
    agent: Agent,
    /// Connections that were tried since there is an agent: each is a decision, and will have to be on record.
    attempts: u64,
}

/// Tells the story. Whether everything came out as it must.
pub(super) fn tell(arguments: &StoryArgs) -> Result<bool, DemoError> {
    if !process::die_with(arguments.owner)? {
        return Ok(false);
    }
    let names = Names::of(Kind::Demo, arguments.owner, Path::new(&arguments.mount));
    let mut screen = Screen::new(arguments.fast);
    let world = opening::build(&mut screen, names)?;
    let agent = Agent::new(&world.names, &Setup::default())?;
    let mut story = Story {
        screen,
        world,
        agent,
        attempts: 0,
    };
    story.observe()?;
    story.enforce()?;
    story.who_reaches_whom()?;
    story.borrow_an_address()?;
    story.change_a_rule()?;
    story.kill_the_agent()?;
    story.look_at_the_records()?;
    story.end(arguments.keep)
}

impl Story {
    /// `from` connects to `to` and talks.
    fn reach(&mut self, from: Who, to: Who, ipv6: bool, times: u32) -> Result<Report, DemoError> {
        let report = self.world.actor(from)?.reach(to, ipv6, times)?;
        self.attempts += u64::from(report.attempts);
        Ok(report)
    }

    /// `who` does what is said, and reports once.
    fn call(&mut self, who: Who, order: Order) -> Result<Report, DemoError> {
        let report = self.world.actor(who)?.call(order)?;
        // Only connections count; talking on one that is there is no decision.
        if !matches!(order, Order::Ask) {
            self.attempts += u64::from(report.attempts);
        }
        Ok(report)
    }
}

/// What came of an attempt, in words.
pub(super) fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Reached { said } => format!("answered: {said}"),
        Outcome::Refused { errno } => {
            let error = nix::errno::Errno::from_raw(*errno);
            format!("refused with {error:?} ({})", error.desc())
        }
        Outcome::Broken { message, .. } => format!("broke: {message}"),
        Outcome::Begun => "has only begun".to_owned(),
        Outcome::Gone => "gone".to_owned(),
        Outcome::Late => "did not happen in time".to_owned(),
    }
}

pub(super) fn reached(report: &Report) -> bool {
    matches!(report.outcome, Outcome::Reached { .. })
}

/// Whether the kernel's refusal is policy's: anything else that fails is a fault of the demo.
pub(super) fn refused(report: &Report) -> bool {
    report.outcome == Outcome::Refused { errno: libc::EPERM }
}
