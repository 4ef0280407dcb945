// SPDX-License-Identifier: Apache-2.0
//! What a change leaves on disk, and what it refuses to touch.

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

fn policy(name: &str, port: u16) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: {name}}}\nspec:\n  rules:\n    \
         - from: {{spiffe: \"spiffe://hanzo.ai/a\"}}\n      to: [{{spiffe: \"spiffe://hanzo.ai/b\", ports: [{port}]}}]\n"
    )
}

struct World {
    directory: TempDir,
    editor: Editor,
}

impl World {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        for (name, text) in files {
            fs::write(directory.path().join(name), text).expect("write");
        }
        let editor = Editor::new(directory.path().to_path_buf(), Settings::default());
        Self { directory, editor }
    }

    fn put(&self, name: &str, text: &str) -> Result<Plan, EditError> {
        let edit = Edit::Put {
            name: name.to_owned(),
            text: text.to_owned(),
        };
        self.editor.plan(edit, &PolicySet::default(), |_| Ok(()))
    }

    fn delete(&self, name: &str) -> Result<Plan, EditError> {
        let name = name.to_owned();
        self.editor
            .plan(Edit::Delete { name }, &PolicySet::default(), |_| Ok(()))
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).expect("directory");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).expect("readable")
    }
}

#[test]
fn a_policy_is_made_changed_and_removed() {
    let world = World::new(&[("core.yml", &policy("core", 1))]);
    let plan = world.put("extra", &policy("extra", 2)).expect("valid");
    assert_eq!(world.files(), ["core.yml"], "a plan touches nothing");
    plan.commit().expect("committed");
    assert_eq!(world.files(), ["core.yml", "extra.yaml"]);
    assert_eq!(world.text("extra.yaml"), policy("extra", 2));
    plan.undo().expect("undone");
    assert_eq!(world.files(), ["core.yml"]);

    // A policy stays in the file that it is in, whatever that is called, with the mode that it has.
    let file = world.directory.path().join("core.yml");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&file, mode).expect("chmod");
    world
        .put("core", &policy("core", 3))
        .and_then(|plan| plan.commit())
        .expect("changed");
    assert_eq!(world.text("core.yml"), policy("core", 3));
    let metadata = fs::metadata(&file).expect("metadata");
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777,
        0o600
    );
    assert!(matches!(world.delete("core"), Err(EditError::LastPolicy)));
    assert!(matches!(world.delete("other"), Err(EditError::NotFound(_))));
    fs::write(world.directory.path().join("b.yaml"), policy("b", 1)).expect("write");
    world
        .delete("core")
        .and_then(|plan| plan.commit())
        .expect("deleted");
    assert_eq!(world.files(), ["b.yaml"]);
}

#[test]
fn names_never_leave_the_directory() {
    let world = World::new(&[("core.yaml", &policy("core", 1))]);
    for name in [
        "../x", "..", ".", "", "a/b", "A", "a\0b", "-a", "builtin", "a.yaml", "a b", "é",
    ] {
        assert!(matches!(world.put(name, "x"), Err(EditError::Name)), "{name:?}");
        assert!(matches!(world.delete(name), Err(EditError::Name)), "{name:?}");
    }
    assert!(matches!(world.put(&"a".repeat(64), "x"), Err(EditError::Name)));
}

#[test]
fn what_is_kept_elsewhere_is_not_replaced() {
    let both = format!("{}---\n{}", policy("one", 1), policy("two", 2));
    let world = World::new(&[("hand.yaml", &both), ("x.yaml", &policy("other", 1))]);
    let shared = world.put("one", &policy("one", 9)).expect_err("shared");
    assert!(shared.to_string().contains("holds 2 policies"), "{shared}");
    assert!(matches!(world.delete("two"), Err(EditError::SharedFile { .. })));
    assert!(matches!(
        world.put("x", &policy("x", 1)),
        Err(EditError::FileTaken(_))
    ));

    // As a ConfigMap is mounted.
    let mount = World::new(&[]);
    let at = |name: &str| mount.directory.path().join(name);
    fs::create_dir(at("..v1")).expect("mkdir");
    fs::write(at("..v1/core.yaml"), policy("core", 1)).expect("write");
    symlink("..v1", at("..data")).expect("symlink");
    symlink("..data/core.yaml", at("core.yaml")).expect("symlink");
    assert!(matches!(
        mount.put("core", &policy("core", 2)),
        Err(EditError::Link(_))
    ));
    assert!(matches!(mount.delete("core"), Err(EditError::Link(_))));
    assert!(matches!(
        mount.put("new", &policy("new", 2)),
        Err(EditError::Link(_))
    ));

    let file = world.directory.path().join("x.yaml");
    let editor = Editor::new(file, Settings::default());
    let edit = |name: &str| Edit::Put {
        name: name.to_owned(),
        text: policy(name, 7),
    };
    let none = PolicySet::default();
    assert!(matches!(
        editor.plan(edit("new"), &none, |_| Ok(())),
        Err(EditError::NoDirectory(_))
    ));
    assert!(editor.plan(edit("other"), &none, |_| Ok(())).is_ok());
}

