// SPDX-License-Identifier: Apache-2.0
//! Changes of what somebody else keeps, who counts versions as the Kubernetes API does.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::policy::document_of;
use crate::policy_dir::{Edit, Editor, Plan, Sighting};

#[derive(Debug, Default)]
struct Keeper(Mutex<(u64, BTreeMap<String, Value>)>);

impl Keeper {
    fn with(names: &[&str]) -> Arc<Self> {
        let keeper = Self::default();
        for name in names {
            let place = format!("serviceaccesspolicies/{name}");
            keeper
                .write(&place, None, Some(&resource(name, 80)))
                .expect("kept");
        }
        Arc::new(keeper)
    }

    fn kept(&self, place: &str) -> Option<Value> {
        self.0.lock().expect("whole").1.get(place).cloned()
    }

    /// Somebody else changes it.
    fn touch(&self, place: &str) {
        let mut all = self.0.lock().expect("whole");
        all.0 += 1;
        let version = all.0.to_string();
        all.1.get_mut(place).expect("kept")["metadata"]["resourceVersion"] = version.into();
    }
}

impl Store for Keeper {
    fn name(&self) -> &'static str {
        "keeper"
    }

    fn read(&self) -> Result<Vec<Held>, EditError> {
        let all = self.0.lock().expect("whole");
        let held = all.1.iter().map(|(place, resource)| Held {
            document: Document {
                file: place.clone(),
                text: document_of(resource).to_string(),
            },
            resource: resource.clone(),
        });
        Ok(held.collect())
    }

    fn write(
        &self,
        place: &str,
        from: Option<&Value>,
        to: Option<&Value>,
    ) -> Result<Option<Value>, EditError> {
        let mut all = self.0.lock().expect("whole");
        let version = |value: &Value| value["metadata"]["resourceVersion"].clone();
        if all.1.get(place).map(version) != from.map(version) {
            return Err(EditError::Conflict(place.to_owned()));
        }
        if let (Some(from), Some(to)) = (from, to) {
            assert_eq!(version(from), version(to), "it says what it replaces");
        }
        all.0 += 1;
        let Some(to) = to else {
            all.1.remove(place);
            return Ok(None);
        };
        let mut to = to.clone();
        to["metadata"]["resourceVersion"] = all.0.to_string().into();
        all.1.insert(place.to_owned(), to.clone());
        Ok(Some(to))
    }
}

fn resource(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": {"name": name},
        "spec": {"rules": [{"from": {"entity": "host"}, "to": [{"entity": "world", "ports": [port]}]}]},
    })
}

fn plan(keeper: &Arc<Keeper>, edit: Edit) -> Result<Plan, EditError> {
    let editor = Editor::of_store(Arc::clone(keeper) as Arc<dyn Store>, Settings::default());
    editor.plan(edit, &policy::PolicySet::default(), |_| Ok(()))
}

fn put(name: &str, port: u16) -> Edit {
    Edit::Put {
        name: name.to_owned(),
        text: resource(name, port).to_string(),
    }
}

fn delete(name: &str) -> Edit {
    Edit::Delete {
        name: name.to_owned(),
    }
}

fn port(keeper: &Keeper, name: &str) -> Option<Value> {
    let kept = keeper.kept(&format!("serviceaccesspolicies/{name}"))?;
    Some(kept["spec"]["rules"][0]["to"][0]["ports"][0].clone())
}

#[test]
fn a_change_is_made_and_taken_back() {
    let keeper = Keeper::with(&["web"]);
    let change = plan(&keeper, put("web", 81)).expect("planned");
    assert_eq!(port(&keeper, "web"), Some(json!(80)), "a plan changes nothing");
    change.commit().expect("made");
    assert_eq!(port(&keeper, "web"), Some(json!(81)));
    change.undo().expect("taken back");
    assert_eq!(port(&keeper, "web"), Some(json!(80)));

    let new = plan(&keeper, put("new", 82)).expect("planned");
    new.commit().expect("made");
    assert_eq!(port(&keeper, "new"), Some(json!(82)));
    let gone = plan(&keeper, delete("new")).expect("planned");
    gone.commit().expect("made");
    assert_eq!(port(&keeper, "new"), None);
    gone.undo().expect("taken back");
    assert_eq!(port(&keeper, "new"), Some(json!(82)));
    let again = plan(&keeper, put("newer", 83)).expect("planned");
    again.commit().expect("made");
    again.undo().expect("taken back");
    assert_eq!(port(&keeper, "newer"), None);
}

