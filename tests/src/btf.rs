// SPDX-License-Identifier: Apache-2.0
//! Just enough of a reader of BTF (`Documentation/bpf/btf.rst`) to see how an object lays out its structs.

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;

/// A struct as the compiler of an object laid it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: usize,
    /// Its members in order: name and offset in bytes.
    pub members: Vec<(String, usize)>,
}

/// Every struct in the BTF of an ELF object.
pub fn structs(elf: &[u8]) -> Result<Vec<Layout>> {
    let file = object::File::parse(elf).context("not an ELF object")?;
    let section = file.section_by_name(".BTF").context("the object has no .BTF")?;
    parse(section.data()?)
}

fn parse(btf: &[u8]) -> Result<Vec<Layout>> {
    let magic = btf.get(..2).context("an empty .BTF")?;
    ensure!(magic == MAGIC.to_le_bytes(), "not little-endian BTF");
    let [header, types, types_size, strings, strings_size] = [4, 8, 12, 16, 20].map(|at| word(btf, at));
    let header = header?;
    let part = |offset: usize, size: usize| {
        btf.get(header + offset..header + offset + size)
            .context("a section of the BTF is cut off")
    };
    let (types, strings) = (part(types?, types_size?)?, part(strings?, strings_size?)?);
    let mut found = Vec::new();
    let mut at = 0;
    while at < types.len() {
        let (name, info, size) = (word(types, at)?, word(types, at + 4)?, word(types, at + 8)?);
        let (count, kind) = (info & 0xffff, (info >> 24 & 0x1f) as u32);
        at += 12;
        let item = match kind {
            1 | 14 | 17 => 4,
            3 => 12,
            STRUCT | 5 | 15 | 19 => 12 * count,
            6 | 13 => 8 * count,
            2 | 7..=12 | 16 | 18 => 0,
            unknown => bail!("BTF type of kind {unknown}"),
        };
        if kind == STRUCT {
            let members = (0..count).map(|member| {
                let place = at + 12 * member;
                let bits = word(types, place + 8)?;
                ensure!(bits.is_multiple_of(8), "a bit field");
                Ok((text(strings, word(types, place)?)?, bits / 8))
            });
            found.push(Layout {
                name: text(strings, name)?,
                size,
                members: members.collect::<Result<_>>()?,
            });
        }
        at += item;
    }
    Ok(found)
}

fn word(bytes: &[u8], at: usize) -> Result<usize> {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    let word = word.with_context(|| format!("the BTF ends before {at}"))?;
    Ok(u32::from_le_bytes(word) as usize)
}

fn text(strings: &[u8], at: usize) -> Result<String> {
    let rest = strings.get(at..).context("a name beyond the strings")?;
    let end = rest
        .iter()
        .position(|byte| *byte == 0)
        .context("a name without end")?;
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}