#[test]
fn a_change_by_someone_else_is_not_overwritten() {
    let world = World::new(&[("core.yaml", &policy("core", 1))]);
    let change = world.put("core", &policy("core", 2)).expect("valid");
    let create = world.put("new", &policy("new", 2)).expect("valid");
    fs::write(world.directory.path().join("core.yaml"), policy("core", 3)).expect("write");
    fs::write(world.directory.path().join("new.yaml"), policy("new", 4)).expect("write");
    assert!(matches!(change.commit(), Err(EditError::Raced(_))));
    assert!(matches!(create.commit(), Err(EditError::Raced(_))));
    assert_eq!(world.text("core.yaml"), policy("core", 3));
    assert_eq!(world.files(), ["core.yaml", "new.yaml"], "nothing is left behind");
}

#[test]
fn problems_have_the_same_places_as_in_a_file() {
    let world = World::new(&[("core.yaml", &policy("core", 1))]);
    let problems = |name: &str, text: &str| match world.put(name, text) {
        Err(EditError::Invalid(problems)) => problems
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n"),
        other => panic!("{other:?}"),
    };
    let bad = policy("p", 1).replace("ports: [1]", "portz: [1]");
    assert!(
        problems("p", &bad).starts_with("body:7:44: spec.rules[0].to[0].portz: unknown field `portz`"),
        "{}",
        problems("p", &bad)
    );
    assert!(
        problems("q", &policy("p", 1))
            .contains("body:3:18: metadata.name: is `p`, and the request is about `q`")
    );
    let two = format!("{}---\n{}", policy("p", 1), policy("q", 1));
    assert!(problems("p", &two).contains("is one of 2 policies"));
    assert!(problems("p", "# nothing\n").contains("no policy documents"));
    assert!(problems("p", "a: [").contains("malformed YAML"));
}

#[test]
fn what_is_not_valid_keeps_nobody_from_the_rest_nor_from_mending_it() {
    let world = World::new(&[("core.yaml", &policy("core", 1)), ("bad.yaml", "x: 1\n")]);
    fs::write(world.directory.path().join("odd.yml"), b"\xff").expect("write");
    let plan = world.put("p", &policy("p", 1)).expect("it is valid itself");
    let files = |plan: &Plan| -> Vec<String> {
        let name = |problem: &Problem| {
            Path::new(&problem.file)
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
        };
        let mut files: Vec<String> = plan.waits_for.iter().filter_map(name).collect();
        files.dedup();
        files
    };
    assert_eq!(
        files(&plan),
        ["odd.yml", "bad.yaml"],
        "and they stay what they are"
    );
    assert!(plan.policy_before().is_none() && plan.policy_after().is_some() && !plan.existed);
    plan.commit().expect("committed");
    assert_eq!(world.files(), ["bad.yaml", "core.yaml", "odd.yml", "p.yaml"]);
    world
        .delete("core")
        .and_then(|plan| plan.commit())
        .expect("deleted");
    // A change that is not valid itself is not taken.
    assert!(matches!(world.put("q", "x: 1"), Err(EditError::Invalid(_))));

    // What is in the place of the policy is what a precondition is about.
    let mut seen = None;
    let edit = Edit::Delete {
        name: "bad".to_owned(),
    };
    let planned = world.editor.plan(edit, &PolicySet::default(), |digest| {
        seen = digest.map(str::to_owned);
        Ok(())
    });
    assert_eq!(seen, Some(policy::text_digest("x: 1\n")));
    fs::remove_file(world.directory.path().join("odd.yml")).expect("removed");
    let mend = world.put("bad", &policy("bad", 1)).expect("it mends");
    assert!(mend.waits_for.is_empty() && mend.existed);
    planned
        .expect("it can be deleted, too")
        .commit()
        .expect("deleted");
    assert!(
        matches!(mend.commit(), Err(EditError::Raced(_))),
        "by now it is gone"
    );
    assert_eq!(world.files(), ["p.yaml"]);

    // A policy that was valid is where it was.
    fs::write(world.directory.path().join("p.yaml"), policy("other", 1)).expect("write");
    let known = world.put("other", &policy("other", 2)).expect("valid").after;
    fs::write(world.directory.path().join("p.yaml"), "broken: [").expect("write");
    let edit = Edit::Put {
        name: "other".to_owned(),
        text: policy("other", 3),
    };
    let mend = world.editor.plan(edit, &known, |_| Ok(())).expect("it mends");
    assert_eq!(
        mend.before.digest(),
        known.digest(),
        "the difference is to what is in force"
    );
    mend.commit().expect("committed");
    assert_eq!(world.text("p.yaml"), policy("other", 3));
    // What may be several is not for one of them to replace.
    fs::write(world.directory.path().join("p.yaml"), "a: [\n---\nb: 1\n").expect("write");
    assert!(matches!(
        world.put("p", &policy("p", 1)),
        Err(EditError::SharedFile { count: 2, .. })
    ));
}