#[test]
fn what_a_change_wrote_bears_its_id_as_long_as_that_is_there() {
    let keeper = Keeper::with(&["web"]);
    let editor = Editor::of_store(Arc::clone(&keeper) as Arc<dyn Store>, Settings::default());
    let known = policy::PolicySet::default();
    let look = |name: &str| editor.look(name, &known).expect("seen");
    let written_by = |name: &str| look(name).written_by;
    let before = look("web");
    assert!(before.digest.is_some() && before.written_by.is_none());
    let [first, second] = [1, 2].map(Uuid::from_u128);
    let change = plan(&keeper, put("web", 81)).expect("planned");
    change.commit_as(first).expect("made");
    assert_eq!(written_by("web"), Some(first));
    change.undo().expect("taken back");
    assert_eq!(look("web"), before);
    change.commit_as(first).expect("made again");
    // Somebody else's change of what is in it.
    keeper.touch("serviceaccesspolicies/web");
    assert_eq!(written_by("web"), Some(first));
    let next = plan(&keeper, put("web", 82)).expect("planned");
    next.commit_as(second).expect("made");
    assert_eq!(written_by("web"), Some(second));
    assert_eq!(written_by("new"), None);
    let new = plan(&keeper, put("new", 83)).expect("planned");
    new.commit_as(first).expect("made");
    plan(&keeper, delete("web"))
        .and_then(|plan| plan.commit_as(second))
        .expect("deleted");
    assert_eq!(
        (written_by("new"), look("web")),
        (Some(first), Sighting::default())
    );
}

#[test]
fn what_somebody_changed_meanwhile_is_not_overwritten() {
    let keeper = Keeper::with(&["web", "more"]);
    for edit in [put("web", 81), delete("web")] {
        let change = plan(&keeper, edit).expect("planned");
        keeper.touch("serviceaccesspolicies/web");
        assert!(matches!(change.commit(), Err(EditError::Conflict(_))));
        assert_eq!(port(&keeper, "web"), Some(json!(80)));
    }
    let change = plan(&keeper, put("web", 81)).expect("planned");
    change.commit().expect("made");
    keeper.touch("serviceaccesspolicies/web");
    assert!(
        matches!(change.undo(), Err(EditError::Conflict(_))),
        "nor by taking it back"
    );
    let new = plan(&keeper, put("new", 82)).expect("planned");
    keeper
        .write("serviceaccesspolicies/new", None, Some(&resource("new", 90)))
        .expect("made by another");
    assert!(matches!(new.commit(), Err(EditError::Conflict(_))));
    assert_eq!(port(&keeper, "new"), Some(json!(90)));
}

#[test]
fn a_name_is_of_one_kind_and_the_last_policy_stays() {
    let keeper = Keeper::with(&["web"]);
    let operator = json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "OperatorAccessPolicy", "metadata": {"name": "web"},
        "spec": {"rules": [{"role": "sre", "targets": [{"service": "*", "actions": ["read"]}]}]},
    });
    let edit = Edit::Put {
        name: "web".to_owned(),
        text: operator.to_string(),
    };
    assert!(matches!(
        plan(&keeper, edit),
        Err(EditError::OtherKind {
            kind: "ServiceAccessPolicy",
            ..
        })
    ));
    assert!(matches!(plan(&keeper, delete("web")), Err(EditError::LastPolicy)));
    assert!(matches!(
        plan(&keeper, delete("absent")),
        Err(EditError::NotFound(_))
    ));
}

#[test]
fn the_first_policy_is_made_and_what_is_not_valid_keeps_nobody_from_the_rest() {
    let keeper = Keeper::with(&[]);
    plan(&keeper, put("web", 80))
        .and_then(|plan| plan.commit())
        .expect("the first one");
    let mut bad = resource("bad", 80);
    bad["spec"]["rulez"] = json!([]);
    let place = "serviceaccesspolicies/bad";
    keeper.write(place, None, Some(&bad)).expect("written elsewhere");
    let change = plan(&keeper, put("web", 81)).expect("planned");
    assert_eq!(change.waits_for[0].file, place);
    change.commit().expect("made");
    assert_eq!(port(&keeper, "web"), Some(json!(81)));
    plan(&keeper, delete("web"))
        .and_then(|plan| plan.commit())
        .expect("deleted");
    let other_kind = Edit::Put {
        name: "bad".to_owned(),
        text: json!({
            "apiVersion": "zt.hanzo.ai/v1", "kind": "OperatorAccessPolicy", "metadata": {"name": "bad"},
            "spec": {"rules": [{"role": "sre", "targets": [{"service": "*", "actions": ["read"]}]}]},
        })
        .to_string(),
    };
    assert!(matches!(
        plan(&keeper, other_kind),
        Err(EditError::OtherKind {
            kind: "ServiceAccessPolicy",
            ..
        })
    ));
    let mend = plan(&keeper, put("bad", 82)).expect("planned");
    assert!(mend.waits_for.is_empty() && mend.existed);
    mend.commit().expect("mended");
    assert_eq!(port(&keeper, "bad"), Some(json!(82)));
    mend.undo().expect("taken back");
    assert_eq!(keeper.kept(place).expect("kept")["spec"]["rulez"], json!([]));
    keeper.touch(place);
    assert!(matches!(mend.undo(), Err(EditError::Conflict(_))));
    // Beside another one it can be deleted.
    plan(&keeper, put("web", 80))
        .and_then(|plan| plan.commit())
        .expect("made");
    plan(&keeper, delete("bad"))
        .and_then(|plan| plan.commit())
        .expect("deleted");
    assert!(keeper.kept(place).is_none());
}
