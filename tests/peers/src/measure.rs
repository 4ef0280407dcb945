// SPDX-License-Identifier: Apache-2.0
//! Measuring: all engines in turn, round after round, on the same rules and questions. Before anything is measured, every
//! engine must have given the right answers.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use serde::Serialize;

use crate::questions::{self, Question, Rule};
use crate::{cedar, rego, zt};

const SIZES: [usize; 3] = [10, 1000, 100_000];
/// How long one batch takes at least, so that the clock and the threads' start do not count.
const BATCH: Duration = Duration::from_millis(20);
/// How long looking at an engine's answers may take; one that is slow is asked fewer questions.
const CHECKING: Duration = Duration::from_secs(2);
/// The fewest questions that an engine is checked with: every kind of answer, many times.
const CHECKED: usize = 60;

/// What decides.
pub(crate) trait Engine: Sync {
    fn name(&self) -> &'static str;
    /// What one thread needs to ask it.
    fn worker(&self) -> Result<Box<dyn Worker + '_>>;
}

/// One thread's way to ask.
pub(crate) trait Worker {
    /// Asks `count` questions, the first of them being the `first`, and says how many were allowed.
    fn run(&mut self, first: usize, count: usize) -> Result<usize>;
    /// The answer to one question.
    fn answer(&mut self, question: usize) -> Result<questions::Answer>;
}

/// zt and the others.
fn engines(rules: &[Rule], questions: &[Question]) -> Result<Vec<Box<dyn Engine>>> {
    Ok(vec![
        Box::new(zt::Zt::new(rules, questions)?),
        Box::new(rego::Regorus::new(rules, questions)?),
        Box::new(cedar::Cedar::relations(rules, questions)?),
        Box::new(cedar::Cedar::templates(rules, questions)?),
    ])
}

/// How long one engine took for a decision.
#[derive(Serialize)]
pub(crate) struct Measured {
    engine: &'static str,
    rules: usize,
    threads: usize,
    /// By round: wall time ÷ decisions of all threads.
    nanoseconds: Vec<f64>,
}

/// All engines, from one thread and from all, with ever more rules.
pub(crate) fn all(rounds: usize) -> Result<Vec<Measured>> {
    let cpus = thread::available_parallelism()?.get();
    let mut all = Vec::new();
    for size in SIZES {
        let rules = questions::rules(size);
        let questions = questions::questions(&rules);
        let engines = engines(&rules, &questions)?;
        for engine in &engines {
            let checked = check(&**engine, &questions)?;
            eprintln!("  {size} rules: {checked} answers of {} are right", engine.name());
        }
        let both = [1, cpus];
        for &threads in if cpus == 1 { &both[..1] } else { &both } {
            let samples = measure(rounds, &engines, threads)?;
            all.extend(engines.iter().zip(samples).map(|(engine, nanoseconds)| Measured {
                engine: engine.name(),
                rules: size,
                threads,
                nanoseconds,
            }));
        }
    }
    Ok(all)
}

/// Asks an engine, and fails where an answer is not the right one. Returns how many it gave.
fn check(engine: &dyn Engine, questions: &[Question]) -> Result<usize> {
    let mut worker = engine.worker()?;
    let start = Instant::now();
    for (number, question) in questions.iter().enumerate() {
        if number >= CHECKED && start.elapsed() > CHECKING {
            return Ok(number);
        }
        let answer = worker.answer(number)?;
        ensure!(
            answer.agrees(&question.expected),
            "{} answers {answer:?} to {question:?}",
            engine.name()
        );
    }
    Ok(questions.len())
}

/// Nanoseconds for each decision, of each engine by round; in every round each has its turn, in every other round from
/// the last to the first.
fn measure(rounds: usize, engines: &[Box<dyn Engine>], threads: usize) -> Result<Vec<Vec<f64>>> {
    let counts: Vec<usize> = engines
        .iter()
        .map(|engine| batch_of(&**engine))
        .collect::<Result<_>>()?;
    let mut samples = vec![Vec::new(); engines.len()];
    for round in 0..rounds {
        for step in 0..engines.len() {
            let turn = if round % 2 == 0 {
                step
            } else {
                engines.len() - 1 - step
            };
            let took = timed(&*engines[turn], threads, counts[turn])?;
            samples[turn].push(took.as_nanos() as f64 / (counts[turn] * threads) as f64);
        }
    }
    Ok(samples)
}

/// How many questions take an engine long enough to be measured.
fn batch_of(engine: &dyn Engine) -> Result<usize> {
    let mut count = 1;
    while timed(engine, 1, count)? < BATCH {
        count *= 2;
    }
    Ok(count)
}

/// How long so many threads take for so many questions each. Each begins elsewhere in the set.
fn timed(engine: &dyn Engine, threads: usize, count: usize) -> Result<Duration> {
    let barrier = Barrier::new(threads);
    let ask = |number: usize| {
        let ready = engine.worker().and_then(|mut worker| {
            worker.run(0, 1)?;
            Ok(worker)
        });
        barrier.wait();
        let start = Instant::now();
        let allowed = ready?.run(number * questions::QUESTIONS / threads, count)?;
        ensure!(allowed > 0 || count < 3, "{} allowed nothing", engine.name());
        Ok((start, Instant::now()))
    };
    let ask = &ask;
    let spans: Vec<Result<(Instant, Instant)>> = thread::scope(|scope| {
        let asking: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || ask(number)))
            .collect();
        asking
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow!("a thread that asks has died"))?
            })
            .collect()
    });
    let spans: Vec<(Instant, Instant)> = spans.into_iter().collect::<Result<_>>()?;
    let begin = spans.iter().map(|(start, _)| *start).min().context("no thread")?;
    let end = spans.iter().map(|(_, end)| *end).max().context("no thread")?;
    Ok(end - begin)
}
