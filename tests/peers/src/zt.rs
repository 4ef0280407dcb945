// SPDX-License-Identifier: Apache-2.0
//! zt's own answers: the call that the API makes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hint::black_box;

use anyhow::{Result, anyhow};
use zt_agent::policy::{AllowTable, Document, Party, Protocol, Settings, compile, parse};
use zt_agent::spiffe_id::SpiffeId;
use zt_common::verdict::Reason;

use crate::measure::{Engine, Worker};
use crate::questions::{Answer, EACH, PORT, Question, Rule};

/// A compiled table and questions for it.
pub(crate) struct Zt {
    table: AllowTable,
    questions: Vec<(SpiffeId, SpiffeId, u16)>,
}

impl Zt {
    pub(crate) fn new(rules: &[Rule], questions: &[Question]) -> Result<Self> {
        let documents: Vec<Document> = rules.chunks(EACH).enumerate().map(document).collect();
        let settings = Settings::default();
        let set = parse(&documents, &settings)
            .map_err(|problems| anyhow!("the rules do not parse: {:?}", problems.first()))?;
        let table = compile(&set, &BTreeSet::new(), &settings, 1)?;
        let question = |question: &Question| {
            Ok((
                SpiffeId::parse(&question.source)?,
                SpiffeId::parse(&question.destination)?,
                question.port,
            ))
        };
        Ok(Self {
            table,
            questions: questions.iter().map(question).collect::<Result<_>>()?,
        })
    }
}

fn document((number, rules): (usize, &[Rule])) -> Document {
    let mut text = String::with_capacity(rules.len() * 160);
    for rule in rules {
        let action = if rule.denies { "action: DENY, " } else { "" };
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "    - {{{action}from: {{spiffe: '{}'}}, to: [{{spiffe: '{}', ports: [{PORT}]}}]}}",
            rule.source, rule.destination
        );
    }
    Document {
        file: format!("rules-{number}.yaml"),
        text: format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata:\n  name: rules-{number}\nspec:\n  rules:\n{text}"
        ),
    }
}

impl Engine for Zt {
    fn name(&self) -> &'static str {
        "zt"
    }

    fn worker(&self) -> Result<Box<dyn Worker + '_>> {
        Ok(Box::new(self))
    }
}

impl Worker for &Zt {
    fn run(&mut self, first: usize, count: usize) -> Result<usize> {
        let turn = self.questions.iter().cycle().skip(first).take(count);
        Ok(turn
            .filter(|(source, destination, port)| {
                let (source, destination) = (Party::Spiffe(source), Party::Spiffe(destination));
                let decision = self.table.evaluate(source, destination, *port, Protocol::Tcp);
                black_box(decision).allowed
            })
            .count())
    }

    fn answer(&mut self, question: usize) -> Result<Answer> {
        let (source, destination, port) = &self.questions[question];
        let (source, destination) = (Party::Spiffe(source), Party::Spiffe(destination));
        let decision = self.table.evaluate(source, destination, *port, Protocol::Tcp);
        let rule = decision.rule.as_deref().unwrap_or_default().to_owned();
        Ok(match decision.reason {
            Reason::Rule => Answer::Allowed(rule),
            Reason::DenyRule => Answer::Denied(rule),
            _ => Answer::NoRule,
        })
    }
}
