// SPDX-License-Identifier: Apache-2.0
//! Cedar, in the two forms that its documentation has for many rules of one shape.
//!
//! *Templates*: each rule is a policy, linked from a template, so that an answer names it. The authorizer looks at every
//! policy. *Entities*: who may reach what is a relation between entities, and two policies ask for it, however many rules
//! there are; an answer then names one of the two, and not the rule.
//!
//! Requests are made before.

use std::collections::{HashMap, HashSet};
use std::hint::black_box;
use std::str::FromStr as _;

use anyhow::{Context as _, Result};
use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicyId,
    PolicySet, Request, Response, RestrictedExpression, SlotId, Template,
};

use crate::measure::{Engine, Worker};
use crate::questions::{Answer, PORT, Question, Rule};

const TEMPLATES: [(&str, &str); 2] = [
    (
        "allow",
        r#"permit(principal == ?principal, action == Action::"connect", resource == ?resource);"#,
    ),
    (
        "deny",
        r#"forbid(principal == ?principal, action == Action::"connect", resource == ?resource);"#,
    ),
];

const RELATIONS: [(&str, &str); 2] = [
    (
        "allow",
        r#"permit(principal, action == Action::"connect", resource is Port)
           when { resource has clients && principal in resource.clients };"#,
    ),
    (
        "deny",
        r#"forbid(principal, action == Action::"connect", resource is Port)
           when { resource has banned && principal in resource.banned };"#,
    ),
];

/// Policies, entities and requests for them.
pub(crate) struct Cedar {
    name: &'static str,
    policies: PolicySet,
    entities: Entities,
    requests: Vec<Request>,
    names_rules: bool,
}

fn uid(kind: &str, id: &str) -> Result<EntityUid> {
    Ok(EntityUid::from_type_name_and_id(
        EntityTypeName::from_str(kind)?,
        EntityId::new(id),
    ))
}

/// A port of a destination is what is reached.
fn place(destination: &str, port: u16) -> Result<EntityUid> {
    uid("Port", &format!("{destination} TCP {port}"))
}

fn requests(questions: &[Question]) -> Result<Vec<Request>> {
    let request = |question: &Question| {
        Ok(Request::new(
            uid("Workload", &question.source)?,
            uid("Action", "connect")?,
            place(&question.destination, question.port)?,
            Context::empty(),
            None,
        )?)
    };
    questions.iter().map(request).collect()
}

impl Cedar {
    /// A policy for each rule.
    pub(crate) fn templates(rules: &[Rule], questions: &[Question]) -> Result<Self> {
        let mut policies = PolicySet::new();
        for (name, text) in TEMPLATES {
            policies.add_template(Template::parse(Some(PolicyId::new(name)), text)?)?;
        }
        for rule in rules {
            let slots = HashMap::from([
                (SlotId::principal(), uid("Workload", &rule.source)?),
                (SlotId::resource(), place(&rule.destination, PORT)?),
            ]);
            let (template, _) = TEMPLATES[usize::from(rule.denies)];
            policies.link(PolicyId::new(template), PolicyId::new(&rule.name), slots)?;
        }
        Ok(Self {
            name: "cedar-policy, a policy for each rule",
            policies,
            entities: Entities::empty(),
            requests: requests(questions)?,
            names_rules: true,
        })
    }

    /// Two policies, and the rules as relations of entities.
    pub(crate) fn relations(rules: &[Rule], questions: &[Question]) -> Result<Self> {
        let mut policies = PolicySet::new();
        for (name, text) in RELATIONS {
            policies.add(cedar_policy::Policy::parse(Some(PolicyId::new(name)), text)?)?;
        }
        let mut groups: HashMap<&str, HashSet<EntityUid>> = HashMap::new();
        let mut ports: HashMap<&str, HashMap<String, RestrictedExpression>> = HashMap::new();
        for rule in rules {
            let attribute = if rule.denies { "banned" } else { "clients" };
            let group = uid(
                "Group",
                &format!("{attribute} of {} TCP {PORT}", rule.destination),
            )?;
            let attributes = ports.entry(&rule.destination).or_default();
            let reference = RestrictedExpression::new_entity_uid(group.clone());
            attributes.insert(attribute.to_owned(), reference);
            groups.entry(&rule.source).or_default().insert(group);
        }
        let mut entities = Vec::with_capacity(groups.len() + ports.len());
        for (source, groups) in groups {
            entities.push(Entity::new_no_attrs(uid("Workload", source)?, groups));
        }
        for (destination, attributes) in ports {
            entities.push(Entity::new(
                place(destination, PORT)?,
                attributes,
                HashSet::new(),
            )?);
        }
        Ok(Self {
            name: "cedar-policy, rules as relations",
            policies,
            entities: Entities::from_entities(entities, None)?,
            requests: requests(questions)?,
            names_rules: false,
        })
    }
}

struct Asker<'e> {
    engine: &'e Cedar,
    authorizer: Authorizer,
}

impl Asker<'_> {
    fn decide(&self, request: &Request) -> Response {
        let (policies, entities) = (&self.engine.policies, &self.engine.entities);
        self.authorizer.is_authorized(request, policies, entities)
    }
}

impl Engine for Cedar {
    fn name(&self) -> &'static str {
        self.name
    }

    fn worker(&self) -> Result<Box<dyn Worker + '_>> {
        Ok(Box::new(Asker {
            engine: self,
            authorizer: Authorizer::new(),
        }))
    }
}

impl Worker for Asker<'_> {
    fn run(&mut self, first: usize, count: usize) -> Result<usize> {
        let turn = self.engine.requests.iter().cycle().skip(first).take(count);
        Ok(turn
            .filter(|request| black_box(self.decide(request)).decision() == Decision::Allow)
            .count())
    }

    fn answer(&mut self, question: usize) -> Result<Answer> {
        let response = self.decide(&self.engine.requests[question]);
        let errors = response.diagnostics().errors().next();
        anyhow::ensure!(errors.is_none(), "cedar-policy: {errors:?}");
        let decided = response.diagnostics().reason().next();
        let rule = decided.filter(|_| self.engine.names_rules);
        let rule = rule.map(ToString::to_string).unwrap_or_default();
        Ok(match (response.decision(), decided) {
            (Decision::Allow, _) => {
                decided.context("an answer names its policy")?;
                Answer::Allowed(rule)
            }
            (Decision::Deny, Some(_)) => Answer::Denied(rule),
            (Decision::Deny, None) => Answer::NoRule,
        })
    }
}
