// SPDX-License-Identifier: Apache-2.0
//! The specification's Deployment, as it stands there, on the image as the Dockerfile puts it together. The image that was really
//! built is tried by `cargo xtask test package`.

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

use zt_tests::agent::binary;
use zt_tests::deployment::Container;

use super::*;

/// The last stage of the Dockerfile: what is copied where and for whom, who runs what.
#[derive(Debug, Default)]
struct Image {
    copies: Vec<(String, String, bool)>,
    user: String,
    entrypoint: Vec<String>,
    command: Vec<String>,
}

fn image() -> Result<Image> {
    let text = read("deploy/Dockerfile")?;
    let (_, last) = text.rsplit_once("\nFROM ").context("two stages")?;
    let mut image = Image::default();
    for line in last.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let exec = || -> Result<Vec<String>> {
            let (_, list) = line.split_once(' ').context("a list")?;
            Ok(serde_json::from_str(list)?)
        };
        match words.first() {
            Some(&"COPY") => {
                let [from, to] = words[words.len() - 2..] else {
                    unreachable!("two words")
                };
                let owned = words.iter().any(|word| word.starts_with("--chown=65532:65532"));
                image.copies.push((from.to_owned(), to.to_owned(), owned));
            }
            Some(&"USER") => words[1].clone_into(&mut image.user),
            Some(&"ENTRYPOINT") => image.entrypoint = exec()?,
            Some(&"CMD") => image.command = exec()?,
            _ => {}
        }
    }
    Ok(image)
}

/// Makes the image's file system in a directory. The base is stood for by the C library of this machine.
fn unpack(image: &Image, to: &Path) -> Result<()> {
    for directory in ["usr/lib", "proc", "dev", "tmp", "etc"] {
        fs::create_dir_all(to.join(directory))?;
    }
    for link in ["lib", "lib64"] {
        symlink(format!("usr/{link}"), to.join(link))?;
    }
    fs::create_dir_all(to.join("usr/lib64"))?;
    for (from, inside, owned) in &image.copies {
        if inside == "/" {
            // The base.
            continue;
        }
        let place = to.join(inside.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a parent")?)?;
        if *owned {
            // Empty directories, made in the stage before.
            fs::create_dir_all(&place)?;
            chown(&place, Some(65532), Some(65532))?;
        } else if from.ends_with("/zt-agent") {
            fs::copy(binary()?, &place)?;
        } else if from.starts_with("/opt/out/") {
            fs::write(&place, "{}")?;
        } else {
            fs::copy(root().join(from), &place).with_context(|| from.clone())?;
        }
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[test]
fn the_manifest_of_the_specification_starts_an_engine() -> Result<()> {
    let image = image()?;
    assert_eq!(
        (image.user.as_str(), &image.command[..]),
        ("65532:65532", &["engine".to_owned()][..])
    );
    let directory = tempfile::tempdir()?;
    unpack(&image, directory.path())?;
    let container = Container {
        root: directory.path(),
        user: &image.user,
        borrowed: "usr/lib usr/lib64",
    };
    container.starts_an_engine(&[image.entrypoint, image.command].concat())
}
