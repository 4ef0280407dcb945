// SPDX-License-Identifier: Apache-2.0
//! Regorus, which evaluates Rego, the language of OPA. The rules are data, indexed by source, destination and port, and
//! the policy looks them up: what Rego's authors recommend for many rules of one shape. Compiled for regorus's virtual
//! machine, its fastest way; the machine is kept, and each question is an input that was made before.

use std::hint::black_box;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::program::Program;
use regorus::rvm::vm::RegoVM;
use regorus::{Engine as Rego, Rc, Value};
use serde_json::{Map, Value as Json, json};

use crate::measure::{Engine, Worker};
use crate::questions::{Answer, PORT, Question, Rule};

const POLICY: &str = r#"
package zt

import rego.v1

default decision := {"allowed": false, "rule": null}

decision := {"allowed": false, "rule": rule} if {
    rule := data.deny[input.source][input.destination][input.target]
} else := {"allowed": true, "rule": rule} if {
    rule := data.allow[input.source][input.destination][input.target]
}
"#;
const ENTRY: &str = "data.zt.decision";

/// A program, its data and inputs for it.
pub(crate) struct Regorus {
    program: Arc<Program>,
    data: Value,
    inputs: Vec<Value>,
    allowed: Value,
    rule: Value,
}

fn target(port: u16) -> String {
    format!("TCP/{port}")
}

impl Regorus {
    pub(crate) fn new(rules: &[Rule], questions: &[Question]) -> Result<Self> {
        let mut effects = [Map::new(), Map::new()];
        for rule in rules {
            let sources = &mut effects[usize::from(rule.denies)];
            let destinations = sources.entry(&rule.source).or_insert_with(|| json!({}));
            let targets = child(destinations, &rule.destination).context("data")?;
            if let Json::Object(targets) = targets {
                targets.insert(target(PORT), json!(rule.name));
            }
        }
        let [allow, deny] = effects;
        let data = Value::from_json_str(&json!({ "allow": allow, "deny": deny }).to_string())?;
        let mut engine = Rego::new();
        engine.add_policy("zt.rego".to_owned(), POLICY.to_owned())?;
        engine.add_data(data.clone())?;
        let compiled = engine.compile_with_entrypoint(&Rc::from(ENTRY))?;
        let program = Compiler::compile_from_policy(&compiled, &[ENTRY])
            .map_err(|error| anyhow!("the policy does not compile: {error:?}"))?;
        let input = |question: &Question| {
            let input = json!({
                "source": question.source,
                "destination": question.destination,
                "target": target(question.port),
            });
            Value::from_json_str(&input.to_string())
        };
        Ok(Self {
            program,
            data,
            inputs: questions.iter().map(input).collect::<Result<_>>()?,
            allowed: Value::from("allowed"),
            rule: Value::from("rule"),
        })
    }
}

fn child<'v>(value: &'v mut Json, key: &str) -> Option<&'v mut Json> {
    Some(value.as_object_mut()?.entry(key).or_insert_with(|| json!({})))
}

struct Machine<'e> {
    engine: &'e Regorus,
    machine: RegoVM,
}

impl Machine<'_> {
    fn decide(&mut self, input: &Value) -> Result<Value> {
        self.machine.set_input(input.clone());
        let decided = self.machine.execute_entry_point_by_index(0);
        decided.map_err(|error| anyhow!("regorus: {error:?}"))
    }

    fn allows(&self, decision: &Value) -> Result<bool> {
        Ok(*decision
            .as_object()?
            .get(&self.engine.allowed)
            .context("allowed")?
            == Value::from(true))
    }
}

impl Engine for Regorus {
    fn name(&self) -> &'static str {
        "regorus"
    }

    fn worker(&self) -> Result<Box<dyn Worker + '_>> {
        let mut machine = RegoVM::new();
        machine.load_program(Arc::clone(&self.program));
        machine
            .set_data(self.data.clone())
            .map_err(|error| anyhow!("regorus: {error:?}"))?;
        machine.set_max_instructions(usize::MAX);
        Ok(Box::new(Machine {
            engine: self,
            machine,
        }))
    }
}

impl Worker for Machine<'_> {
    fn run(&mut self, first: usize, count: usize) -> Result<usize> {
        let mut allowed = 0;
        let inputs = &self.engine.inputs;
        for input in inputs.iter().cycle().skip(first).take(count) {
            let decision = black_box(self.decide(input)?);
            allowed += usize::from(self.allows(&decision)?);
        }
        Ok(allowed)
    }

    fn answer(&mut self, question: usize) -> Result<Answer> {
        let decision = self.decide(&self.engine.inputs[question])?;
        let allowed = self.allows(&decision)?;
        let rule = decision.as_object()?.get(&self.engine.rule).context("rule")?;
        Ok(match rule.as_string() {
            Ok(rule) if allowed => Answer::Allowed(rule.to_string()),
            Ok(rule) => Answer::Denied(rule.to_string()),
            Err(_) => Answer::NoRule,
        })
    }
}