#[test]
fn the_first_policy_of_an_empty_directory_is_made() {
    let world = World::new(&[]);
    assert!(matches!(world.delete("p"), Err(EditError::NotFound(_))));
    let plan = world.put("p", &policy("p", 1)).expect("valid");
    assert!(plan.waits_for.is_empty());
    plan.commit().expect("committed");
    assert_eq!(world.files(), ["p.yaml"]);
    let nowhere = Editor::new(world.directory.path().join("absent"), Settings::default());
    let edit = Edit::Put {
        name: "p".to_owned(),
        text: policy("p", 1),
    };
    let planned = nowhere.plan(edit, &PolicySet::default(), |_| Ok(()));
    assert!(matches!(planned, Err(EditError::DiskInvalid(_))));
}

#[test]
fn the_precondition_sees_what_is_on_disk() {
    let world = World::new(&[("core.yaml", &policy("core", 1))]);
    let mut seen = None;
    let edit = Edit::Put {
        name: "core".to_owned(),
        text: policy("core", 2),
    };
    let refused = world.editor.plan(edit, &PolicySet::default(), |digest| {
        seen = digest.map(str::to_owned);
        Err("no".to_owned())
    });
    assert!(matches!(refused, Err(EditError::Precondition(_))));
    let disk = world.put("core", &policy("core", 2)).expect("valid");
    assert_eq!(seen.as_deref(), disk.policy_before().map(AnyPolicy::digest));
}

#[test]
fn a_directory_that_cannot_be_written_is_told_from_a_full_disk() {
    let of = |errno: nix::errno::Errno| file::failed(Path::new("/p/a.yaml"), io::Error::from(errno));
    for errno in [
        nix::errno::Errno::EROFS,
        nix::errno::Errno::EACCES,
        nix::errno::Errno::EPERM,
    ] {
        assert!(matches!(of(errno), EditError::ReadOnly { .. }), "{errno}");
    }
    assert!(matches!(of(nix::errno::Errno::ENOSPC), EditError::Write { .. }));
    assert!(matches!(of(nix::errno::Errno::EEXIST), EditError::Raced(_)));
}

#[test]
fn a_policy_that_would_make_all_too_large_to_be_read_is_not_taken() {
    let padded = |name: &str| {
        let text = policy(name, 1);
        let lines = "# ...............................................................\n";
        let padding = lines.repeat(crate::policy_dir::MAX_FILE_BYTES as usize / lines.len() - 8);
        let rest = crate::policy_dir::MAX_FILE_BYTES as usize - text.len() - padding.len() - 2;
        format!("{text}{padding}#{}\n", ".".repeat(rest))
    };
    let names: Vec<String> = (0..16).map(|number| format!("p{number}")).collect();
    let texts: Vec<(String, String)> = names
        .iter()
        .map(|name| (format!("{name}.yaml"), padded(name)))
        .collect();
    let files: Vec<(&str, &str)> = texts
        .iter()
        .map(|(file, text)| (file.as_str(), text.as_str()))
        .collect();
    let world = World::new(&files);
    let refused = world.put("one-more", &policy("one-more", 2));
    let Err(EditError::Invalid(problems)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((problems.len(), problems[0].file.as_str()), (1, BODY));
    assert!(
        problems[0].message.contains("16777216"),
        "{}",
        problems[0].message
    );
    world.put("p3", &policy("p3", 2)).expect("becomes smaller");
}
